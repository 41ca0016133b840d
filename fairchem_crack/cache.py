"""The teacher cache: what a teacher says of every system of a dataset, on disk.

A cache is a directory of LMDB shards and two JSON files. `plan.json`, written first, says whose it is; `header.json`,
written when every system is there, repeats it and lists the shards. A shard maps the number of a chunk (8 bytes, big
endian) to the records of `chunk` consecutive systems, written in one transaction: a chunk is there whole or not at all.
docs/cache.md has the bytes. `CacheWriter` and `finish` fill a cache from any source of embeddings, energies and forces.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from fairchem_crack.files import write_text

FORMAT = 2
PLAN, HEADER = "plan.json", "header.json"
MAP_SIZE = 1 << 42  # upper limit of a shard in bytes; the file grows with its content
IDENTITY = b"identity"  # key of a shard's own mark
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a field behind N."""
        return tuple(int(getattr(self, one, one)) for one in (FIELDS[name][0] or "").split())

    def type_of(self, name: str) -> np.dtype:
        """Type of a field, little endian."""
        return np.dtype(FIELDS[name][1] or self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class Record:
    """What a teacher says of one system of N atoms.

    Attributes:
        digest: of the system, `system_digest`.
        values: by the names of `FIELDS`, energy () in eV, forces (N, 3) in eV/A, atom_energies (N,) eV,
            node_embedding (N, D), vector_embedding (N, 3, D_v), force_jacobian (N, rows, 4).
        pairs: (2, P) unordered pairs of the teacher's edges, i < j.
    """

    digest: bytes
    atoms: int
    values: dict[str, np.ndarray]
    pairs: np.ndarray


def system_digest(atomic_numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> bytes:
    """16 bytes that depend on a system's atoms, positions and cell, and not on where it is stored."""
    digest = hashlib.blake2b(np.asarray(atomic_numbers).astype("<i2").tobytes(), digest_size=16)
    digest.update(np.asarray(positions).astype("<f4").tobytes())
    digest.update(np.asarray(cell).astype("<f4").tobytes())
    return digest.digest()


def encode(record: Record, plan: Plan, index: int) -> bytes:
    """The bytes of the record of system `index`, and a checksum of both.

    Raises:
        ValueError: an array has another shape than the plan says, or holds what cannot be.
    """
    pairs = record.pairs
    if pairs.size and not (pairs[0].min() >= 0 and (pairs[0] < pairs[1]).all() and pairs[1].max() < record.atoms):
        raise ValueError(f"pairs must be 0 <= i < j < {record.atoms}.")
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


def _pack(records: Sequence[bytes]) -> bytes:
    """Their number, where each ends, and the records."""
    ends = np.cumsum([len(record) for record in records]).astype("<u4")
    return struct.pack("<I", len(records)) + ends.tobytes() + b"".join(records)


def _unpack(data: memoryview | None, slot: int) -> memoryview:
    if data is None:
        raise ValueError("is not where it was")
    (count,) = struct.unpack_from("<I", data)
    ends = np.frombuffer(data, "<u4", count, 4)
    start = 4 + 4 * count
    if slot >= count or len(data) != start + int(ends[-1]):
        raise ValueError("is damaged: its chunk has another length")
    return data[start + (int(ends[slot - 1]) if slot else 0) : start + int(ends[slot])]


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
            transaction.put(IDENTITY, _identity(plan, self._file.name))

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
            transaction.put(_key(chunk), _pack(encoded))

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


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard.{shard:04d}.lmdb"


class _Shard:
    """A shard open for reading. py-lmdb opens a file once per process, so all caches of a process share it."""

    def __init__(self, file: Path) -> None:
        self.env = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1)


_open_shards: WeakValueDictionary[tuple, _Shard] = WeakValueDictionary()


def _open_shard(file: Path) -> _Shard:
    """Raise CacheError when the file is not a whole LMDB."""
    state = file.stat()
    key = (os.getpid(), str(file.resolve()), state.st_ino, state.st_mtime_ns, state.st_size)
    shard = _open_shards.get(key)
    if shard is None:
        try:
            shard = _open_shards[key] = _Shard(file)
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
            with _open_shard(file).env.begin() as transaction:
                keys = transaction.cursor().iternext(keys=True, values=False)
                found.update({int.from_bytes(key, "big"): file.name for key in keys if key != IDENTITY})
        except lmdb.Error as error:
            raise CacheError(f"{file} is damaged ({error}). Delete the cache and write it anew.") from error
    return found


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
        "shards": {name: _index_of(directory / name) for name in names},
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
    header["digest"] = _digest_of_header(header)
    write_text(directory / HEADER, json.dumps(header, indent=1))


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
        self._shards = written_chunks(directory)
        if self._shards.keys() != set(range(self.plan.chunks)):
            raise self._error(f"has not the {self.plan.chunks} chunks that were written")
        self._environments: dict[str, _Shard] = {}
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
            if int(header["format"]) <= FORMAT and header.pop("digest") == _digest_of_header(header):
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
        if _index_digest(file, shard["page"], shard["index"]) != shard["index_digest"]:
            raise self._error(f"has a damaged {name}")
        try:
            with _open_shard(file).env.begin() as transaction:
                identity = transaction.get(IDENTITY)
        except lmdb.Error as error:
            raise self._error(f"has a damaged {name} ({error})") from error
        if identity != _identity(self.plan, name):
            raise self._error(f"has a {name} that is another one's")

    def __len__(self) -> int:
        return self.plan.systems

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_environments": {}}

    def _environment(self, name: str) -> lmdb.Environment:
        if self._process != os.getpid():
            self._environments, self._process = {}, os.getpid()
        if name not in self._environments:
            self._environments[name] = _open_shard(self.directory / name)
        return self._environments[name].env

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
                data = bytes(_unpack(transaction.get(_key(chunk)), slot))
            record = decode(memoryview(data), self.plan, index)
        except (ValueError, struct.error, lmdb.Error, TypeError, IndexError) as error:
            raise self._error(f"record {index}: {error}") from error
        if not all(np.isfinite(value).all() for value in record.values.values()):
            raise self._error(f"record {index} holds numbers that are not finite")
        return record

    def check_system(self, index: int, record: Record, atoms: int, digest: bytes, dataset: str) -> None:
        """Raise CacheError unless this record was made of the system with this digest."""
        if record.atoms != atoms:
            raise self._error(f"record {index} holds {record.atoms} atoms, system {index} of {dataset} has {atoms}")
        if record.digest != digest:
            raise self._error(
                f"record {index} was made of another system than system {index} of {dataset}, or of another order"
            )

    def close(self) -> None:
        """Let go of the shards."""
        self._environments = {}


def _digest_of_header(header: dict) -> str:
    return hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16).hexdigest()


def _index_of(file: Path) -> dict:
    """What `_check_shard` compares: LMDB trusts the pages by which it finds a value, and would die of damaged ones.

    A page begins with its number (8 bytes), 2 unused bytes, flags (2 bytes), and for a value of several pages their number
    (4 bytes); LMDB's lmdb.h, MDB_page. All pages but such values are the index; they are few.
    """
    page, size = _open_shard(file).env.stat()["psize"], file.stat().st_size
    index, at = [], 0
    with file.open("rb") as content:
        while at * page < size:
            content.seek(at * page)
            number, _, flags, pages = struct.unpack("<QHHI", content.read(16))
            is_value = bool(flags & 4) and number == at  # P_OVERFLOW
            if not is_value:
                index.append(at)
            at += pages if is_value else 1
    return {"bytes": size, "page": page, "index": index, "index_digest": _index_digest(file, page, index)}


def _index_digest(file: Path, page: int, index: Sequence[int]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        for number in index:
            content.seek(number * page)
            digest.update(content.read(page))
    return digest.hexdigest()


def _key(chunk: int) -> bytes:
    return chunk.to_bytes(8, "big")


def _identity(plan: Plan, name: str) -> bytes:
    return hashlib.blake2b(json.dumps([asdict(plan), name], sort_keys=True).encode(), digest_size=16).digest()
