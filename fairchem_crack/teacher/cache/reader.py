"""Read a finished teacher cache."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Optional

import lmdb
import numpy as np

from fairchem_crack.teacher.cache.records import FORMAT, CacheError, Plan, Record, decode, unpack
from fairchem_crack.teacher.cache.shards import (
    IDENTITY,
    Shard,
    chunk_key,
    identity_of,
    index_digest,
    open_shard,
    written_chunks,
)

PLAN, HEADER = "plan.json", "header.json"


class TeacherCache:
    """A finished cache, to read records from; each process opens its own LMDB handles, so that it survives a fork.

    Raises:
        CacheError: there is no cache, it is unfinished, incomplete, cut short, or of a newer version.
    """

    def __init__(self, directory: Path, header: Optional[dict] = None) -> None:
        self.directory = directory
        header = self._read_header() if header is None else header
        self.plan = Plan(
            **{name: header[name] for name in Plan.__dataclass_fields__ if name != "fields"}, fields=tuple(header["fields"])
        )
        self.dataset: str = header["dataset"]
        self.embedding_mean = np.array(header["embedding_mean"])
        self.embedding_std = np.array(header["embedding_std"])
        for name, shard in header["shards"].items():
            self._check_shard(name, shard)
        self._sizes: dict[str, int] = {name: shard["bytes"] for name, shard in header["shards"].items()}
        self._shards = written_chunks(directory)
        if self._shards.keys() != set(range(self.plan.chunks)):
            raise self._error(f"has not the {self.plan.chunks} chunks that were written")
        self._environments: dict[str, Shard] = {}
        self._process = os.getpid()

    def _error(self, problem: str) -> CacheError:
        return CacheError(
            f"Teacher cache {self.directory} {problem}. Delete it, and write it anew with `fairchem-crack cache-teacher`."
        )

    def _read_header(self) -> dict:
        file = self.directory / HEADER
        if not file.is_file():
            state = "is unfinished" if (self.directory / PLAN).is_file() else f"does not exist (looked in {Path.cwd()})"
            raise CacheError(f"Teacher cache {self.directory} {state}. Run `fairchem-crack cache-teacher --config-yml ...`.")
        try:
            header = json.loads(file.read_text())
            if int(header["format"]) <= FORMAT and header.pop("digest") == digest_of_header(header):
                return header
        except (ValueError, TypeError, KeyError) as error:
            raise self._error(f"has a damaged {HEADER} ({type(error).__name__}: {error})") from error
        if header["format"] <= FORMAT:
            raise self._error(f"has a damaged {HEADER}")
        raise CacheError(
            f"Teacher cache {self.directory} has format {header['format']}; this fairchem-crack knows up to {FORMAT}. "
            "Update fairchem-crack."
        )

    def _check_shard(self, name: str, shard: dict) -> None:
        file = self.directory / name
        if not file.is_file():
            raise self._error(f"lacks {name}")
        if file.stat().st_size != shard["bytes"]:
            raise self._error(f"has a {name} of {file.stat().st_size} bytes where {shard['bytes']} were written")
        if index_digest(file, shard["page"], shard["index"]) != shard["index_digest"]:
            raise self._error(f"has a damaged {name}")
        try:
            with open_shard(file).env.begin() as transaction:
                identity = transaction.get(IDENTITY)
        except lmdb.Error as error:
            raise self._error(f"has a damaged {name} ({error})") from error
        if identity != identity_of(self.plan, name):
            raise self._error(f"has a {name} that belongs to another cache")

    def __len__(self) -> int:
        return self.plan.systems

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_environments": {}}

    def _environment(self, name: str) -> lmdb.Environment:
        if self._process != os.getpid():
            self._environments, self._process = {}, os.getpid()
        if name not in self._environments:
            self._environments[name] = open_shard(self.directory / name)
        shard = self._environments[name]
        if os.fstat(shard.file.fileno()).st_size < self._sizes[name]:  # LMDB would die of a page that is not there
            raise ValueError(f"{name} has been cut short")
        return shard.env

    def __getitem__(self, index: int) -> Record:
        """The record of one system.

        Raises:
            CacheError: it cannot be read, or is not what was written.
        """
        index = int(index)  # with several ranks fairchem's sampler hands out tensors
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} records")
        chunk, slot = divmod(index, self.plan.chunk)
        try:
            with self._environment(self._shards[chunk]).begin(buffers=True) as transaction:
                data = bytes(unpack(transaction.get(chunk_key(chunk)), slot))
            record = decode(memoryview(data), self.plan, index)
        except (OSError, ValueError, struct.error, lmdb.Error, TypeError, IndexError) as error:
            raise self._error(f"record {index}: {error}") from error
        if not all(np.isfinite(value).all() for value in record.values.values()):
            raise self._error(f"record {index} holds numbers that are not finite")
        return record

    def check_system(self, index: int, record: Record, atoms: int, digest: bytes, dataset: str) -> None:
        """Raise CacheError unless this record was made of the system with this digest."""
        if record.atoms != atoms:
            raise self._other_system(f"record {index} holds {record.atoms} atoms, system {index} of {dataset} has {atoms}")
        if record.digest != digest:
            raise self._other_system(f"record {index} was made of another system than system {index} of {dataset}")

    def _other_system(self, problem: str) -> CacheError:
        return CacheError(
            f"Teacher cache {self.directory}: {problem}. It belongs to other data or another order of them: take back what "
            "has changed in the dataset's options (src, seed, first_n, sample_n, no_shuffle, ...), or write another cache."
        )

    def close(self) -> None:
        """Let go of the shards."""
        self._environments = {}


def digest_of_header(header: dict) -> str:
    """What the header keeps of itself, to be known as damaged."""
    return hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16).hexdigest()
