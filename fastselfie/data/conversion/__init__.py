"""Conversion of any source to a .beton file: encoding, merging of parts, lists of skipped images.

May import: data.sources and data.beton.
"""
