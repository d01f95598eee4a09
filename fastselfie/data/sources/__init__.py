"""Dataset formats (folders, archives, well-known files), each opened as a `Source`.

May import: data.beton and data.draws.
"""
