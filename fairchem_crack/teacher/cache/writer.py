"""Write a teacher cache, from any source of embeddings, energies and forces."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.index import HEAD, RECORDS, ROW, ROWS, Row, read_rows, row_bytes
from fairchem_crack.teacher.cache.lock import only_writer
from fairchem_crack.teacher.cache.records import CacheError, Plan, Record, encode
from fairchem_crack.teacher.cache.schema import PLAN, plan_text, read_plan
from fairchem_crack.teacher.cache.shards import (
    AppendFile,
    Shard,
    sums_of,
)
from fairchem_crack.teacher.cache.sums import ShardSums

KEEP_SUMS = 256  # chunks between two times that the sums are kept: what finishing a killed shard has to read again


class CacheWriter:
    """Writes chunks to one shard. Any number of writers fill one cache at the same time, each its own shard.

    When `write` returns, a chunk is kept whatever becomes of the process.

    Raises:
        CacheError: the directory holds a cache of another plan, another process writes this shard, or it cannot be written.
    """

    def __init__(self, directory: Path, plan: Plan, shard: int = 0) -> None:
        self.plan, self.directory, self._shard = plan, directory, Shard.of(directory, shard)
        with explained(directory), ExitStack() as opened:
            directory.mkdir(parents=True, exist_ok=True)
            start(directory, plan)
            data = (directory / PLAN).read_bytes()
            opened.enter_context(only_writer(self._shard.lock))
            self._records = AppendFile(self._shard.records, RECORDS, data)
            opened.callback(self._records.close)
            self._rows = AppendFile(self._shard.rows, ROWS, data, ROW.itemsize)
            opened.callback(self._rows.close)
            self._check_rows()
            self.sums = sums_of(self._shard, plan) if self._has_sums else ShardSums.of_nothing(0)
            self._keep_sums()
            self._open = opened.pop_all()
        self._written = 0

    def _check_rows(self) -> None:
        if self._records.size == HEAD.size:  # a new one, perhaps in the place of one that was removed
            self._rows.truncate(HEAD.size)
            self._shard.sums.unlink(missing_ok=True)
        rows = read_rows(self._shard.rows)
        if (rows["offset"] + rows["length"] > self._records.size).any():
            raise CacheError(
                f"Teacher cache {self.directory}: {self._shard.records.name} is cut short. "
                "`fairchem-crack cache-teacher --config-yml ... --repair` writes anew what is missing."
            )

    @property
    def _has_sums(self) -> bool:
        return "node_embedding" in self.plan.fields

    def write(self, chunk: int, records: Sequence[Record]) -> None:
        """Write the records of chunk `chunk`, the systems from `chunk * plan.chunk` on, all or none.

        Raises:
            CacheError: a record does not fit the plan, or is not finite, or the disk refuses it.
        """
        first = chunk * self.plan.chunk
        expected = min(self.plan.chunk, self.plan.systems - first)
        name = self._shard.records
        if chunk < 0 or len(records) != expected or expected < 1:
            raise CacheError(
                f"{name}: chunk {chunk} of {self.plan.chunks} came with {len(records)} records for {max(expected, 0)}."
            )
        encoded, rows, offset = [], [], self._records.size
        for position, record in enumerate(records, first):
            try:
                encoded.append(encode(record, self.plan))
            except ValueError as error:
                raise CacheError(f"{name}: system {position}: {error}") from error
            rows.append(row_bytes(Row(record.digest, position, offset, len(encoded[-1]), record.atoms, self._shard.number)))
            offset += len(encoded[-1])
        with explained(self.directory):
            begin = self._records.size
            self._records.append(b"".join(encoded))
            try:
                # a power cut can cost rows, whose chunks are then written again; none comes before its record
                self._rows.append(b"".join(rows), is_synced=False)
            except OSError:
                self._records.truncate(begin)
                raise
        if self._has_sums:
            for record in records:
                self.sums.add(record.values["node_embedding"], self.plan.dtype)
        self._written += 1
        if self._written % KEEP_SUMS == 0:
            self._keep_sums()

    def _keep_sums(self) -> None:
        if self._has_sums:
            with explained(self.directory):
                self.sums.save(self._shard.sums, self._rows.size)

    def close(self) -> None:
        """Close the shard, and let another process write it."""
        try:
            if self._written:
                self._keep_sums()
        finally:
            self._open.close()


def start(directory: Path, plan: Plan) -> None:
    """Write the plan of a new cache, or check that the one that is there is the same.

    Raises:
        CacheError: it belongs to another cache.
    """
    try:
        begun, _ = read_plan(directory)
    except FileNotFoundError:
        with explained(directory):
            partial = directory / f"{PLAN}.{os.getpid()}"
            partial.write_text(plan_text(plan), encoding="utf-8")
            partial.replace(directory / PLAN)
        return
    changed = differences(json.loads(plan_text(begun)), json.loads(plan_text(plan)))
    if changed:
        name, before, now = changed[0]
        names = [name for name, _, _ in changed[1:4]]
        others = f" ({', '.join(names)} differ{'s' * (len(names) == 1)}, too)" if names else ""
        raise CacheError(
            f"Teacher cache {directory} was begun with {name} {before}, and is now requested with {now}{others}. "
            "Give another directory, or delete this one."
        )


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """What differs between two settings: dotted name, value before and now; None where it is not given."""
    both = [{} if value is None else value for value in (before, now)]
    if all(isinstance(value, dict) for value in both):
        changes = []
        for key in dict.fromkeys((*both[0], *both[1])):
            changes += differences(both[0].get(key), both[1].get(key), f"{name}.{key}" if name else key)
        return changes
    return [] if before == now else [(name, before, now)]
