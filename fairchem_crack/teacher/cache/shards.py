"""The files of a shard: records one after another, a row for each, and the sums of their embeddings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairchem_crack.teacher.cache.index import HEAD, ROW, read_rows, selected
from fairchem_crack.teacher.cache.records import CacheError, Plan, Record, decode
from fairchem_crack.teacher.cache.schema import SHARD
from fairchem_crack.teacher.cache.sums import ShardSums

SHARDS = 10_000  # at most, by the four digits of a name


class Shard(NamedTuple):
    """Paths of the files of a shard."""

    number: int
    records: Path
    rows: Path
    sums: Path
    lock: Path

    @classmethod
    def of(cls, directory: Path, number: int) -> Shard:
        """The shard of this number."""
        if not 0 <= number < SHARDS:
            raise CacheError(f"Teacher cache {directory}: shard {number}, expected 0 to {SHARDS - 1}.")
        stem = f"shard.{number:04d}"
        return cls(number, *(directory / f"{stem}.{kind}" for kind in ("records", "rows", "sums.json", "lock")))


def shards_of(directory: Path) -> list[Shard]:
    """The shards that were begun."""
    names = sorted(file.name for file in directory.glob("shard.*.records") if SHARD.fullmatch(file.name))
    return [Shard.of(directory, int(name.split(".")[1])) for name in names]


def mark_of(plan_bytes: bytes, name: str) -> bytes:
    """What ties a file of this name to a plan: BLAKE2b, 16 bytes, of the bytes of plan.json and the name."""
    return hashlib.blake2b(plan_bytes + name.encode(), digest_size=16).digest()


def check_head(file: Path, data: bytes, kind: bytes, plan_bytes: bytes) -> None:
    """Raise CacheError unless a file that begins with this is of a kind, and of the cache of a plan."""
    if data[: HEAD.size] != HEAD.pack(kind, mark_of(plan_bytes, file.name)):
        raise CacheError(
            f"Teacher cache {file.parent} has a {file.name} whose head is damaged, or belongs to another cache. "
            "Put its own one back; or remove it and run `fairchem-crack cache-teacher --config-yml ... --repair`."
        )


class AppendFile:
    """A binary file that only grows; what is appended is there whole or, where the disk refuses it, not at all."""

    def __init__(self, file: Path, kind: bytes, plan_bytes: bytes, item: int = 1) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.size = os.fstat(self._descriptor).st_size
        if self.size < HEAD.size:  # a writer was killed before its first bytes
            self.truncate(0)
            self.append(HEAD.pack(kind, mark_of(plan_bytes, file.name)))
        check_head(file, os.pread(self._descriptor, HEAD.size, 0), kind, plan_bytes)
        self.truncate(self.size - (self.size - HEAD.size) % item)  # a row that was cut short

    def append(self, data: bytes, *, is_synced: bool = True) -> None:
        """Write at the end; if `is_synced`, it is on the disk when this returns."""
        begin, view = self.size, memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, self.size)
                self.size, view = self.size + written, view[written:]
            if is_synced:
                os.fdatasync(self._descriptor)
        except OSError:
            self.truncate(begin)
            raise

    def truncate(self, size: int) -> None:
        """Take back what was written after `size` bytes."""
        os.ftruncate(self._descriptor, size)
        self.size = size

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_record(descriptor: int, row: Any, plan: Plan) -> Record:
    """The whole record of a row, from the records open as a file descriptor.

    Raises:
        ValueError: it is not what was written.
    """
    length, atoms, offset = int(row["length"]), int(row["atoms"]), int(row["offset"])
    if offset + length > os.fstat(descriptor).st_size:
        raise ValueError("is cut short")
    data = os.pread(descriptor, length, offset)
    record = decode(lambda begin, end: data[begin:end], plan, atoms, length)
    if record.digest != row["digest"].tobytes():
        raise ValueError("is of another system than its row")
    return record


def sums_of(shard: Shard, plan: Plan) -> ShardSums:
    """Sums of all records of a shard: the kept ones, and the records after those that they cover, read.

    Raises:
        CacheError: one of these is damaged.
    """
    sums, covered = ShardSums.load(shard.sums, plan.width)
    size = shard.rows.stat().st_size
    if not HEAD.size <= covered <= size or (covered - HEAD.size) % ROW.itemsize:
        sums, covered = ShardSums.of_nothing(plan.width), HEAD.size
    if covered + ROW.itemsize > size:
        return sums
    with shard.records.open("rb") as records:
        for row in read_rows(shard.rows, covered):
            try:
                sums.stored.add(read_record(records.fileno(), row, plan).values["node_embedding"])
            except ValueError as error:
                raise damaged_record(shard.records, int(row["position"]), error) from error
    return sums


def damaged_record(file: Path, position: int, error: Exception) -> CacheError:
    """What to do about a record that is not what was written."""
    return CacheError(
        f"Teacher cache {file.parent}: the record of system {position} in {file.name} {error}. "
        "`fairchem-crack cache-teacher --config-yml ... --repair` writes anew what is damaged, and that only."
    )


def rows_of(directory: Path) -> np.ndarray:
    """(n,) the rows of all shards, each system once."""
    parts = []
    for shard in shards_of(directory):
        rows = read_rows(shard.rows) if shard.rows.is_file() else np.zeros(0, ROW)
        parts.append(selected(rows, rows["shard"] == shard.number))
    rows = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, ROW), *parts])
    del parts
    first = np.unique(rows["position"], return_index=True)[1]
    return rows if len(first) == len(rows) else rows[first]


def written_chunks(directory: Path, plan: Plan) -> set[int]:
    """The chunks of a cache that are written."""
    return set(chunks_of(rows_of(directory), plan).tolist())


def chunks_of(rows: np.ndarray, plan: Plan) -> np.ndarray:
    """Numbers of the chunks all of whose systems have a row."""
    chunks, counts = np.unique(rows["position"][rows["position"] < plan.systems] // plan.chunk, return_counts=True)
    expected = np.minimum(plan.chunk, plan.systems - chunks.astype(np.int64) * plan.chunk)
    return chunks[counts == expected]
