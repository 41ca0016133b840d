"""Find the damaged records of a cache, and drop them: what is missing is then written as after an interruption."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fairchem_crack.io.files import whole
from fairchem_crack.teacher.cache.finish import all_shards
from fairchem_crack.teacher.cache.index import HEAD, ROW, ROWS, read_rows
from fairchem_crack.teacher.cache.records import Plan
from fairchem_crack.teacher.cache.schema import HEADER, PLAN
from fairchem_crack.teacher.cache.shards import Shard, mark_of, read_record, written_chunks
from fairchem_crack.teacher.cache.writer import start


def repair(directory: Path, plan: Plan) -> list[int]:
    """Read every record of a cache, and take the rows of damaged chunks out; returns the chunks that are missing now.

    Killed at any moment, the same call starts over. A training that has the cache open continues: records are only added.

    Raises:
        CacheError: it is another plan's, or a process writes it.
    """
    with all_shards(directory) as shards:
        start(directory, plan)
        held = {shard: read_rows(shard.rows) if shard.rows.is_file() else np.zeros(0, ROW) for shard in shards}
        damaged = {int(row["position"]) // plan.chunk for shard, rows in held.items() for row in _damaged(shard, rows, plan)}
        (directory / HEADER).unlink(missing_ok=True)  # first: without it the cache is unfinished
        for shard, rows in held.items():
            sound = rows[~np.isin(rows["position"] // plan.chunk, list(damaged))]
            if shard.rows.is_file() and shard.rows.stat().st_size == HEAD.size + sound.nbytes:
                continue
            shard.sums.unlink(missing_ok=True)
            with whole(shard.rows.resolve()) as partial, partial.open("wb") as file:
                file.write(HEAD.pack(ROWS, mark_of((directory / PLAN).read_bytes(), shard.rows.name)) + sound.tobytes())
                file.flush()
                os.fsync(file.fileno())
    return sorted(set(range(plan.chunks)) - written_chunks(directory, plan))


def _damaged(shard: Shard, rows: np.ndarray, plan: Plan) -> list[np.void]:
    bad = []
    with shard.records.open("rb") as records:
        for row in rows:
            try:
                read_record(records.fileno(), row, plan)
            except ValueError:
                bad.append(row)
    return bad
