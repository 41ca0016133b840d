"""Finish a teacher cache: the index over all shards, the header, and what no writer can see by itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

import numpy as np

from fairchem_crack.io.files import whole, write_text
from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.index import HEAD, INDEX_FILE, RECORDS, ROW, ROWS, write_index
from fairchem_crack.teacher.cache.lock import only_writer
from fairchem_crack.teacher.cache.records import FORMAT, CacheError, Plan, Record
from fairchem_crack.teacher.cache.schema import HEADER, PLAN, digest_of, read_plan
from fairchem_crack.teacher.cache.shards import (
    Shard,
    check_head,
    chunks_of,
    mark_of,
    read_record,
    rows_of,
    shards_of,
    sums_of,
)
from fairchem_crack.teacher.cache.sums import LOST, ShardSums
from fairchem_crack.teacher.cache.writer import start

PACKAGES = ("fairchem-crack", "fairchem-core", "torch", "numpy")  # whose versions the header has
SAME = {"energy": (1e-2, 1e-6), "forces": (1e-2, 1e-2)}  # eV or eV/A, and of the largest entry: rounding of equal outputs
SAME_ROUNDED = 1e-2  # of the largest entry, of a teacher in another precision than float32


@contextmanager
def all_shards(directory: Path) -> Iterator[list[Shard]]:
    """The shards of a cache, none of which can be written meanwhile.

    Raises:
        CacheError: a process writes one of them.
    """
    with explained(directory), ExitStack() as locks:
        shards = shards_of(directory)
        for shard in shards:
            locks.enter_context(only_writer(shard.lock))
        yield shards


def finish(directory: Path, plan: Optional[Plan] = None) -> None:
    """Write the index and the header: from here on the cache can be used.

    No record is read but those whose sums no writer has kept.

    Args:
        plan: that of the cache; None takes the one that is there.

    Raises:
        CacheError: a system is missing, or a process still writes.
    """
    with all_shards(directory) as shards:
        if plan is None:
            plan, _ = read_plan(directory)
        start(directory, plan)
        data = (directory / PLAN).read_bytes()
        rows = rows_of(directory)
        missing = plan.chunks - len(chunks_of(rows, plan))
        if missing:
            raise CacheError(
                f"Teacher cache {directory}: {missing} of {plan.chunks} chunks are missing. Run the command again."
            )
        _check_repeated(directory, rows, plan)
        sums = ShardSums.of_nothing(plan.width if "node_embedding" in plan.fields else 0)
        for shard in shards:
            for path, kind in ((shard.records, RECORDS), (shard.rows, ROWS)):
                with path.open("rb") as opened:
                    check_head(path, opened.read(HEAD.size), kind, data)
            if len(sums.stored.mean):
                sums.merge(sums_of(shard, plan))
        lost = sums.lost_in(plan.dtype)
        if lost:
            logging.warning(
                f"Teacher cache {directory}: {lost} of {plan.width} channels vary by less than {LOST} of their mean, which "
                "float16 hardly resolves. Write another cache with --dtype float32."
            )
        with whole(directory / INDEX_FILE) as partial, partial.open("wb") as file:
            pages = write_index(file, rows, mark_of(data, INDEX_FILE))
            file.flush()
            os.fsync(file.fileno())
        header = {
            "format": FORMAT,
            "plan": digest_of(data),
            "shards": {shard.records.name: shard.records.stat().st_size for shard in shards},
            "pages": pages,
            "index_bytes": (directory / INDEX_FILE).stat().st_size,
            "embedding_mean": sums.stored.mean.tolist(),
            "embedding_std": sums.stored.std.tolist(),
            "versions": {name: _version(name) for name in PACKAGES},
        }
        header["digest"] = digest_of(json.dumps(header, sort_keys=True).encode())
        write_text(directory / HEADER, json.dumps(header, indent=1))


def _version(package: str) -> Optional[str]:
    """None for one that is not installed: a teacher of another framework has no need of it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_repeated(directory: Path, rows: np.ndarray, plan: Plan) -> None:
    """Raise CacheError for systems of the same digest whose outputs differ."""
    begins = np.ascontiguousarray(rows.view("u1").reshape(len(rows), ROW.itemsize)[:, :8]).view("<u8")[:, 0]
    order = np.argsort(begins, kind="stable")
    same = np.diff(begins[order]) == 0
    for first, second in zip(order[:-1][same], order[1:][same]):
        if rows[first]["digest"] != rows[second]["digest"]:
            continue
        records = [_record_at(directory, rows[index], plan) for index in (first, second)]
        if not all(record.atoms for record in records):  # the teacher fails for it
            continue
        for name in (name for name in SAME if name in plan.fields):
            values = [record.values[name].astype(np.float64) for record in records]
            absolute, relative = SAME[name]
            relative = relative if plan.precision == "float32" else SAME_ROUNDED
            if np.abs(values[0] - values[1]).max() > absolute + relative * np.abs(values[0]).max():
                raise CacheError(
                    f"Teacher cache {directory}: systems {rows[first]['position']} and {rows[second]['position']} are the "
                    f"same to a training, and the teacher's {name} differ. What distinguishes them, a charge for example, "
                    "must be in the records of the dataset (fairchem's r_data_keys), or one of them left out."
                )


def _record_at(directory: Path, row: Any, plan: Plan) -> Record:
    with Shard.of(directory, int(row["shard"])).records.open("rb") as file:
        return read_record(file.fileno(), row, plan)
