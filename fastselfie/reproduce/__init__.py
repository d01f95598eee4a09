"""Reproduce the paper's Table 1 as many trainings: protocol, scheduler, workers, statistics, table.

May import: profiling, report, runs and what is below them.
"""
