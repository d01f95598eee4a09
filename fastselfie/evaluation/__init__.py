"""Measures of a network on held-out images: accuracy, k-NN, linear probe, pictures of the task.

May import: data, models, system, config, kernels.
"""
