"""FFCV's .beton file format: a reader and a writer.

May import: nothing else of the data package.
"""
