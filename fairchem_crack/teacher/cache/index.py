"""Where records lie: a row for each, in the order of writing beside its shard, and by digest in the index of the cache.

The index is a hash table on disk, of pages of 4096 bytes. A record's row is in the page that its digest says,
page = d * pages / 2^32 with d the digest's first 4 bytes, big endian, or where that is full in the next one. To find a
record is to read a page, whatever the size of the cache; nothing is held in memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

INDEX_FILE = "index"
HEAD = struct.Struct("<8s16s8x")  # of every binary file: what it is, and whose
RECORDS, ROWS, INDEX = b"crackrec", b"crackrow", b"crackidx"
PAGE = 4096  # bytes, what a disk reads at once
SLOTS = PAGE // 48  # rows that a page can hold
FILLED = 48  # rows that a page has on average: the next one is read for one record in a million
_ROW = struct.Struct("<16sQQIIII")
ROW = np.dtype(
    [
        ("digest", "V16"),  # of the system
        ("position", "<u8"),  # number of the system in the data
        ("offset", "<u8"),  # of the record in its shard, bytes
        ("length", "<u4"),  # of the record, bytes
        ("atoms", "<u4"),
        ("shard", "<u4"),  # number of the shard
        ("crc", "<u4"),  # CRC-32 of the 44 bytes before it
    ]
)


class Row(NamedTuple):
    """A row, read; by the names of `ROW`."""

    digest: bytes
    position: int
    offset: int
    length: int
    atoms: int
    shard: int


def row_bytes(row: Row) -> bytes:
    """A row as it is written."""
    data = _ROW.pack(*row, 0)[:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")


def row_of(data: bytes) -> Row:
    """A row as it was written.

    Raises:
        ValueError: its checksum does not fit.
    """
    *values, checksum = _ROW.unpack(data)
    if checksum != zlib.crc32(data[:-4]):
        raise ValueError("is damaged: the checksum of its row does not fit")
    return Row(*values)


def read_rows(file: Path, begin: int = HEAD.size) -> np.ndarray:
    """(n,) the whole rows of a shard, in the order of writing; without those that are cut short or damaged.

    Args:
        begin: of the first row to read, in bytes.
    """
    with file.open("rb") as opened:
        opened.seek(begin)
        data = opened.read()
    rows = np.frombuffer(data, ROW, len(data) // ROW.itemsize)
    view, size = memoryview(data), ROW.itemsize
    checksums = (zlib.crc32(view[at : at + size - 4]) for at in range(0, len(rows) * size, size))
    return selected(rows, np.fromiter(checksums, "<u4", len(rows)) == rows["crc"])


def selected(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The rows of a mask; no copy of billions of bytes where it is all of them."""
    return rows if mask.all() else rows[mask]


def write_index(file: BinaryIO, rows: np.ndarray, mark: bytes) -> int:
    """Write all rows by digest, after a page that begins with the head of the file; returns `pages`."""
    count = len(rows)
    pages = max(1, -(-count // FILLED))
    first = np.ascontiguousarray(rows.view("u1").reshape(count, ROW.itemsize)[:, :4]).view(">u4")[:, 0]
    home = (first.astype(np.uint64) * np.uint64(pages) >> np.uint64(32)).astype(np.int64)
    order = np.argsort(home, kind="stable")
    number = np.arange(count)
    # the k-th row, by home, goes to the first slot of its page or next to the row before it
    slots = np.maximum.accumulate(home[order] * SLOTS - number) + number
    file.write(HEAD.pack(INDEX, mark).ljust(PAGE, b"\0"))
    whole, block = max(pages, int(slots[-1]) // SLOTS + 1) if count else pages, 4096
    for begin in range(0, whole, block):
        end = min(begin + block, whole)
        low, high = np.searchsorted(slots, (begin * SLOTS, end * SLOTS))
        held = np.zeros((end - begin) * SLOTS, ROW)
        held[slots[low:high] - begin * SLOTS] = rows[order[low:high]]
        written = np.zeros((end - begin, PAGE), np.uint8)
        written[:, : SLOTS * ROW.itemsize] = held.view(np.uint8).reshape(end - begin, -1)
        file.write(written.data)
    return pages


def find(index: int, pages: int, digest: bytes) -> Optional[Row]:
    """The row of the system with this digest, in the index open as a file descriptor; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    page, size = int.from_bytes(digest[:4], "big") * pages >> 32, ROW.itemsize
    while True:
        data = os.pread(index, PAGE, (page + 1) * PAGE)
        at = data.find(digest)
        while at >= 0:
            if at % size == 0 and at < SLOTS * size and any(data[at : at + size]):
                return row_of(data[at : at + size])
            at = data.find(digest, at + 1)
        if len(data) < PAGE or not any(data[(SLOTS - 1) * size : SLOTS * size]):
            return None
        page += 1


def every(index: int, size: int) -> Iterator[Row]:
    """All rows of an index of `size` bytes, open as a file descriptor, by digest.

    Raises:
        ValueError: one is damaged.
    """
    for begin in range(PAGE, size, PAGE):
        data = os.pread(index, PAGE, begin)
        for at in range(0, SLOTS * ROW.itemsize, ROW.itemsize):
            row = data[at : at + ROW.itemsize]
            if any(row):
                yield row_of(row)
