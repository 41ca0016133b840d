"""One measurement each, to be called in a process of its own."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import lmdb
import numpy as np

from fairchem_crack.teacher.cache import CacheWriter, Plan, Record, TeacherCache, encode, finish, read_plan

MB = 1e6
DIFFERENT = 64  # records, written again and again: nothing here compresses
ORDER = 1  # seed of the order of reading


@dataclass(frozen=True)
class Shape:
    """The size of a record.

    Attributes:
        name: in print.
        atoms: N.
        width: D.
        pairs: P.
        chunk: systems that are written, and brought to the disk, together.
    """

    name: str
    atoms: int
    width: int
    pairs: int
    chunk: int = 16


REALISTIC = Shape("48 atoms, D = 128, 700 pairs", 48, 128, 700)
SMALLEST = Shape("one atom, D = 8, no pair", 1, 8, 0, chunk=4096)
PLAIN = "a plain file, pread"
LMDBS = {"LMDB, a value for 16 systems": REALISTIC.chunk, "LMDB, a value for each system": 1}  # systems in a value


def digest_of(number: int) -> bytes:
    """16 bytes in place of the digest of a system."""
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def plan_of(shape: Shape, systems: int) -> Plan:
    """What is cached by default: energy, forces, atom energies, embedding in float16, pairs."""
    return Plan("benchmark", "random", systems, "random", shape.width, chunk=shape.chunk)


def records_of(shape: Shape) -> list[Record]:
    """Different records; those of a cache have these contents, and a digest each."""
    rng = np.random.default_rng(0)
    joined = np.stack(np.triu_indices(shape.atoms, 1))
    pairs = joined[:, np.sort(rng.permutation(joined.shape[1])[: shape.pairs])]
    return [
        Record(
            digest_of(number),
            shape.atoms,
            {
                "energy": np.array(float(number)),
                "forces": rng.normal(size=(shape.atoms, 3)),
                "atom_energies": rng.normal(size=shape.atoms),
                "node_embedding": rng.normal(size=(shape.atoms, shape.width)),
            },
            pairs,
        )
        for number in range(DIFFERENT)
    ]


def write(directory: Path, shape: Shape, systems: int) -> dict[str, Any]:
    """Write all records, as one rank does: seconds by wall clock and CPU, bytes of a record."""
    plan, bank = plan_of(shape, systems), records_of(shape)
    begin, cpu = time.perf_counter(), time.process_time()
    with closing(CacheWriter(directory, plan)) as writer:
        for chunk in range(plan.chunks):
            numbers = range(chunk * shape.chunk, min(systems, (chunk + 1) * shape.chunk))
            writer.write(chunk, [_named(bank[number % DIFFERENT], number) for number in numbers])
    return {
        "write_seconds": time.perf_counter() - begin,
        "write_cpu": time.process_time() - cpu,
        "record_bytes": len(encode(bank[0], plan)),
    }


def _named(record: Record, number: int) -> Record:
    return Record(digest_of(number), record.atoms, record.values, record.pairs)


def finish_cache(directory: Path) -> dict[str, Any]:
    """Finish a cache: seconds after its last record, memory; and its bytes."""
    begin, before = time.perf_counter(), resident()
    finish(directory, read_plan(directory)[0])
    seconds = time.perf_counter() - begin
    sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
    return {"finish_seconds": seconds, "finish_mb": (peak() - before) / MB, "bytes": sum(sizes.values())}


def open_cache(directory: Path) -> dict[str, Any]:
    """Open a cache that no page cache holds: seconds and memory."""
    forget(directory.iterdir())
    begin, before = time.perf_counter(), resident()
    cache = TeacherCache(directory)
    seconds = time.perf_counter() - begin
    return {"systems": cache.plan.systems, "open_seconds": seconds, "open_mb": (resident() - before) / MB}


def read(directory: Path, reads: int, names: Optional[Collection[str]], is_cold: bool) -> dict[str, float]:
    """Read records in random order by their digests."""
    cache = TeacherCache(directory)
    order = random.Random(ORDER).sample(range(cache.plan.systems), min(reads, cache.plan.systems))
    digests = [digest_of(number) for number in order]
    if is_cold:
        forget(directory.iterdir())
    else:
        _read_all(cache, digests, names)
    return cost_of(lambda: _read_all(cache, digests, names), len(digests))


def _read_all(cache: TeacherCache, digests: list[bytes], names: Optional[Collection[str]]) -> None:
    for digest in digests:
        record = cache.get(digest, names)
        assert record is not None and record.digest == digest


def cost_of(action: Callable[[], None], reads: int) -> dict[str, float]:
    """Of one read: bytes from the disk, major page faults, milliseconds."""
    begin, before, faults = time.perf_counter(), bytes_read(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    action()
    return {
        "bytes": (bytes_read() - before) / reads,
        "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults) / reads,
        "ms": 1e3 * (time.perf_counter() - begin) / reads,
    }


# The layouts that were compared: the same bytes in each, without any checksum of ours


def layout(directory: Path, name: str, systems: int, reads: int) -> dict[str, float]:
    """Write records to a layout, and read some in random order, cold."""
    directory.mkdir(parents=True, exist_ok=True)
    bank = [encode(record, plan_of(REALISTIC, systems)) for record in records_of(REALISTIC)]
    order = random.Random(ORDER).sample(range(systems), min(reads, systems))
    file = directory / "records"
    if name == PLAIN:
        read_them = _plain(file, bank, systems, order)
    else:
        read_them = _lmdb(file, bank, systems, order, together=LMDBS[name])
    forget(directory.iterdir())
    return {**cost_of(read_them, len(order)), "disk_bytes": file.stat().st_size / systems, "record_bytes": len(bank[0])}


def _plain(file: Path, bank: list[bytes], systems: int, order: list[int]) -> Callable[[], None]:
    with file.open("wb") as opened:
        for number in range(systems):
            opened.write(bank[number % DIFFERENT])
    size = len(bank[0])  # of each
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read_them() -> None:
        for number in order:
            assert os.pread(descriptor, size, number * size) == bank[number % DIFFERENT]

    return read_them


def _lmdb(file: Path, bank: list[bytes], systems: int, order: list[int], *, together: int) -> Callable[[], None]:
    options = {"subdir": False, "map_size": 1 << 40, "meminit": False, "readahead": False}
    with lmdb.open(str(file), **options) as environment:
        for begin in range(0, systems, REALISTIC.chunk):
            with environment.begin(write=True) as transaction:
                for first in range(begin, min(begin + REALISTIC.chunk, systems), together):
                    numbers = range(first, min(first + together, systems))
                    transaction.put(first.to_bytes(8, "big"), b"".join(bank[number % DIFFERENT] for number in numbers))
    size, opened = len(bank[0]), lmdb.open(str(file), readonly=True, lock=False, **options)

    def read_them() -> None:
        for number in order:
            first = number // together * together
            with opened.begin(buffers=True) as transaction:
                begin = (number - first) * size
                value = bytes(transaction.get(first.to_bytes(8, "big"))[begin : begin + size])
            assert value == bank[number % DIFFERENT]

    return read_them


# Figures of the kernel


def resident() -> int:
    """Bytes of memory of this process now."""
    return _status("VmRSS")


def peak() -> int:
    """Bytes of memory that this process had at most."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def bytes_read() -> int:
    """Bytes that this process had read from a disk."""
    return int(
        next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes")).split()[1]
    )


def forget(files: Iterable[Path]) -> None:
    """Write files to the disk, and have the kernel drop them from its page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
