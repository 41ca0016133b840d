"""`python -m fairchem_crack.teacher.label --verify`: recompute some records of a cache, and compare."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fairchem_crack.teacher.cache import CacheError, TeacherCache, start
from fairchem_crack.teacher.cache.comparison import chosen, compare
from fairchem_crack.teacher.label.job import RESPONSE, Job, attempted, records_of


def verify(job: Job, count: int, *, seed: int = 0) -> tuple[int, float]:
    """Recompute the records of random systems, each by itself.

    Args:
        job: its data may be a part of the cache's; what a record holds is the cache's matter.
        count: of the systems; of fewer, all.

    Returns:
        How many were recomputed, and the largest deviation of a field, of its largest entry.

    Raises:
        CacheError: the cache is of another teacher or other data, or a record differs by more than its type explains.
    """
    cache = TeacherCache(job.directory)
    held = cache.plan
    job = replace(
        job,
        dtype=held.dtype,
        has_vectors="vector_embedding" in held.fields,
        has_response=RESPONSE in held.fields,
        chunk=held.chunk,
        keeps_going=True,
    )
    systems, labeller = job.systems(), job.labeller()
    plan = replace(job.plan(systems, labeller), systems=held.systems, sample=held.sample)
    start(job.directory, plan)
    indices, worst = chosen(len(systems), count, seed), 0.0
    for index in indices:
        system = systems[index]
        kept = cache.get(system.digest)
        if kept is None:
            raise CacheError(f"Teacher cache {job.directory} has no record of {system.name}: it is of other data.")
        (fresh,) = records_of([system], partial(attempted, labeller), plan)
        worst = max(worst, compare(job.directory, plan, f"of {system.name}", fresh=fresh, kept=kept))
    return len(indices), worst
