"""Use a finished run: evaluate it, predict new images, extract features.

May import: runs and what is below it.
"""
