"""From files on disk to batches of pixels: sources, the .beton format, loaders and their order.

May import: system, config, kernels.
"""
