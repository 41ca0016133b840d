"""Recomputed records of a cache, compared with those that it holds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fairchem_crack.teacher.cache.records import CacheError, Plan, Record

# Accepted deviation of a recomputed field, of its largest entry: by the type that it is kept or computed in.
EQUAL = {"float16": 2e-3, "float32": 1e-4, "float64": 1e-4, "bfloat16": 5e-2}
EQUAL_DIFFERENCES = 1e-2  # of forces, divided by 0.02 A
DIFFERENCES = ("force_jacobian", "force_response")
# eV, eV/A, eV/A^2: rounding does not shrink
SMALLEST_SCALE = {"energy": 1.0, "forces": 1.0, **dict.fromkeys(DIFFERENCES, 1.0)}
OF_SYMMETRY = ("vector_embedding", "higher_embedding")  # in a primitive cell, for example, only their rounding is left
BESIDE = 0.1  # of the node embedding's largest entry, by which that rounding goes


def chosen(systems: int, count: int, seed: int) -> list[int]:
    """Numbers of `count` random systems, of so many.

    Raises:
        ValueError: there are to be none.
    """
    if count < 1:
        raise ValueError(f"--verify {count}: expected at least 1.")
    return random.Random(seed).sample(range(systems), min(count, systems))


def compare(directory: Path, plan: Plan, system: str, *, fresh: Record, kept: Record) -> float:
    """The largest deviation of a field, of its largest entry.

    Args:
        system: whose records they are, after `record` in messages: its number, or `of` and its name.

    Raises:
        CacheError: it is more than the type of the field explains, or the pairs differ.
    """
    where, worst = f"Teacher cache {directory}: record {system}", 0.0
    if fresh.atoms != kept.atoms:
        raise CacheError(f"{where} is of {kept.atoms} atoms, the teacher's of {fresh.atoms}. Rebuild it.")
    for name in plan.fields:
        deviation, limit = _deviation(fresh, kept, name), _limit(plan, name)
        if deviation > limit:
            raise CacheError(
                f"{where} differs from the teacher by {deviation:.1e} in {name}, expected at most {limit:.0e}. Rebuild it."
            )
        worst = max(worst, deviation)
    if plan.has_pairs and not np.array_equal(fresh.pairs, kept.pairs):
        raise CacheError(f"{where} has other pairs than the teacher. Rebuild it.")
    return worst


def smallest_scale(name: str, values: Mapping[str, np.ndarray]) -> float:
    """The least that the differences of a field are divided by, beside the other fields of a system."""
    if name in OF_SYMMETRY and "node_embedding" in values:
        return BESIDE * float(np.abs(values["node_embedding"]).max(initial=0.0))
    return SMALLEST_SCALE.get(name, 1e-6)


def _deviation(fresh: Record, kept: Record, name: str) -> float:
    """The largest difference of a field, relative to what its rounding goes by."""
    scale = max(float(np.abs(fresh.values[name]).max(initial=0.0)), smallest_scale(name, fresh.values), 1e-6)
    if name == "energy" and "atom_energies" in fresh.values:  # a sum in which large terms may cancel
        scale = max(scale, float(np.abs(fresh.values["atom_energies"]).sum()))
    return float(np.abs(fresh.values[name] - kept.values[name].astype(np.float64)).max(initial=0.0)) / scale


def _limit(plan: Plan, name: str) -> float:
    limit = EQUAL_DIFFERENCES if name in DIFFERENCES else EQUAL[plan.type_of(name).name]
    return max(limit, EQUAL.get(plan.precision, 0.0)) if plan.has_pairs else limit
