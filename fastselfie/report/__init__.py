"""HTML pages of runs, comparisons and profiles; writes files, trains nothing.

May import: runs and what is below it.
"""
