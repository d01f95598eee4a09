#!/bin/sh
# Make every check that needs a GPU, in under 8 minutes, into one JSON file. Status 1 if one fails.
#   benchmarks/gpu_check.sh [OUT.json]
# Needs a GPU, triton (which torch's CUDA builds bring) and, for the mixed decoder, nvidia-dali.
# PYTHON may be set.
set -eu
here=$(dirname "$0")
exec "${PYTHON:-python}" "$here/gpu_check.py" --json "${1:-$here/results/gpu.json}"
