"""A run's folder: train into it, read it, load its networks, check the machine for it.

May import: training, evaluation and what is below them.
"""
