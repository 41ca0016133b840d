"""torch-scatter and torch-sparse, which fairchem needs and which are compiled against the torch they find."""

from __future__ import annotations

import importlib
import importlib.util

PACKAGES = ("torch_scatter", "torch_sparse")
WITHOUT_CUDA = -1  # what their operator `cuda_version` returns then


def check_installed() -> None:
    """Raise ModuleNotFoundError where one of the two is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        names = _listed(missing)
        raise ModuleNotFoundError(
            f"fairchem needs {names}, which must be compiled against the installed torch. Run:\n"
            f"  pip install wheel 'setuptools<81'\n  pip install --no-build-isolation {names}"
        )


def check_built_for_cuda(cpu: bool = False) -> None:
    """Raise RuntimeError where a GPU will be used and one of the two was compiled without CUDA.

    pip compiles them so, without a warning, where it finds no nvcc or sees no GPU: on a login node, in a docker build. Their
    first call on the GPU, in the first forward, then ends with "Not compiled with CUDA support".

    Args:
        cpu: fairchem's `--cpu`: no GPU is used.
    """
    import torch

    if cpu or torch.version.hip is not None or not torch.cuda.is_available():
        return
    lacking = []
    for name in PACKAGES:
        importlib.import_module(name)  # which loads its operators
        if getattr(torch.ops, name).cuda_version() == WITHOUT_CUDA:
            lacking.append(name)
    if lacking:
        names = _listed(lacking)
        raise RuntimeError(
            f"Compiled without CUDA: {names}. The first forward on the GPU would end with `Not compiled with CUDA support`. "
            f"Compile anew where nvcc of CUDA {torch.version.cuda} is; FORCE_CUDA=1 is for a login node or a docker build, "
            "which see no GPU:\n"
            f"  FORCE_CUDA=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall {names}\n"
            f"or take the wheels that PyG offers for torch {torch.__version__} (docs/install.md), or stay on the CPU "
            "with --cpu."
        )


def _listed(names: list[str]) -> str:
    return " ".join(name.replace("_", "-") for name in names)
