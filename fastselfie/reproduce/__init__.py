"""The paper's comparison as many trainings: protocol, scheduler, workers, statistics, table.

May import: profiling, report, runs and what is below them.
"""
