"""The teacher cache of `benchmarks/step`: what writing and reading it costs."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step.runs import CACHE, Clock, teacher_clock, training_config
from fairchem_crack import keys
from fairchem_crack.commands.cache_teacher.job import Job, write_chunks
from fairchem_crack.evaluation.time_and_memory import peak_growth
from fairchem_crack.teacher.cache import CacheWriter, Plan, Record, TeacherCache, finish, start
from fairchem_crack.teacher.cached import CachedDataset

RECORDS = 1024  # of the cache whose size and speed are measured; the records of the systems over and over


def measure_cache(directory: Path, *, device: str) -> dict:
    """Seconds to write the cache of the systems and what of it is the teacher; size and speed of a larger one."""
    config = training_config("painn", "online", directory, 1)
    job = Job(config, directory / CACHE, has_vectors=True, cpu=device == "cpu")  # which PaiNN's terms need
    dataset = job.dataset()
    source, plan = job.source(0, dataset)
    job.directory.mkdir()
    start(job.directory, plan)
    with teacher_clock("__call__") as inference:
        clock = Clock()
        _, peak = peak_growth(
            lambda: sum(write_chunks(job.directory, source, plan, range(plan.chunks), 0)), torch.device(device)
        )
        finish(job.directory, plan)
        whole = clock.read()
    cache = TeacherCache(job.directory)
    records = list(cache.records())
    print(f"cache: {whole['wall']:.2f} s, of which teacher {inference['wall']:.2f} s", flush=True)
    return {
        "systems": len(cache),
        "writing": whole,
        "inference": dict(inference),
        "peak_memory": peak,
        "bytes_on_disk": _size(job.directory),
        "bytes_of_arrays": sum(map(_array_bytes, records)),
        "large": measure_large_cache(directory / "large", plan, records),
        "attaching": measure_attaching(dataset, cache),
    }


def measure_large_cache(directory: Path, plan: Plan, records: list[Record]) -> dict:
    """Size, and median seconds of a record, of a cache of `RECORDS` records."""
    plan = Plan(**{**plan.__dict__, "systems": RECORDS})
    digests = np.random.default_rng(0).bytes(16 * RECORDS)
    many = [replace(records[index % len(records)], digest=digests[16 * index :][:16]) for index in range(RECORDS)]
    writer = CacheWriter(directory, plan)
    clock = Clock()
    for chunk in range(plan.chunks):
        writer.write(chunk, many[chunk * plan.chunk : (chunk + 1) * plan.chunk])
    writer.close()
    finish(directory, plan)
    writing = clock.read()
    cache = TeacherCache(directory)
    seconds = []
    for index in np.random.default_rng(0).permutation(RECORDS).tolist():
        clock = Clock()
        cache[many[index].digest]
        seconds.append(clock.read()["wall"])
    cache.close()
    return {
        "systems": RECORDS,
        "bytes_on_disk": _size(directory),
        "bytes_of_arrays": sum(map(_array_bytes, many)),
        "writing_a_record": writing["cpu"] / RECORDS,
        "reading_a_record": statistics.median(seconds),
    }


def measure_attaching(dataset: Any, cache: TeacherCache) -> dict[str, float]:
    """Median seconds of a system from the data set, and of one with its record attached."""
    medians = {}
    for name, source in (
        ("without", dataset),
        ("with", CachedDataset(dataset, cache, "dataset.train", [keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING])),
    ):
        seconds = []
        for index in np.random.default_rng(0).integers(len(dataset), size=200).tolist():
            clock = Clock()
            source[index]
            seconds.append(clock.read()["wall"])
        medians[name] = statistics.median(seconds)
    return medians


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _array_bytes(record: Record) -> int:
    return sum(value.nbytes for value in (*record.values.values(), record.pairs))
