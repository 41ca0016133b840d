"""Distil EquiformerV2 and eSCN into fast students with fairchem: CRACK (Lim, Choung, Han 2025)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairchem_crack.loss.crack import crack_loss, crack_terms
    from fairchem_crack.loss.relations import unordered_pairs
    from fairchem_crack.training.trainer import CrackDistillTrainer

    __version__: str

__all__ = ["CrackDistillTrainer", "crack_loss", "crack_terms", "unordered_pairs"]

# Imported on first use: the loss needs only torch, the trainer needs fairchem.
_HOMES = {
    "crack_loss": "fairchem_crack.loss.crack",
    "crack_terms": "fairchem_crack.loss.crack",
    "unordered_pairs": "fairchem_crack.loss.relations",
    "CrackDistillTrainer": "fairchem_crack.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


def _version() -> str:
    """That of the installed package, or 0+unknown in a tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fairchem-crack")
    except PackageNotFoundError:
        return "0+unknown"
