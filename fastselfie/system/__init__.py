"""Access to the machine: devices, distributed training, processes, files, locks and signals.

May import: config, kernels, errors.
"""
