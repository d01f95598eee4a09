"""Conversion of any source to a .beton file: encoding, merging of shards, lists of skipped images.

May import: data.sources and data.beton.
"""
