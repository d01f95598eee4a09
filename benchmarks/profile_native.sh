#!/bin/sh
# Show the functions in which the native loader spends its time, found with perf.
#   benchmarks/profile_native.sh FILE.beton > benchmarks/results/native-profile.txt
# One thread, 20 s of random resized crops to 224, without the start. Needs Debian's linux-perf.
set -eu
file=${1:?"usage: benchmarks/profile_native.sh FILE.beton"}
python=${PYTHON:-python}
data=$(mktemp)
trap 'rm -f "$data"' EXIT
"$python" - "$file" "$data" <<'PYTHON'
import subprocess, sys, time, os
from contextlib import closing

import torch

from fastselfie.config import DataConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.data.loaders import build_loader

data = DataConfig(train=sys.argv[1], loader="native", workers=1)
loader = build_loader(open_dataset(data).train, data, 0, torch.device("cpu"))
with closing(loader.stream(0, 100)) as batches:
    for _ in range(30):
        next(batches)
    perf = subprocess.Popen(["perf", "record", "-q", "-F", "499", "-p", str(os.getpid()),
                             "-o", sys.argv[2], "sleep", "20"])
    while perf.poll() is None:
        next(batches)
PYTHON
echo "# Native loader, random resized crop to 224, 1 thread, $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1):"
echo "# share of samples, where, function. Made by benchmarks/profile_native.sh $(basename "$file")."
perf report -i "$data" --stdio --sort dso,symbol --percent-limit 0.7 2>/dev/null | grep -v '^#' |
  sed 's/[ -]*$//; /^$/d'
