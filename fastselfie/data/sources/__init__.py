"""Datasets as people have them, each behind `Source`: folders, archives and well-known files.

May import: data.beton and data.random.
"""
