"""The .beton file format of FFCV: a reader and a writer.

May import: nothing else of the data package.
"""
