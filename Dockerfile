# CPUs:  docker build -t fairchem-crack .
# CUDA:  docker build -t fairchem-crack --build-arg BASE=pytorch/pytorch:2.4.1-cuda12.1-cudnn9-devel --build-arg FORCE_CUDA=1 .
# Both bases have Python 3.11 and compilers: torch-scatter and torch-sparse need them now, Triton when it runs.
ARG BASE=python:3.11-bookworm
FROM ${BASE}

# An index that has torch without CUDA, and PyG's index of wheels, which saves the compilation. Both may stay empty.
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=

RUN pip install --no-cache-dir "setuptools<81" "setuptools-scm>=10" "wheel>=0.40" "ninja>=1.11" \
    "torch~=2.4.0" "numpy<2" "scipy<1.17"

# No GPU is seen while an image is built: 1 compiles for CUDA all the same, for the GPUs of the list.
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="7.0 7.5 8.0 8.6 9.0+PTX"
RUN CPPFLAGS=-g0 pip install --no-cache-dir --no-build-isolation "torch-scatter>=2.1" "torch-sparse>=0.6"

# The context has no tags: the version of this package, if it is a release.
ARG SETUPTOOLS_SCM_PRETEND_VERSION=
COPY . /tmp/source
RUN pip install --no-cache-dir /tmp/source "ase<3.26" && rm -r /tmp/source

WORKDIR /work
CMD ["fairchem-crack", "--help"]
