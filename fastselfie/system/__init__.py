"""What the trainer needs of the machine: devices, processes, files, locks and signals.

May import: config, kernels, errors.
"""
