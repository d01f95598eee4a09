"""Data loading, from files to batches of pixels: sources, the .beton format, loaders.

May import: system, config, kernels.
"""
