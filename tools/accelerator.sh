#!/usr/bin/env bash
# Measures this checkout on a machine with one GPU: reproducibility, ResNet-50 next to PyTorch and
# plain Flax, ensembles, three seeds on CIFAR-10.
#
#   tools/accelerator.sh --data=PATH    # on the GPU, at most 12 minutes
#   tools/accelerator.sh --dry-run      # tiny sizes on the CPU
#   tools/accelerator.sh --wheels       # before: fetches what a machine without a registry lacks
#
# benchmarks/accelerator.py has the steps and the other options. The wheels are those of Python 3.12 on
# Linux x86_64, in addition to JAX, Flax, PyTorch and what these need. They are in .wheels/, which is not in
# git; if it is there, a measurement installs them for itself alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [ "${1:-}" = --wheels ]; then
  rm -rf .wheels
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest .wheels \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    array_record grain ml_collections portpicker tensorflow-datasets tensorflow-metadata dm-tree \
    docstring_parser googleapis-common-protos immutabledict importlib_resources simple_parsing \
    termcolor toml
  "$python" -m pip wheel --quiet --no-deps --wheel-dir .wheels promise  # has no wheel
  exit
fi

if [ -d .wheels ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  if "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .wheels/*.whl
  then
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
  else
    echo "the packages in .wheels do not fit $("$python" --version): going on without them" >&2
  fi
fi
"$python" -m benchmarks.accelerator "$@"
