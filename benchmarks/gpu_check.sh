#!/bin/sh
# Make the checks that need a GPU, into one JSON file. Status 1 if one fails.
#   benchmarks/gpu_check.sh [quick|full [OUT.json]]
# quick, the default, takes under 4 minutes. full adds what compiles or measures for long, and takes
# under 31. Needs a GPU, triton (which torch's CUDA builds bring) and, for the mixed decoder,
# nvidia-dali. PYTHON may be set.
set -eu
here=$(dirname "$0")
part=${1:-quick}
exec "${PYTHON:-python}" "$here/gpu_check.py" "$part" --json "${2:-$here/results/gpu-$part.json}"
