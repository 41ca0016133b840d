"""Small teacher caches of random records, and what reading them gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np

from fairchem_crack.teacher.cache import CacheError, CacheWriter, Plan, Record, TeacherCache, encode, finish
from fairchem_crack.teacher.cache.records import RESPONSES

ALL_FIELDS = (
    *("energy", "forces", "atom_energies", "node_embedding"),
    *("vector_embedding", "higher_embedding", "embedding_response", "force_response"),
)
RECORDS, ROWS = "shard.0000.records", "shard.0000.rows"


def make_plan(systems: int = 10, **options: Any) -> Plan:
    """Of ten systems in three chunks."""
    return Plan(
        **{"teacher": "toy", "fingerprint": "f", "systems": systems, "sample": "s", "width": 8, "chunk": 4, **options}
    )


def make_record(
    rng: np.random.Generator, atoms: int, plan: Plan, *, pairs: Optional[int] = None, digest: bytes = b""
) -> Record:
    """Random arrays, and `pairs` of all pairs of atoms."""
    values = {name: np.asarray(rng.normal(size=plan.shape(name, atoms))) for name in plan.fields}
    for name in RESPONSES[1:]:  # of one displacement
        if {name, RESPONSES[0]} <= values.keys():
            values[name][:, :3] = values[RESPONSES[0]][:, :3]
    chosen = rng.permutation(atoms * (atoms - 1) // 2)[:pairs]
    return Record(digest or rng.bytes(16), atoms, values, np.stack(np.triu_indices(atoms, 1))[:, chosen])


def make_records(plan: Plan, seed: int = 0, sizes: tuple[int, int] = (2, 9)) -> list[Record]:
    """Of all systems of a plan."""
    rng = np.random.default_rng(seed)
    return [make_record(rng, int(rng.integers(*sizes)), plan) for _ in range(plan.systems)]


def write_chunks(writer: CacheWriter, plan: Plan, records: list[Record], chunks: range) -> None:
    """Some of them."""
    for chunk in chunks:
        writer.write(chunk, records[chunk * plan.chunk : (chunk + 1) * plan.chunk])


def write_cache(directory: Path, plan: Plan, records: list[Record], *, shards: int = 1) -> TeacherCache:
    """A finished one."""
    for shard in range(shards):
        writer = CacheWriter(directory, plan, shard)
        write_chunks(writer, plan, records, range(shard, plan.chunks, shards))
        writer.close()
    finish(directory, plan)
    return TeacherCache(directory)


def content(directory: Path) -> list[bytes]:
    """Every record's bytes, in the order of the data."""
    cache = TeacherCache(directory)
    return [encode(record, cache.plan) for record in cache.records()]


def read_all(directory: Path, expected: list[bytes]) -> int:
    """0: all records are as expected; 1: some are refused or not found, the others as expected; 2: anything else."""
    code = 0
    try:
        cache = TeacherCache(directory)
        for encoded in expected:
            try:
                record = cache.get(encoded[8:24])
                if record is None:
                    code = 1
                elif encode(record, cache.plan) != encoded:
                    return 2
            except CacheError:
                code = 1
    except CacheError:
        return 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return code
