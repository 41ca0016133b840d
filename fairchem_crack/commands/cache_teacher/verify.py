"""`fairchem-crack cache-teacher --verify`: recompute some records of a cache, and compare."""

from __future__ import annotations

import random

import numpy as np
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.commands.cache_teacher.job import Job
from fairchem_crack.teacher.cache import CacheError, Plan, Record, TeacherCache, start
from fairchem_crack.teacher.cached import record_of

# Accepted deviation of a recomputed field, of its largest entry: by the type that it is kept or computed in.
EQUAL = {"float16": 2e-3, "float32": 1e-4, "float64": 1e-4, "bfloat16": 5e-2}
EQUAL_ROWS = 1e-2  # of the Jacobian: a difference of forces, divided by twice 0.01 A
SMALLEST_SCALE = {keys.ENERGY: 1.0, keys.FORCES: 1.0, keys.FORCE_JACOBIAN: 1.0}  # eV, eV/A, eV/A^2: rounding does not shrink


def verify(job: Job, count: int, *, seed: int = 0) -> float:
    """Recompute `count` random records, each in a batch by itself; the largest deviation of a field, of its largest entry.

    Raises:
        CacheError: a record differs by more than its type explains.
    """
    if count < 1:
        raise ValueError(f"--verify {count}: expected at least 1.")
    cache, dataset = TeacherCache(job.directory), job.dataset()
    source, plan = job.source(0, dataset)
    start(job.directory, plan)
    chosen = random.Random(seed).sample(range(plan.systems), min(count, plan.systems))
    worst = 0.0
    for index in tqdm(chosen, unit=" records"):
        kept = record_of(cache, dataset[index], index, dataset.name)
        fresh = source.recompute(index, kept)
        for name in plan.fields:
            deviation, limit = _deviation(fresh, kept, name), _limit(plan, name)
            if deviation > limit:
                raise CacheError(
                    f"Teacher cache {job.directory}: record {index} differs from the teacher by {deviation:.1e} in {name}, "
                    f"expected at most {limit:.0e}. Rebuild it."
                )
            worst = max(worst, deviation)
        if plan.has_pairs and not np.array_equal(fresh.pairs, kept.pairs):
            raise CacheError(f"Teacher cache {job.directory}: record {index} has other pairs than the teacher. Rebuild it.")
    return worst


def _deviation(fresh: Record, kept: Record, name: str) -> float:
    """The largest difference of a field, relative to what its rounding goes by."""
    scale = max(float(np.abs(fresh.values[name]).max()), SMALLEST_SCALE.get(name, 1e-6))
    if name == keys.ENERGY and keys.ATOM_ENERGIES in fresh.values:  # a sum in which large terms may cancel
        scale = max(scale, float(np.abs(fresh.values[keys.ATOM_ENERGIES]).sum()))
    return float(np.abs(fresh.values[name] - kept.values[name].astype(np.float64)).max()) / scale


def _limit(plan: Plan, name: str) -> float:
    limit = EQUAL_ROWS if name == keys.FORCE_JACOBIAN else EQUAL[plan.type_of(name).name]
    return max(limit, EQUAL.get(plan.precision, 0.0)) if plan.has_pairs else limit
