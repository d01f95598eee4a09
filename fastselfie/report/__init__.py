"""Write HTML pages of runs, comparisons and profiles. Nothing here trains.

May import: runs and what is below it.
"""
