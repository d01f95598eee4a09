#!/bin/sh
# Everything that only a GPU can show, in under 8 minutes, as one JSON file. Exit 1 if a check fails.
#   benchmarks/gpu_check.sh [OUT.json]
# Needs a GPU, triton (which torch's CUDA builds bring) and, for the mixed decoder, nvidia-dali.
# PYTHON may be set.
set -eu
here=$(dirname "$0")
exec "${PYTHON:-python}" "$here/gpu_check.py" --json "${1:-$here/results/gpu.json}"
