"""The records of a teacher cache: what is kept of a system, and its bytes. docs/cache.md has them in a table."""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np

FORMAT = 3
# name -> (shape after N, or None for one number of the system; dtype, None for that of the cache)
FIELDS: dict[str, tuple[Optional[str], Optional[str]]] = {
    "energy": (None, "float64"),  # eV
    "forces": ("3", "float32"),  # eV/A
    "atom_energies": ("", "float32"),  # eV, their sum is the energy
    "node_embedding": ("width", None),
    "vector_embedding": ("3 vector_width", None),
    "higher_embedding": ("higher_rows vector_width", None),
    "embedding_response": ("response_width", "float32"),  # A and 1/A, see responses.to_keep
    "force_response": ("6", "float32"),  # A and eV/A^2, likewise; of the same displacement
    "force_jacobian": ("jacobian_rows 4", "float32"),  # eV/A^2, see jacobian.to_keep
}
RESPONSES = ("embedding_response", "force_response")
RESPONSE_STEP = 0.02  # A, h of a displacement h u, whose u has normally distributed components
PAIRS = "pairs"  # the last part of a record
_START = struct.Struct("<II16s")  # N, P, digest of the system


class CacheError(ValueError):
    """A cache that cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What decides the records of a cache: two caches with equal plans hold the same records."""

    teacher: str  # its registered name, or where else the records come from
    fingerprint: str  # of its weights
    systems: int
    sample: str  # digest of some of the systems, so that a cache begun with others is not resumed with
    width: int  # D; 0 without node embedding
    vector_width: int = 0
    max_atomic_number: int = 118
    dtype: str = "float16"  # of the embeddings
    chunk: int = 16  # systems that go through the teacher together
    fields: tuple[str, ...] = ("energy", "forces", "atom_energies", "node_embedding")
    jacobian_rows: int = 0
    higher_rows: int = 0  # (L + 1)^2 - 4, coefficients of the degrees l = 2 to L
    has_pairs: bool = True
    precision: str = "float32"  # the teacher's own
    graph: dict[str, Any] = field(default_factory=dict)  # what the teacher's edges depend on: cutoff, max_neighbors, ...
    identity: dict[str, Any] = field(default_factory=dict)  # what else its outputs depend on: config, normalizers, ...
    format: int = FORMAT

    @property
    def chunks(self) -> int:
        """How many chunks a whole cache has; the last may be smaller."""
        return math.ceil(self.systems / self.chunk)

    @property
    def lmax(self) -> int:
        """L, the largest degree l of the embeddings that are kept."""
        return math.isqrt(self.higher_rows + 4) - 1 if self.vector_width else 0

    @property
    def response_width(self) -> int:
        """3 + D, of the displacement and of the response."""
        return 3 + self.width

    @property
    def contents(self) -> str:
        """The fields, in print."""
        rows = f" ({self.jacobian_rows} rows of each system, two runs of the teacher each)" if self.jacobian_rows else ""
        return ", ".join(self.fields) + rows

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a record after its head."""
        return (*self.fields, *([PAIRS] if self.has_pairs else []))

    def shape(self, name: str, atoms: int) -> tuple[int, ...]:
        """Shape of a field of a system of N atoms."""
        after = FIELDS[name][0]
        return () if after is None else (atoms, *(int(getattr(self, word, word)) for word in after.split()))

    def type_of(self, name: str) -> np.dtype:
        """Type of a field, little endian."""
        return np.dtype(FIELDS[name][1] or self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class Record:
    """A teacher's outputs for one system of N atoms.

    Attributes:
        digest: of the system, `system_digest`.
        values: by the names of `FIELDS`, energy () in eV, forces (N, 3) in eV/A, atom_energies (N,) eV,
            node_embedding (N, D), vector_embedding (N, 3, D_v), higher_embedding (N, (L + 1)^2 - 4, D_v), force_jacobian
            (N, rows, 4), embedding_response (N, 3 + D), force_response (N, 3 + 3).
        pairs: (2, P) unordered pairs of the teacher's edges, i < j, each once.
    """

    digest: bytes
    atoms: int
    values: dict[str, np.ndarray]
    pairs: np.ndarray


def empty_record(digest: bytes, plan: Plan) -> Record:
    """Of a system that the teacher has no outputs for: a record of 0 atoms, which no training takes."""
    return Record(digest, 0, {name: np.zeros(plan.shape(name, 0)) for name in plan.fields}, np.zeros((2, 0), dtype=int))


def system_digest(
    atomic_numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: Optional[np.ndarray] = None,
    *,
    tags: Optional[np.ndarray] = None,
    fixed: Optional[np.ndarray] = None,
    **others: Any,
) -> bytes:
    """16 bytes that depend on all that a teacher reads of a system, and not on where it is stored.

    Args:
        pbc: (3,) bool; None is periodic in all directions, as fairchem takes it.
        tags: (N,) int; None is 0 for every atom.
        fixed: (N,) bool; None is no fixed atom.
        others: numbers by name, `charge` and `spin` for example; None and zeros are as if they were not given.
    """
    count = np.asarray(atomic_numbers).size
    digest = hashlib.blake2b(np.asarray(atomic_numbers).astype("<i2").tobytes(), digest_size=16)
    digest.update(np.asarray(positions).astype("<f4").tobytes())
    digest.update(np.asarray(cell).astype("<f4").tobytes())
    digest.update((np.ones(3, bool) if pbc is None else np.asarray(pbc).astype(bool)).tobytes())
    digest.update((np.zeros(count) if tags is None else np.asarray(tags)).astype("<i2").tobytes())
    digest.update((np.zeros(count) if fixed is None else np.asarray(fixed)).astype(bool).tobytes())
    for name in sorted(others):
        values = np.zeros(0) if others[name] is None else np.asarray(others[name])
        if values.any():
            digest.update(name.encode() + values.astype("<f4").tobytes())
    return digest.digest()


class Layout:
    """Where each part of a record lies in its bytes.

    Attributes:
        head: bytes of N, P, the digest, a CRC-32 of each part, and one of all these.
        at: begin and end of each part, by name.
        pairs: P.

    Raises:
        ValueError: no record of so many atoms has this length.
    """

    def __init__(self, plan: Plan, atoms: int, length: int) -> None:
        self.head = _START.size + 4 * len(plan.parts) + 4
        self.at: dict[str, tuple[int, int]] = {}
        end = self.head
        for name in plan.fields:
            begin, end = end, end + math.prod(plan.shape(name, atoms)) * plan.type_of(name).itemsize
            self.at[name] = begin, end
        self.pairs, rest = divmod(length - end, 2 * _pair_type(atoms).itemsize)
        if rest or self.pairs < 0 or not (self.pairs == 0 or plan.has_pairs):
            raise ValueError(f"has {length} bytes, which a system of {atoms} atoms does not give")
        if plan.has_pairs:
            self.at[PAIRS] = end, length


def encode(record: Record, plan: Plan) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: an array has another shape than the plan says, or holds what cannot be.
    """
    atoms, pairs = record.atoms, record.pairs
    problem = _problem_of_pairs(pairs, atoms)
    if problem:
        raise ValueError(problem)
    if np.unique(pairs[0].astype(np.int64) * atoms + pairs[1]).size < pairs.shape[1]:  # a training takes them as they are
        raise ValueError("pairs holds a pair twice; expected each once, whatever the number of its periodic images.")
    parts = [_field_bytes(name, record.values[name], plan, atoms) for name in plan.fields]
    displacements = [record.values[name][:, :3] for name in RESPONSES if name in plan.fields]
    if not all(np.array_equal(displacements[0], other) for other in displacements):  # a training moves the student once
        raise ValueError(f"{' and '.join(RESPONSES)} are of different displacements.")
    if plan.has_pairs:
        parts.append(pairs.astype(_pair_type(atoms)).tobytes())
    head = _START.pack(atoms, pairs.shape[1] if plan.has_pairs else 0, record.digest) + b"".join(map(_checksum, parts))
    return b"".join([head, _checksum(head), *parts])


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _field_bytes(name: str, value: np.ndarray, plan: Plan, atoms: int) -> bytes:
    value, shape, dtype = np.asarray(value), plan.shape(name, atoms), plan.type_of(name)
    if value.shape != shape:
        raise ValueError(f"{name} has the shape {value.shape}, expected {shape}.")
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    if not np.isfinite(value).all():
        advice = " Give --dtype float32." if dtype == np.float16 else ""
        raise ValueError(f"{name} is not finite in {dtype.name}.{advice}")
    return value.tobytes()


def decode(
    part: Callable[[int, int], bytes], plan: Plan, atoms: int, length: int, names: Optional[Collection[str]] = None
) -> Record:
    """A record, or some of its parts; its arrays are views of the bytes.

    Args:
        part: the bytes of the record from one place to another.
        atoms: N.
        length: of the whole record in bytes.
        names: of `plan.parts`; None takes all.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    layout = Layout(plan, atoms, length)
    head = part(0, layout.head)
    if len(head) < layout.head or _checksum(head[:-4]) != head[-4:]:
        raise ValueError("is damaged: the checksum of its head does not fit")
    held, count, digest = _START.unpack_from(head)
    if (held, count) != (atoms, layout.pairs):
        raise ValueError("is damaged: its head has other sizes")
    checksums = {name: head[_START.size + 4 * number :][:4] for number, name in enumerate(plan.parts)}
    values, pairs = {}, np.zeros((2, 0), _pair_type(atoms))
    for name in plan.parts if names is None else [name for name in plan.parts if name in names]:
        data = part(*layout.at[name])
        if _checksum(data) != checksums[name]:
            raise ValueError(f"is damaged: the checksum of its {name} does not fit")
        if name == PAIRS:
            pairs = np.frombuffer(data, _pair_type(atoms)).reshape(2, -1)
        else:
            values[name] = np.frombuffer(data, plan.type_of(name)).reshape(plan.shape(name, atoms))
            if not np.isfinite(values[name]).all():
                raise ValueError(f"holds numbers that are not finite, in its {name}")
    problem = _problem_of_pairs(pairs, atoms)
    if problem:
        raise ValueError(f"is damaged: {problem}")
    return Record(digest, atoms, values, pairs)


def _problem_of_pairs(pairs: np.ndarray, atoms: int) -> str:
    if pairs.size and not (pairs[0].min() >= 0 and (pairs[0] < pairs[1]).all() and pairs[1].max() < atoms):
        return f"pairs must be 0 <= i < j < {atoms}."
    return ""


def _pair_type(atoms: int) -> np.dtype:
    return np.min_scalar_type(max(atoms - 1, 0)).newbyteorder("<")
