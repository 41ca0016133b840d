"""Write a teacher cache, from any source of embeddings, energies and forces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import lmdb
import numpy as np

from fairchem_crack.io.files import write_text
from fairchem_crack.teacher.cache.reader import HEADER, PLAN, TeacherCache, digest_of_header
from fairchem_crack.teacher.cache.records import CacheError, Plan, Record, encode, pack
from fairchem_crack.teacher.cache.shards import (
    IDENTITY,
    MAP_SIZE,
    chunk_key,
    identity_of,
    index_of,
    shard_name,
    written_chunks,
)


class CacheWriter:
    """Writes chunks to one shard. Any number of writers fill one cache side by side, each its own shard.

    Raises:
        CacheError: the directory holds a cache of another plan.
    """

    def __init__(self, directory: Path, plan: Plan, shard: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        start(directory, plan)
        self.plan = plan
        self._file = directory / shard_name(shard)
        self._env = lmdb.open(str(self._file), map_size=MAP_SIZE, subdir=False, meminit=False, readahead=False)
        with self._env.begin(write=True) as transaction:
            transaction.put(IDENTITY, identity_of(plan, self._file.name))

    def write(self, chunk: int, records: Sequence[Record]) -> None:
        """Write the records of chunk `chunk`, the systems from `chunk * plan.chunk` on, all or none.

        Raises:
            CacheError: a record does not fit the plan, or is not finite.
        """
        first = chunk * self.plan.chunk
        expected = min(self.plan.chunk, self.plan.systems - first)
        if chunk < 0 or len(records) != expected or expected < 1:
            raise CacheError(
                f"{self._file}: chunk {chunk} of {self.plan.chunks} came with {len(records)} records for {max(expected, 0)}."
            )
        encoded = []
        for slot, record in enumerate(records):
            try:
                encoded.append(encode(record, self.plan, first + slot))
            except ValueError as error:
                raise CacheError(f"{self._file}: system {first + slot}: {error}") from error
        with self._env.begin(write=True) as transaction:
            transaction.put(chunk_key(chunk), pack(encoded))

    def close(self) -> None:
        """Close the shard."""
        self._env.close()


def start(directory: Path, plan: Plan) -> None:
    """Write the plan of a new cache, or check that the one that is there is the same.

    Raises:
        CacheError: it is another one.
    """
    file = directory / PLAN
    content = json.dumps(asdict(plan), indent=1)
    if not file.exists():
        write_text(file, content)
        return
    found, expected = json.loads(file.read_text()), json.loads(content)
    for name in expected:
        if found.get(name) != expected[name]:
            raise CacheError(
                f"Teacher cache {directory} was begun with {name} {found.get(name)}, and is now asked for with "
                f"{expected[name]}. Give another directory, or delete this one."
            )


def finish(directory: Path, plan: Plan) -> None:
    """Read every record once, and write the header: from here on the cache can be used.

    Raises:
        CacheError: a system is missing, or a record is damaged.
    """
    chunks = written_chunks(directory)
    missing = set(range(plan.chunks)) - chunks.keys()
    if missing:
        raise CacheError(
            f"Teacher cache {directory}: {len(missing)} of {plan.chunks} chunks are missing. Run the command again."
        )
    names = sorted(set(chunks.values()))
    header = {
        **asdict(plan),
        "shards": {name: index_of(directory / name) for name in names},
        "versions": {name: version(name) for name in ("fairchem-core", "torch", "numpy", "lmdb")},
    }
    header["dataset"], header["embedding_mean"], header["embedding_std"] = "", [], []
    cache = TeacherCache(directory, header)
    digest, count = hashlib.blake2b(digest_size=16), 0
    total, square = np.zeros(plan.width), np.zeros(plan.width)
    for index in range(plan.systems):
        record = cache[index]
        digest.update(record.digest)
        if plan.width:
            embedding = record.values["node_embedding"].astype(np.float64)
            total, square, count = total + embedding.sum(0), square + (embedding**2).sum(0), count + record.atoms
    cache.close()
    mean = total / max(count, 1)
    header["dataset"] = digest.hexdigest()
    header["embedding_mean"] = mean.tolist()
    header["embedding_std"] = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0)).tolist()
    for lock in directory.glob("shard.*.lmdb-lock"):
        lock.unlink()
    header["digest"] = digest_of_header(header)
    write_text(directory / HEADER, json.dumps(header, indent=1))
