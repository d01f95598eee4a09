"""Where the time of a run goes: `fastselfie profile` and the estimates of a GPU.

May import: report, runs and what is below them.
"""
