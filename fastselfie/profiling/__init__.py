"""Measure where the time of a run goes (`fastselfie profile`), and estimate it for other GPUs.

May import: report, runs and what is below them.
"""
