#!/usr/bin/env bash
# A day on a GPU in one command, also on a machine without network; day.py says what it does and in which order.
#
#   bash benchmarks/gpu/bundle.sh BUNDLE                                  # once, where there is a network
#   bash benchmarks/gpu/run.sh BUNDLE OUT [--only loss,steps] [--seconds 400]
#   bash benchmarks/gpu/run.sh BUNDLE OUT --device cpu                        # a dry run at toy size
#
# From the repository's root. The machine's own torch stays: the bundle goes into a folder of its own, $GPU_SITE, and no line
# of the installed fairchem changes. OUT gets gpu.json, gpu.md and logs.tar.gz, as they grow.
set -euo pipefail
bundle=$1 out=$2
shift 2
python=${PYTHON:-python3}
site=${GPU_SITE:-$(mktemp -d)}
"$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore \
  --upgrade --target "$site" "$bundle"/*.whl
export PYTHONPATH=$PWD:$PWD/benchmarks/gpu/site:$site
# Since torch 2.6 `torch.load` reads tensors only, unless told otherwise; fairchem 1.10 stores its tables of rotations, and
# its checkpoints, as plain pickles.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} NUMBA_NUM_THREADS=${NUMBA_NUM_THREADS:-1} PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu.day --bundle "$bundle" --site "$site" --out "$out" "$@"
