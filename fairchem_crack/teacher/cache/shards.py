"""The shards of a teacher cache: LMDB files, opened once per process, and the digest of their index."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from fairchem_crack.teacher.cache.records import CacheError, Plan

MAP_SIZE = 1 << 42  # upper limit of a shard in bytes; the file grows with its content
IDENTITY = b"identity"  # key of a shard's own mark


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard.{shard:04d}.lmdb"


class Shard:
    """A shard open for reading. py-lmdb opens a file once per process, so all caches of a process share it."""

    def __init__(self, file: Path) -> None:
        self.env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1)
        self.file = file.open("rb")  # the same one, also when another takes its name


open_shards: WeakValueDictionary[tuple, Shard] = WeakValueDictionary()


def open_shard(file: Path) -> Shard:
    """Raise CacheError when the file is not a whole LMDB."""
    state = file.stat()
    key = (os.getpid(), str(file.resolve()), state.st_ino, state.st_mtime_ns, state.st_size)
    shard = open_shards.get(key)
    if shard is None:
        try:
            shard = open_shards[key] = Shard(file)
        except lmdb.Error as error:
            raise CacheError(f"{file} cannot be read ({error}). Delete the cache and write it anew.") from error
    return shard


def written_chunks(directory: Path) -> dict[int, str]:
    """The chunks that are there, and the shard of each.

    Raises:
        CacheError: a shard is damaged.
    """
    found: dict[int, str] = {}
    for file in sorted(directory.glob("shard.*.lmdb")):
        if not file.stat().st_size:
            continue  # a writer was killed before its first byte
        try:
            with open_shard(file).env.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                found.update({int.from_bytes(key, "big"): file.name for key in keys if key != IDENTITY})
        except lmdb.Error as error:
            raise CacheError(f"{file} is damaged ({error}). Delete the cache and write it anew.") from error
    return found


def index_of(file: Path) -> dict:
    """What `_check_shard` compares: LMDB trusts the pages by which it finds a value, and would die of damaged ones.

    A page begins with its number (8 bytes), 2 unused bytes, flags (2 bytes), and for a value of several pages their number
    (4 bytes); LMDB's lmdb.h, MDB_page. All pages but such values are the index; they are few.
    """
    page, size = open_shard(file).env.stat()["psize"], file.stat().st_size
    index, at = [], 0
    with file.open("rb") as content:
        while at * page < size:
            content.seek(at * page)
            number, _, flags, pages = struct.unpack("<QHHI", content.read(16))
            is_value = bool(flags & 4) and number == at  # P_OVERFLOW
            if not is_value:
                index.append(at)
            at += pages if is_value else 1
    return {"bytes": size, "page": page, "index": index, "index_digest": index_digest(file, page, index)}


def index_digest(file: Path, page: int, index: Sequence[int]) -> str:
    """Digest of the pages that `index_of` found."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        for number in index:
            content.seek(number * page)
            digest.update(content.read(page))
    return digest.hexdigest()


def chunk_key(chunk: int) -> bytes:
    """Under which a shard keeps a chunk."""
    return chunk.to_bytes(8, "big")


def identity_of(plan: Plan, name: str) -> bytes:
    """The mark of the shard `name` of a cache of this plan."""
    return hashlib.blake2b(json.dumps([asdict(plan), name], sort_keys=True).encode(), digest_size=16).digest()
