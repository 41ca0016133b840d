"""`fairchem-crack cache-teacher --verify`: recompute some records of a cache, and compare."""

from __future__ import annotations

from tqdm import tqdm

from fairchem_crack.commands.cache_teacher.job import Job
from fairchem_crack.teacher.cache import TeacherCache, start
from fairchem_crack.teacher.cache.comparison import chosen, compare
from fairchem_crack.teacher.cached import record_of


def verify(job: Job, count: int, *, seed: int = 0) -> float:
    """Recompute `count` random records, each in a batch by itself; the largest deviation of a field, of its largest entry.

    Raises:
        CacheError: a record differs by more than its type explains.
    """
    cache, dataset = TeacherCache(job.directory), job.dataset()
    source, plan = job.source(0, dataset)
    start(job.directory, plan)
    worst = 0.0
    for index in tqdm(chosen(plan.systems, count, seed), unit=" records"):
        kept = record_of(cache, dataset[index], index, dataset.name, dataset)
        fresh = source.recompute(index, kept)
        worst = max(worst, compare(job.directory, plan, str(index), fresh=fresh, kept=kept))
    return worst
