"""The records of a teacher cache: what is kept of a system, and its bytes. docs/cache.md has them in a table."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

FORMAT = 2
# name -> (shape behind N, or None for one number of the system; dtype, None for that of the cache)
FIELDS: dict[str, tuple[Optional[str], Optional[str]]] = {
    "energy": (None, "float64"),  # eV
    "forces": ("3", "float32"),  # eV/A
    "atom_energies": ("", "float32"),  # eV, their sum is the energy
    "node_embedding": ("width", None),
    "vector_embedding": ("3 vector_width", None),
    "force_jacobian": ("jacobian_rows 4", "float32"),  # eV/A^2, see jacobian.to_keep
}
_RECORD = struct.Struct("<II16s")  # N, P, digest of the system
_CHECKSUM = struct.Struct("<I")


class CacheError(ValueError):
    """A cache that cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """Whose a cache is: two caches with equal plans hold the same records."""

    teacher: str  # its registered name, or where else the records come from
    fingerprint: str  # of its weights and config
    systems: int
    sample: str  # digest of some of the systems, so that a cache begun with others is not gone on with
    width: int  # D; 0 without node embedding
    vector_width: int = 0
    max_atomic_number: int = 118
    dtype: str = "float16"  # of the embeddings
    chunk: int = 16  # systems
    fields: tuple[str, ...] = ("energy", "forces", "atom_energies", "node_embedding")
    jacobian_rows: int = 0
    has_pairs: bool = True
    precision: str = "float32"  # the teacher's own
    graph: dict[str, Any] = field(default_factory=dict)  # what the teacher's edges depend on: cutoff, max_neighbors, ...
    format: int = FORMAT

    @property
    def chunks(self) -> int:
        """How many chunks a whole cache has; the last may be smaller."""
        return math.ceil(self.systems / self.chunk)

    @property
    def contents(self) -> str:
        """The fields, in print."""
        rows = f" ({self.jacobian_rows} rows of each system, two runs of the teacher each)" if self.jacobian_rows else ""
        return ", ".join(self.fields) + rows

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a field behind N."""
        return tuple(int(getattr(self, one, one)) for one in (FIELDS[name][0] or "").split())

    def type_of(self, name: str) -> np.dtype:
        """Type of a field, little endian."""
        return np.dtype(FIELDS[name][1] or self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class Record:
    """A teacher's outputs for one system of N atoms.

    Attributes:
        digest: of the system, `system_digest`.
        values: by the names of `FIELDS`, energy () in eV, forces (N, 3) in eV/A, atom_energies (N,) eV,
            node_embedding (N, D), vector_embedding (N, 3, D_v), force_jacobian (N, rows, 4).
        pairs: (2, P) unordered pairs of the teacher's edges, i < j, each once.
    """

    digest: bytes
    atoms: int
    values: dict[str, np.ndarray]
    pairs: np.ndarray


def system_digest(
    atomic_numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: Optional[np.ndarray] = None
) -> bytes:
    """16 bytes that depend on a system's atoms, positions, cell and pbc, and not on where it is stored.

    Args:
        pbc: (3,) bool; None is periodic in all directions.
    """
    digest = hashlib.blake2b(np.asarray(atomic_numbers).astype("<i2").tobytes(), digest_size=16)
    digest.update(np.asarray(positions).astype("<f4").tobytes())
    digest.update(np.asarray(cell).astype("<f4").tobytes())
    if pbc is not None and not np.all(pbc):  # those of a system that is periodic in all directions are older than this
        digest.update(np.asarray(pbc).astype(bool).tobytes())
    return digest.digest()


def encode(record: Record, plan: Plan, index: int) -> bytes:
    """The bytes of the record of system `index`, and a checksum of both.

    Raises:
        ValueError: an array has another shape than the plan says, or holds what cannot be.
    """
    pairs = record.pairs
    if pairs.size and not (pairs[0].min() >= 0 and (pairs[0] < pairs[1]).all() and pairs[1].max() < record.atoms):
        raise ValueError(f"pairs must be 0 <= i < j < {record.atoms}.")
    if (
        np.unique(pairs[0].astype(np.int64) * record.atoms + pairs[1]).size < pairs.shape[1]
    ):  # a training takes them as they are
        raise ValueError("pairs holds a pair twice; expected each once, whatever the number of its periodic images.")
    parts = [_RECORD.pack(record.atoms, record.pairs.shape[1], record.digest)]
    for name in plan.fields:
        shape = () if FIELDS[name][0] is None else (record.atoms, *plan.shape(name))
        value = np.asarray(record.values[name])
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {value.shape}, expected {shape}.")
        with np.errstate(over="ignore"):
            value = value.astype(plan.type_of(name))
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite in {plan.type_of(name).name}.")
        parts.append(value.tobytes())
    if plan.has_pairs:
        parts.append(record.pairs.astype(_pair_type(record.atoms)).tobytes())
    content = b"".join(parts)
    return content + _CHECKSUM.pack(zlib.crc32(content, index))


def decode(data: memoryview, plan: Plan, index: int) -> Record:
    """The record of system `index`; its arrays are views of them.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    content, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
    if len(data) < _RECORD.size + _CHECKSUM.size or _CHECKSUM.unpack(checksum)[0] != zlib.crc32(content, index):
        raise ValueError("is damaged: its checksum does not fit")
    atoms, pairs, digest = _RECORD.unpack_from(content)
    at, values = _RECORD.size, {}
    for name in plan.fields:
        shape = () if FIELDS[name][0] is None else (atoms, *plan.shape(name))
        values[name] = np.frombuffer(content, plan.type_of(name), math.prod(shape), at).reshape(shape)
        at += values[name].nbytes
    joined = np.frombuffer(content, _pair_type(atoms), 2 * pairs if plan.has_pairs else 0, at)
    return Record(digest, atoms, values, joined.reshape(2, -1))


def _pair_type(atoms: int) -> np.dtype:
    return np.min_scalar_type(max(atoms - 1, 0)).newbyteorder("<")


def pack(records: Sequence[bytes]) -> bytes:
    """The bytes of a chunk: the number of its records, where each ends, and the records."""
    ends = np.cumsum([len(record) for record in records]).astype("<u4")
    return struct.pack("<I", len(records)) + ends.tobytes() + b"".join(records)


def unpack(data: memoryview | None, slot: int) -> memoryview:
    """The record number `slot` of a chunk.

    Raises:
        ValueError: the chunk is not there, or not whole.
    """
    if data is None:
        raise ValueError("is not where it was")
    (count,) = struct.unpack_from("<I", data)
    ends = np.frombuffer(data, "<u4", count, 4)
    start = 4 + 4 * count
    if slot >= count or len(data) != start + int(ends[-1]):
        raise ValueError("is damaged: its chunk has another length")
    return data[start + (int(ends[slot - 1]) if slot else 0) : start + int(ends[slot])]
