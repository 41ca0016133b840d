"""Read a finished teacher cache."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Optional

import numpy as np

from fairchem_crack.teacher.cache.index import INDEX, INDEX_FILE, PAGE, RECORDS, ROW, Row, every, find
from fairchem_crack.teacher.cache.records import CacheError, Layout, Plan, Record, decode
from fairchem_crack.teacher.cache.schema import HEADER, PLAN, read_header, read_plan
from fairchem_crack.teacher.cache.shards import Shard, check_head, damaged_record

NEAR = 4096  # bytes between two parts that are read in one go: a page


class TeacherCache:
    """A finished cache: records by the digest of their system. Any number of processes read it at the same time.

    Raises:
        CacheError: there is no cache, it is unfinished, cut short, altered, of another version, or another's in part.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.plan, self._plan_bytes = read_plan(directory)
            header = read_header(directory, self.plan, self._plan_bytes)
        except (FileNotFoundError, NotADirectoryError) as error:
            is_begun = (directory / PLAN).is_file()
            missing = "is a file, no directory" if directory.is_file() else f"does not exist (looked in {Path.cwd()})"
            state = "is unfinished" if is_begun else missing
            others = ", or what else wrote it, again" if is_begun else ", or label where the teacher is (docs/teachers.md)"
            raise CacheError(
                f"Teacher cache {directory} {state}. Run `fairchem-crack cache-teacher --config-yml ...`{others}."
            ) from error
        self.embedding_mean = np.array(header["embedding_mean"])
        self.embedding_std = np.array(header["embedding_std"])
        self._pages: int = header["pages"]
        self._sizes: dict[str, int] = {**header["shards"], INDEX_FILE: header["index_bytes"]}
        if self._sizes[INDEX_FILE] < (self._pages + 1) * PAGE or self.plan.systems > self._sizes[INDEX_FILE] // ROW.itemsize:
            raise self._error(f"has a {HEADER} whose index of {self._sizes[INDEX_FILE]} bytes is too small for it")
        self._opened: dict[str, BinaryIO] = {}
        for name in self._sizes:
            self._file(name)

    def _error(self, problem: str) -> CacheError:
        return CacheError(
            f"Teacher cache {self.directory} {problem}. `fairchem-crack cache-teacher --config-yml ... --repair`, or what "
            "else wrote it with --repair, writes anew what is damaged or missing, and that only."
        )

    def _file(self, name: str) -> int:
        """The descriptor of a file of the cache, opened once in each process, or before it forked."""
        if name not in self._opened:
            path, kind = self.directory / name, INDEX if name == INDEX_FILE else RECORDS
            try:
                file = path.open("rb", buffering=0)
            except OSError as error:
                raise self._error(f"lacks {name} ({error.strerror})") from error
            data, size = file.read(64), os.fstat(file.fileno()).st_size
            if size != self._sizes[name]:
                raise self._error(f"has a {name} of {size} bytes where {self._sizes[name]} were written")
            check_head(path, data, kind, self._plan_bytes)
            if hasattr(os, "posix_fadvise"):  # records are read in any order: the kernel is not to read further
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self._opened[name] = file
        return self._opened[name].fileno()

    def __len__(self) -> int:
        return self.plan.systems

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def get(self, digest: bytes, names: Optional[Collection[str]] = None) -> Optional[Record]:
        """The record of the system with this digest, see `system_digest`; None where the cache has none.

        Args:
            names: of the fields to read, and "pairs"; None reads all of them.

        Raises:
            CacheError: it cannot be read, or is not what was written.
        """
        index = self._file(INDEX_FILE)
        try:
            row = find(index, self._pages, digest)
        except (OSError, ValueError) as error:
            raise self._error(f"has an index whose record {error}") from error
        return None if row is None else self._read(row, names)

    def __getitem__(self, digest: bytes) -> Record:
        """The record of the system with this digest.

        Raises:
            KeyError: the cache has none.
            CacheError: see `get`.
        """
        record = self.get(digest)
        if record is None:
            raise KeyError(digest.hex())
        return record

    def records(self) -> Iterator[Record]:
        """All records, in the order of their systems in the data."""
        index = self._file(INDEX_FILE)
        try:
            rows = sorted(every(index, self._sizes[INDEX_FILE]), key=lambda row: row.position)
        except (OSError, ValueError) as error:
            raise self._error(f"has an index whose record {error}") from error
        return (self._read(row, None) for row in rows)

    def _read(self, row: Row, names: Optional[Collection[str]]) -> Record:
        name = Shard.of(self.directory, row.shard).records.name
        if name not in self._sizes or row.offset + row.length > self._sizes[name]:
            raise self._error(f"has an index whose row of system {row.position} is of no shard")
        file = self._file(name)
        try:
            record = decode(_Parts(file, row, self.plan, names), self.plan, row.atoms, row.length, names)
            if record.digest != row.digest:
                raise ValueError("is of another system than its row")
        except (OSError, ValueError) as error:
            raise damaged_record(self.directory / name, row.position, error) from error
        return record

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        self._opened = {}


class _Parts:
    """The bytes of a record's parts, those that lie next to each other read in one go."""

    def __init__(self, descriptor: int, row: Row, plan: Plan, names: Optional[Collection[str]]) -> None:
        layout = Layout(plan, row.atoms, row.length)
        spans = [[0, layout.head]]
        for begin, end in (span for name, span in layout.at.items() if names is None or name in names):
            if begin - spans[-1][1] <= NEAR:
                spans[-1][1] = end
            else:
                spans.append([begin, end])
        self._read = [(begin, os.pread(descriptor, end - begin, row.offset + begin)) for begin, end in spans]
        if any(len(data) != end - begin for (begin, end), (_, data) in zip(spans, self._read)):
            raise ValueError("is cut short")

    def __call__(self, begin: int, end: int) -> bytes:
        first, data = max((read for read in self._read if read[0] <= begin), key=lambda read: read[0])
        return data[begin - first : end - first]
