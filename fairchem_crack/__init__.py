"""Distil EquiformerV2 and eSCN into fast students with fairchem: CRACK (Lim, Choung, Han 2025)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported on first use: the loss needs torch alone, the trainer needs fairchem.
_HOMES = {
    "crack_loss": "fairchem_crack.loss.crack",
    "crack_terms": "fairchem_crack.loss.crack",
    "unordered_pairs": "fairchem_crack.loss.relations",
    "CrackDistillTrainer": "fairchem_crack.training.trainer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
