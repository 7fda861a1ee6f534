#!/usr/bin/env bash
# Measures this checkout on a machine with one GPU: reproducibility, numerics, training, inference.
#
#   tools/accelerator.sh OUT              # on the GPU, about 7 minutes
#   tools/accelerator.sh OUT --dry-run    # tiny sizes on the CPU, without PyTorch
#
# Each step writes OUT/STEP.log, and its results as JSON, and has a time limit; a step that fails does
# not stop the others. OUT/steps.txt has one line per step: name, exit status, seconds.
# A folder .wheels/ in the checkout, if there is one, has packages that the machine lacks.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
dry=${2:-}
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # several processes share the GPU
python=${PYTHON:-python3}
if [ -d .wheels ]; then
  "$python" -m pip install --quiet --no-index --no-deps .wheels/*.whl > "$out/install.log" 2>&1
fi

if [ "$dry" = --dry-run ]; then
  export JAX_PLATFORMS=cpu
  device=cpu peers=flax train=cifar_resnet20@32:8 latency=cifar_resnet20@32:1 bulk=cifar_resnet20@32:8
  rounds="--rounds=1 --seconds=0.1" epochs=1
else
  device=gpu peers=torch,flax train=resnet50@224:256 latency=resnet50@224:1
  bulk=resnet50@224:256 rounds="--rounds=2 --seconds=2" epochs=5
fi

step() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
  echo "$name $? $((SECONDS - start))" | tee -a "$out/steps.txt"
}

digits() {  # NAME ENGINE [XLA_FLAGS]
  step "$1" 90 env XLA_FLAGS="${3:-}" "$python" train.py --workdir="$out/runs/$1" \
    --config.parallel="$2" --config.epochs="$epochs"
  cp "$out/runs/$1/results.json" "$out/$1.json" 2> /dev/null
}

rm -rf "$out/runs" "$out/steps.txt"
if [ "$device" = gpu ]; then step nvidia_smi 20 nvidia-smi; fi
step train 200 "$python" -m benchmarks step --models="$train" --dtype=bfloat16 --peers="$peers" \
  --device="$device" $rounds --json="$out/train.json"
digits digits_pmap pmap
digits digits_pmap_again pmap
digits digits_mesh mesh
digits digits_deterministic pmap --xla_gpu_deterministic_ops=true
digits digits_deterministic_again pmap --xla_gpu_deterministic_ops=true
step evaluate 60 "$python" -m resflax evaluate "$out/runs/digits_pmap" --out="$out/evaluation"
step stablehlo 90 "$python" -m resflax export "$out/runs/digits_pmap" "$out/digits.stablehlo"
step inference_bulk 120 "$python" -m benchmarks inference --models="$bulk" --dtype=bfloat16 \
  --peers="$peers" --device="$device" $rounds --json="$out/inference_bulk.json"
step inference_latency 90 "$python" -m benchmarks inference --models="$latency" --dtype=bfloat16 \
  --peers="$peers" --device="$device" $rounds --json="$out/inference_latency.json"
rm -rf "$out/runs"
