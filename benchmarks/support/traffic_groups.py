"""Names of what benchmarks/traffic.py counts: forms of a step, and groups of its kernels."""

from __future__ import annotations

# `runtime.kernels` and `runtime.compile`
FORMS = {
    "eager torch": ("reference", "off"),
    "torch.compile alone": ("reference", "default"),
    "torch.compile with our kernels": ("auto", "default"),
}

CONVOLUTIONS = "convolutions"
READ_AGAIN = "their gradients, read again for the weights"
NORMS = "batch norm, ReLU, sums"
POOL = "max pool"
ATTENTION = "attention"
SCORE = "score"
CASTS = "casts of weights and their gradients"
INPUT = "patchify"
OPTIMIZER = "optimizer and checks"
GROUPS = (CONVOLUTIONS, READ_AGAIN, NORMS, POOL, ATTENTION, SCORE, CASTS, INPUT, OPTIMIZER)
