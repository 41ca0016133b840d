#!/usr/bin/env bash
# Compile torch-scatter and torch-sparse: PYTHON=python3 bash benchmarks/gpu/wheels.sh SOURCES WHEELS ARCH [torch_sparse]
# ARCH is the compute capability of the one card they are for, 9.0 for example; "" is for the CPU only.
#
# Their own setup.py builds its sixteen extensions one after the other. Here each is built in a copy of the source that has
# no other, $MAX_JOBS of them side by side (all cores by default), and the wheel is packed of what they make.
set -euo pipefail
sources=$1 wheels=$2 arch=$3
shift 3
[ $# -gt 0 ] || set -- torch_scatter torch_sparse
export python=${PYTHON:-python3} place
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if [ -n "$arch" ]; then export FORCE_ONLY_CUDA=1 TORCH_CUDA_ARCH_LIST=$arch; else export FORCE_ONLY_CPU=1; fi
export side_by_side=${MAX_JOBS:-$(nproc)} MAX_JOBS=1 CPPFLAGS=-g0 # no debugging symbols
if [ -n "$arch" ] && [ -z "${CUDA_HOME:-}" ]; then # torch looks beside the nvcc on the PATH, which may stand for one elsewhere
  CUDA_HOME=$(dirname "$(nvcc --dryrun -c none.cu 2>&1 | sed -n 's/^#\$ _HERE_=//p')")
  export CUDA_HOME
fi
# torch's CUDA headers include those of the libraries, which may lie in pip's packages only
headers="import glob, sys; print(*(':' + f for p in sys.path for f in glob.glob(p + '/nvidia/cu*/include')), sep='')"
export CPATH=${CPATH:-}$("$python" -c "$headers")

build() { # PACKAGE EXTENSION, as torch_scatter-2.1.2 and segment_coo
  cp -r "$place/$1" "$place/$1-$2"
  cd "$place/$1-$2"
  find csrc -maxdepth 1 -name '*.cpp' ! -name "$2.cpp" -delete
  "$python" setup.py --quiet build_ext --inplace > "$place/$1-$2.log" 2>&1 || { tail -n 40 "$place/$1-$2.log"; exit 255; }
}
export -f build

packages=()
for module in "$@"; do
  archive=$(ls "$sources/$module"-*.tar.gz)
  tar xzf "$archive" -C "$place"
  packages+=("$(basename "$archive" .tar.gz)")
  sed -i "s/, use_ninja=False//; s/'-O3'/'-O1'/" "$place/${packages[-1]}/setup.py" # the work is on the GPU
done

for package in "${packages[@]}"; do
  for main in "$place/$package"/csrc/*.cpp; do
    extension=$(basename "$main" .cpp)
    # those with CUDA first: they take longest
    echo "$([ -e "$place/$package/csrc/cuda/${extension}_cuda.cu" ]; echo $?) $package $extension"
  done
done | sort | cut -d ' ' -f 2- | xargs -P "$side_by_side" -L 1 bash -c 'build "$0" "$1"'

for package in "${packages[@]}"; do
  module=${package%%-*} wheel=$place/wheel-$package
  mkdir -p "$wheel/$package.dist-info"
  cp -r "$place/$package/$module" "$wheel/"
  cp "$place/$package"-*/"$module"/*.so "$wheel/$module/"
  printf 'Metadata-Version: 2.1\nName: %s\nVersion: %s\n' "$module" "${package##*-}" > "$wheel/$package.dist-info/METADATA"
  tag=$("$python" -c "import sys; v = 'cp%d%d' % sys.version_info[:2]; print(f'{v}-{v}-linux_x86_64')")
  printf 'Wheel-Version: 1.0\nGenerator: gpu_wheels\nRoot-Is-Purelib: false\nTag: %s\n' "$tag" > "$wheel/$package.dist-info/WHEEL"
  "$python" -m wheel pack "$wheel" --dest-dir "$wheels"
done
