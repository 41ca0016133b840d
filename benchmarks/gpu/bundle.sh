#!/usr/bin/env bash
# The bundle of `run.sh`: what fairchem-core 1.10 needs on a machine without network beside its own Python 3.12, torch,
# numpy, scipy, numba, e3nn and torch-geometric: wheels of the rest, and the sources of torch-scatter and -sparse.
#
#   bash benchmarks/gpu/bundle.sh [FOLDER]               # build/gpu_bundle; a minute
#   bash benchmarks/gpu/bundle.sh FOLDER PYTHON ARCH     # and both compiled here, which takes the GPU's machine no time:
#                                                        # a Python 3.12 with that machine's torch, nvcc, and 9.0 for an H100
#
# PYTHON (or .venv/bin/python) needs torch: the sources ask for it when they are downloaded.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$here/build/gpu_bundle}
python=${2:-$here/.venv/bin/python}
mkdir -p "$folder"
find "$folder" -maxdepth 1 \( -name '*.whl' -o -name '*.tar.gz' \) ! -name 'torch_*.whl' -delete # compiled ones stay
pip=("$python" -m pip --disable-pip-version-check)

download=("${pip[@]}" download --quiet --dest "$folder" --only-binary=:all: --implementation cp --python-version 3.12)
for glibc in 2_28 2_17; do download+=(--platform "manylinux_$glibc""_x86_64"); done
"${download[@]}" --platform manylinux2014_x86_64 --no-deps \
  fairchem-core==1.10.0 "ase<3.26" lmdb hydra-core "omegaconf<2.4" orjson submitit tabulate torchtnt vesin
"${download[@]}" --platform manylinux2014_x86_64 "pydantic>=2.10"
"${pip[@]}" wheel --quiet --no-deps --wheel-dir "$folder" "antlr4-python3-runtime==4.9.*"
"${pip[@]}" download --quiet --dest "$folder" --no-deps --no-build-isolation --no-binary :all: torch-scatter torch-sparse
if [ $# -ge 3 ]; then PYTHON=$python bash "$here/benchmarks/gpu/wheels.sh" "$folder" "$folder" "$3"; fi
du -sh "$folder"
