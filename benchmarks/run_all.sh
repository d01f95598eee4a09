#!/bin/sh
# Make every table of speed from a folder of photographs, in about an hour on 2 cores.
#   benchmarks/run_all.sh PHOTOS [WORK]     PHOTOS/CLASS/*.jpg; WORK: the inputs, made where missing
# Needs ffcv, nvidia-dali, spdl, webdataset and simplejpeg: see benchmarks/README.md.
# PYTHON, THREADS, OUT, SECONDS_A_ROUND and TORCHVISION, an interpreter with it, may be set.
set -eu

photos=${1:?"usage: benchmarks/run_all.sh PHOTOS [WORK]"}
work=${2:-data/throughput}
python=${PYTHON:-python}
threads=${THREADS:-2}
seconds=${SECONDS_A_ROUND:-2}
here=$(dirname "$0")
out=${OUT:-$here/results}
mkdir -p "$work"

prepare() { # FILE OPTIONS
  file=$1
  shift
  [ -e "$file" ] || "$python" -m fastselfie prepare "$photos" --out "$file" "$@"
}
measure() { # NAME TITLE OPTIONS
  name=$1 title=$2
  shift 2
  "$python" "$here/throughput.py" --threads "$threads" --seconds "$seconds" \
    --json "$out/throughput-$name.json" --title "$title" "$@"
}

prepare "$work/q90.beton" --max-side 500 --quality 90 --subsampling 420
prepare "$work/orig.beton"
# What users of FFCV have: its own writer's file. The other peers read the JPEGs in it.
[ -e "$work/ffcv.beton" ] || PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" \
  "$python" -m support.inputs "$photos" "$work/ffcv.beton"

q90="--data $work/q90.beton --ffcv-data $work/ffcv.beton --folder $work/q90-folder"
all=native,ffcv,dali-cpu,folder
measure q90-224 "Long side 500, quality 90, to 224" $q90 --cold \
  --loaders "native,ffcv,ffcv-shared,dali-cpu,folder,simplejpeg${TORCHVISION:+,torchvision},spdl,webdataset" \
  ${TORCHVISION:+--torchvision "$TORCHVISION"} \
  --end-to-end "$here/../configs/quickstart.yaml"
measure q90-160 "The same, to 160" $q90 --size 160 --loaders $all
measure q90-128 "The same, to 128" $q90 --size 128 --loaders $all
measure q90-eval "The same, central crop to 224" $q90 --mode eval --loaders $all
# FFCV's writer cannot keep a JPEG's bytes: here it reads our file.
measure orig-224 "The photographs as they are, to 224" --data "$work/orig.beton" \
  --folder "$photos" --loaders $all
measure resident "50,000 raw images of 32x32" --raw "$work/noise.beton"
"$python" "$here/decode.py" --data "$photos" --seconds "$seconds" --json "$out/decode.json" \
  ${TORCHVISION:+--torchvision "$TORCHVISION"}
"$python" "$here/conversion.py" "$photos" --json "$out/conversion.json"
for config in cifar10 in224; do
  "$python" "$here/step.py" --config "$here/../configs/$config.yaml" --threads "$threads" \
    --json "$out/step-$config.json"
  "$python" "$here/step.py" --config "$here/../configs/$config.yaml" --threads "$threads" \
    --contenders "ours,pooled query" --json "$out/step-query-$config.json"
done
for isa in AVX2 AVX512_CORE AVX512_CORE_BF16 AVX512_CORE_AMX; do
  "$python" "$here/step.py" --config "$here/../configs/cifar10.yaml" --isa "$isa" --beside 1 \
    --contenders "ours,straightforward,reference kernels" --threads "$threads" \
    --json "$out/step-beside-$isa.json" || [ $? = 2 ] # 2: the processor lacks it
done
[ -n "${OUT:-}" ] || "$python" "$here/readme.py"
