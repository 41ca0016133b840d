"""Fill a teacher cache chunk by chunk, from any source of records: what is there is kept, what is missing is made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.finish import finish
from fairchem_crack.teacher.cache.lock import only_writer
from fairchem_crack.teacher.cache.records import CacheError, Plan, Record, encode
from fairchem_crack.teacher.cache.repair import repair
from fairchem_crack.teacher.cache.schema import HEADER
from fairchem_crack.teacher.cache.shards import written_chunks
from fairchem_crack.teacher.cache.sums import LOST, ShardSums
from fairchem_crack.teacher.cache.writer import CacheWriter, start

LOCK = "lock"  # file of the cache, held until it is finished
LISTED = 8  # chunks that a message names
SAMPLE_CHUNKS = 2  # written before the others, to estimate the cache's size
FREE = 1.1  # of the estimated size must be free on the disk

Make = Callable[[Sequence[int]], list[Record]]  # the records of these systems, made together


def systems_of(plan: Plan, chunk: int) -> range:
    """Numbers of the systems of a chunk."""
    first = chunk * plan.chunk
    return range(first, min(first + plan.chunk, plan.systems))


@contextmanager
def filled(directory: Path, plan: Plan, *, is_repair: bool = False) -> Iterator[bool]:
    """Write the plan of a cache, hold its lock while the block writes what is missing, and finish it.

    Args:
        is_repair: read what is there first, and drop chunks that are damaged.

    Yields:
        Whether the block has to write; not where the cache is complete.

    Raises:
        CacheError: the directory holds another cache, another process writes it, or it cannot be written.
    """
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        start(directory, plan)
    if (directory / HEADER).is_file() and not is_repair:
        print(f"Teacher cache {directory} is complete; nothing to do.")
        yield False
        return
    with only_writer(directory / LOCK):
        if is_repair:
            missing = repair(directory, plan)
            print(f"{len(missing)} of {plan.chunks} chunks are damaged or missing{_listed(missing, plan)}.", flush=True)
        yield True
        finish(directory, plan)


def _listed(chunks: list[int], plan: Plan) -> str:
    """The first few, and their systems."""
    shown = [f"{chunk} (systems {systems_of(plan, chunk)[0]} to {systems_of(plan, chunk)[-1]})" for chunk in chunks[:LISTED]]
    return (": " if shown else "") + ", ".join(shown) + (", ..." if len(chunks) > LISTED else "")


def begin(directory: Path, make: Make, plan: Plan) -> list[int]:
    """Write a sample of what is missing, and return the chunks that are still missing.

    Raises:
        CacheError: the disk cannot hold the cache, or float16 does not resolve its embeddings.
    """
    done = written_chunks(directory, plan)
    todo = [chunk for chunk in range(plan.chunks) if chunk not in done]
    print(f"{plan.systems} systems in {plan.chunks} chunks, {len(done)} of them there. Kept: {plan.contents}.", flush=True)
    return _write_sample(directory, make, plan, todo) if todo else []


def _write_sample(directory: Path, make: Make, plan: Plan, todo: list[int]) -> list[int]:
    """Write some chunks, estimate the rest by them, raise CacheError unless the disk can hold it; return the rest."""
    chosen = todo[:: max(1, len(todo) // SAMPLE_CHUNKS)][:SAMPLE_CHUNKS]
    writer, written, systems = CacheWriter(directory, plan, 0), 0, 0
    try:
        for chunk in chosen:
            records = make(systems_of(plan, chunk))
            writer.write(chunk, records)
            written, systems = written + sum(len(encode(record, plan)) for record in records), systems + len(records)
        _check_resolution(directory, writer.sums, plan)
    finally:
        writer.close()
    rest = [chunk for chunk in todo if chunk not in chosen]
    needed = written / systems * len(rest) * plan.chunk
    free = shutil.disk_usage(directory).free
    print(f"About {needed / 2**20:,.1f} MB more to write to {directory}; {free / 2**20:,.0f} MB are free.", flush=True)
    if needed * FREE > free:
        raise CacheError(
            f"Teacher cache {directory}: about {needed / 2**30:.1f} GB are needed and {free / 2**30:.1f} GB are free. "
            "Give another directory, or make room."
        )
    return rest


def _check_resolution(directory: Path, sums: ShardSums, plan: Plan) -> None:
    lost = sums.lost_in(plan.dtype)
    if lost:
        raise CacheError(
            f"Teacher cache {directory}: {lost} of the {plan.width} channels of node_embedding vary by less than {LOST} of "
            "their mean, which float16 hardly resolves. Give --dtype float32, and another directory or delete this one."
        )


def write_chunks(directory: Path, make: Make, plan: Plan, chunks: Sequence[int], shard: int) -> Iterator[int]:
    """Write these chunks to one shard; how many systems each has, as they are written."""
    writer = CacheWriter(directory, plan, shard)
    try:
        for chunk in chunks:
            indices = systems_of(plan, chunk)
            writer.write(chunk, make(indices))
            yield len(indices)
    finally:
        writer.close()
