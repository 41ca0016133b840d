"""What the systems that an epoch begins with cost to read from a cold page cache, in each order.

A cache and a dataset that are larger than memory keep nothing of what was read long ago: each part of an epoch is as cold as
its beginning.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from benchmarks.cache.__main__ import in_process
from benchmarks.cache.measure import REALISTIC, cost_of, digest_of, finish_cache, forget, write
from fairchem_crack.config import ShuffleConfig
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.training.block_shuffle import block_shuffle

DEFAULT = ShuffleConfig()
ORDERS = {"uniform": 0, "in blocks": DEFAULT.buffer}
FEW = 32  # uniform reads of a dataset: the kernel reads megabytes around each, and few of them would read all of it
RECORD = 14_500  # bytes of a system in the dataset, as of the cache's record


def order(systems: int, buffer: int, reads: int = DEFAULT.buffer) -> list[int]:
    """The first systems of an epoch; 0 is fairchem's shuffle, a uniform one."""
    size = {"block": DEFAULT.block, "buffer": buffer} if buffer else {"block": 1, "buffer": systems}
    return block_shuffle(systems, **size, seed=0, epoch=0)[:reads].tolist()


def measure(directory: Path, systems: int) -> dict[str, Any]:
    """Write a cache and a dataset, read them, and remove them."""
    cache, dataset = directory / "cold_cache", directory / "cold_dataset"
    try:
        in_process(write, cache, REALISTIC, systems)
        in_process(finish_cache, cache)
        in_process(write_dataset, dataset, systems)
        rows = []
        for source, read, place in (("cache", read_cache, cache), ("dataset", read_dataset, dataset)):
            for name, buffer in ORDERS.items():
                rows.append({"source": source, "order": name, **in_process(read, place, systems, buffer)})
                print(rows[-1], flush=True)
        return {
            "systems": systems,
            "buffer": DEFAULT.buffer,
            "block": DEFAULT.block,
            "around_kb": around(directory),
            "rows": rows,
        }
    finally:
        for place in (cache, dataset):
            shutil.rmtree(place, ignore_errors=True)


def write_dataset(directory: Path, systems: int) -> dict[str, Any]:
    """An LMDB with the keys of fairchem's, and values of the size of OC20's."""
    directory.mkdir()
    value = np.random.default_rng(0).bytes(RECORD)
    with lmdb.open(str(directory / "data.lmdb"), subdir=False, map_size=1 << 40, meminit=False) as data:
        for begin in range(0, systems, 1000):
            with data.begin(write=True) as file:
                for number in range(begin, min(begin + 1000, systems)):
                    file.put(f"{number}".encode(), value)
    return {}


def read_dataset(directory: Path, systems: int, buffer: int) -> dict[str, float]:
    """As fairchem's dataset reads it, by the same options of LMDB."""
    numbers, file = order(systems, buffer, DEFAULT.buffer if buffer else FEW), directory / "data.lmdb"
    options = {"subdir": False, "readonly": True, "lock": False, "readahead": True, "meminit": False, "max_readers": 1}
    forget([file])
    with closing(lmdb.open(str(file), **options)) as data:

        def read_them() -> None:
            for number in numbers:
                with data.begin() as transaction:
                    assert len(transaction.get(f"{number}".encode())) == RECORD

        return {"reads": len(numbers), **cost_of(read_them, len(numbers)), "record_bytes": RECORD}


def read_cache(directory: Path, systems: int, buffer: int) -> dict[str, float]:
    """All fields of the records, by digest."""
    digests = [digest_of(number) for number in order(systems, buffer)]
    cache = TeacherCache(directory)
    forget(directory.iterdir())

    def read_them() -> None:
        for digest in digests:
            assert cache.get(digest) is not None

    size = (directory / "shard.0000.records").stat().st_size / systems
    return {"reads": len(digests), **cost_of(read_them, len(digests)), "record_bytes": size}


def around(directory: Path) -> int:
    """What the kernel reads around a fault, kB: a setting of the disk."""
    device = os.stat(directory).st_dev
    return int(Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text())
