"""Pretraining and finetuning: the loop, the step, checkpoints, metrics and their logs.

May import: evaluation, data, models, system, config, kernels.
"""
