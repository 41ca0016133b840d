"""The teacher cache on disk: what is written is read, and what was not written is refused. No model is run."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from tolerances import SUM_OF_FLOAT64
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.keys import NODE_EMBEDDING
from fairchem_crack.teacher.cache import (
    FORMAT,
    HEADER,
    PLAN,
    CacheError,
    CacheWriter,
    Plan,
    Record,
    TeacherCache,
    decode,
    encode,
    finish,
    system_digest,
    written_chunks,
)
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, digest_of

NODE = [NODE_EMBEDDING]
TEACHER_EMBEDDING = keys.TEACHER_PREFIX + NODE_EMBEDDING
ALL_FIELDS = ("energy", "forces", "atom_energies", "node_embedding", "vector_embedding")
SHARD = "shard.0000.lmdb"


def make_plan(systems: int = 10, **options) -> Plan:
    return Plan(
        **{"teacher": "toy", "fingerprint": "f", "systems": systems, "sample": "s", "width": 8, "chunk": 4, **options}
    )


def make_record(
    rng: np.random.Generator, atoms: int, plan: Plan, *, pairs: int | None = None, digest: bytes = b""
) -> Record:
    """Random arrays, and `pairs` of all pairs of atoms."""
    shapes = {"energy": (), "forces": (atoms, 3), "atom_energies": (atoms,), "node_embedding": (atoms, plan.width)}
    shapes["vector_embedding"] = (atoms, 3, plan.vector_width)
    values = {name: np.asarray(rng.normal(size=shapes[name])) for name in plan.fields}
    chosen = rng.permutation(atoms * (atoms - 1) // 2)[:pairs]
    return Record(digest or rng.bytes(16), atoms, values, np.stack(np.triu_indices(atoms, 1))[:, chosen])


def make_records(plan: Plan, seed: int = 0, sizes: tuple[int, int] = (2, 9)) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [make_record(rng, int(rng.integers(*sizes)), plan) for _ in range(plan.systems)]


def write_cache(directory: Path, plan: Plan, records: list[Record], *, shards: int = 1) -> TeacherCache:
    for shard in range(shards):
        writer = CacheWriter(directory, plan, shard)
        for chunk in range(shard, plan.chunks, shards):
            writer.write(chunk, records[chunk * plan.chunk : (chunk + 1) * plan.chunk])
        writer.close()
    finish(directory, plan)
    return TeacherCache(directory)


def assert_holds(found: Record, expected: Record, plan: Plan) -> None:
    """Bit-equal to what was given, cast to the types of the plan."""
    assert (found.digest, found.atoms) == (expected.digest, expected.atoms)
    assert tuple(found.values) == plan.fields
    for name, value in found.values.items():
        wanted = np.asarray(expected.values[name]).astype(plan.type_of(name))
        assert value.dtype == wanted.dtype and value.shape == wanted.shape and value.tobytes() == wanted.tobytes(), name
    if plan.has_pairs:
        assert np.array_equal(found.pairs, expected.pairs)


def content(directory: Path) -> list[bytes]:
    """Every record's bytes."""
    cache = TeacherCache(directory)
    return [encode(cache[index], cache.plan, index) for index in range(len(cache))]


@pytest.fixture
def cache(tmp_path):
    """A finished cache of ten small systems in three chunks, as directory."""
    write_cache(tmp_path / "cache", make_plan(), make_records(make_plan()))
    return tmp_path / "cache"


def refused(directory: Path, message: str) -> None:
    """It is refused when opened, with this message and its name."""
    with pytest.raises(CacheError, match=message) as error:
        TeacherCache(directory)
    assert str(directory) in str(error.value)


# ---- a record


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("atoms", [1, 2, 17, 256, 257])
def test_a_record_is_what_was_encoded(atoms, dtype):
    plan = make_plan(fields=ALL_FIELDS, vector_width=5, dtype=dtype)
    record = make_record(np.random.default_rng(atoms), atoms, plan, pairs=300)
    data = encode(record, plan, 3)
    assert_holds(decode(memoryview(data), plan, 3), record, plan)
    itemsize = np.dtype(dtype).itemsize
    numbers = 8 + atoms * (12 + 4 + itemsize * (plan.width + 3 * plan.vector_width))
    assert len(data) == 28 + numbers + 2 * record.pairs.shape[1] * (1 if atoms <= 256 else 2)


def test_a_record_without_embeddings_and_pairs():
    plan = make_plan(fields=("energy", "forces"), width=0, has_pairs=False)
    record = make_record(np.random.default_rng(0), 5, plan)
    found = decode(memoryview(encode(record, plan, 0)), plan, 0)
    assert_holds(found, record, plan)
    assert found.pairs.shape == (2, 0)


@pytest.mark.parametrize("name", ALL_FIELDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, name, value):
    plan = make_plan(4, fields=ALL_FIELDS, vector_width=2)
    records = make_records(plan)
    records[2].values[name][...] = value
    writer = CacheWriter(tmp_path, plan)
    with pytest.raises(CacheError, match=rf"{SHARD}: system 2: {name} is not finite"):
        writer.write(0, records)
    writer.close()
    assert written_chunks(tmp_path) == {}


def test_a_number_beyond_float16_is_not_written():
    plan = make_plan()
    record = make_record(np.random.default_rng(0), 4, plan)
    record.values["node_embedding"][0, 0] = 7e4
    with pytest.raises(ValueError, match="node_embedding is not finite in float16"):
        encode(record, plan, 0)
    encode(record, dataclasses.replace(plan, dtype="float32"), 0)


def test_a_pair_is_written_once():
    plan = make_plan()
    record = make_record(np.random.default_rng(0), 4, plan)
    with pytest.raises(ValueError, match="holds a pair twice"):
        encode(dataclasses.replace(record, pairs=np.array([[0, 1, 0], [2, 3, 2]])), plan, 0)


@pytest.mark.parametrize("pair", [(0, 4), (0, 300), (-1, 2), (2, 1), (2, 2)])
def test_pairs_that_cannot_be_are_not_written(pair):
    plan = make_plan()
    record = dataclasses.replace(make_record(np.random.default_rng(0), 4, plan), pairs=np.array(pair)[:, None])
    with pytest.raises(ValueError, match="pairs must be"):
        encode(record, plan, 0)


def test_an_array_of_another_shape_is_not_written():
    plan = make_plan()
    record = make_record(np.random.default_rng(0), 4, plan)
    record.values["forces"] = record.values["forces"].T
    with pytest.raises(ValueError, match=r"forces has the shape \(3, 4\), expected \(4, 3\)"):
        encode(record, plan, 0)


def test_every_altered_bit_of_a_record_is_noticed():
    plan = make_plan()
    data = encode(make_record(np.random.default_rng(0), 3, plan), plan, 7)
    for at in range(8 * len(data)):
        altered = bytearray(data)
        altered[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum"):
            decode(memoryview(altered), plan, 7)
    for size in (0, 3, 20, len(data) - 1):
        with pytest.raises(ValueError, match="checksum"):
            decode(memoryview(data[:size]), plan, 7)
    with pytest.raises(ValueError, match="checksum"):
        decode(memoryview(data), plan, 8)


# ---- a cache


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("systems", [1, 4, 10])
def test_a_cache_holds_what_was_written(tmp_path, systems, shards):
    plan = make_plan(systems, fields=ALL_FIELDS, vector_width=2, graph={"cutoff": 5.0, "max_neighbors": 8, "use_pbc": True})
    records = make_records(plan)
    cache = write_cache(tmp_path, plan, records, shards=shards)
    assert cache.plan == plan and len(cache) == systems
    for index in np.random.default_rng(1).permutation(systems):
        assert_holds(cache[int(index)], records[index], plan)
    assert len(list(cache)) == systems  # and ends


def test_mean_and_std_of_the_embedding(tmp_path):
    plan = make_plan(dtype="float32")
    records = make_records(plan)
    cache = write_cache(tmp_path, plan, records)
    embeddings = np.concatenate([record.values["node_embedding"].astype("f4") for record in records])
    np.testing.assert_allclose(cache.embedding_mean, embeddings.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(cache.embedding_std, embeddings.std(0, dtype=np.float64), rtol=1e-10)


def test_the_digest_of_the_dataset_depends_on_systems_and_order(tmp_path):
    plan = make_plan()
    records = make_records(plan)
    one = write_cache(tmp_path / "one", plan, records)
    again = write_cache(tmp_path / "again", dataclasses.replace(plan, fingerprint="other"), records, shards=2)
    turned = write_cache(tmp_path / "turned", plan, records[::-1])
    assert one.dataset == again.dataset != turned.dataset


def test_bytes_are_those_of_the_documentation(cache):
    """Read with lmdb and struct alone, by docs/cache.md."""
    with lmdb.open(str(cache / SHARD), subdir=False, readonly=True, lock=False) as env, env.begin() as transaction:
        chunk = transaction.get((1).to_bytes(8, "big"))
    count = int.from_bytes(chunk[:4], "little")
    ends = np.frombuffer(chunk, "<u4", count, 4)
    data = chunk[4 + 4 * count :][ends[0] : ends[1]]  # the second record of chunk 1: system 5
    expected = make_records(make_plan())[5]
    atoms, pairs = np.frombuffer(data, "<u4", 2)
    assert (count, atoms, pairs) == (4, expected.atoms, expected.pairs.shape[1])
    assert data[8:24] == expected.digest
    at = 24
    for name, dtype, size in (
        ("energy", "<f8", 1),
        ("forces", "<f4", 3 * atoms),
        ("atom_energies", "<f4", atoms),
        ("node_embedding", "<f2", 8 * atoms),
    ):
        found = np.frombuffer(data, dtype, size, at)
        assert np.array_equal(found, expected.values[name].astype(dtype).ravel()), name
        at += found.nbytes
    assert np.array_equal(np.frombuffer(data, "u1", 2 * pairs, at).reshape(2, -1), expected.pairs)
    assert len(data) == at + 2 * pairs + 4


def test_the_documented_third_party_writer(tmp_path, monkeypatch):
    """The block of docs/cache.md, with random numbers as the other framework."""
    from ase.build import molecule

    rng = np.random.default_rng(0)
    said = []

    def ask(atoms):
        n = len(atoms)
        said.append((rng.normal(size=(n, 64)), rng.normal(size=n), rng.normal(size=(n, 3)), np.stack(np.triu_indices(n, 1))))
        return said[-1]

    text = (Path(__file__).parents[1] / "docs/cache.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "CacheWriter" in block)
    systems = [molecule(name) for name in ("H2O", "CH4", "H", "C6H6") * 5]
    monkeypatch.chdir(tmp_path)
    exec(block, {"systems": systems, "ask": ask})
    cache = TeacherCache(tmp_path / "my_cache")
    assert len(cache) == len(said) == 20
    for record, atoms, (embedding, energies, forces, pairs) in zip(cache, systems, said):
        assert record.digest == system_digest(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        assert float(record.values["energy"]) == pytest.approx(energies.sum(), rel=SUM_OF_FLOAT64)
        assert np.array_equal(record.values["forces"], forces.astype("f4"))
        assert np.array_equal(record.values["node_embedding"], embedding.astype("f2"))
        assert np.array_equal(record.pairs, pairs)


@pytest.mark.parametrize(
    "systems, sizes, width, pairs, limit",
    [(320, (60, 91), 128, 700, 1.05), (300, (13, 16), 48, 70, 1.15)],
    ids=["OC20", "demo"],
)
def test_size_on_disk(tmp_path, systems, sizes, width, pairs, limit):
    plan = make_plan(systems, width=width, chunk=Plan.chunk)
    rng = np.random.default_rng(0)
    records = [make_record(rng, int(rng.integers(*sizes)), plan, pairs=pairs) for _ in range(systems)]
    write_cache(tmp_path, plan, records)
    arrays = sum(8 + record.atoms * (12 + 4 + 2 * width) + 2 * record.pairs.shape[1] for record in records)
    disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert disk / arrays <= limit


def test_two_caches_of_a_directory_in_one_process(cache):
    one, other = TeacherCache(cache), TeacherCache(cache)
    assert one[3].digest == other[3].digest
    one.close()
    assert one[3].digest == other[3].digest


# ---- writing


def test_a_wrong_chunk_is_not_written(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    writer = CacheWriter(tmp_path, plan)
    for chunk, given in ((3, records[:4]), (7, records[:4]), (-1, records[:4]), (0, records[:3]), (2, records[:4]), (0, [])):
        with pytest.raises(CacheError, match=f"chunk {chunk} of 3 came with {len(given)} records"):
            writer.write(chunk, given)
    writer.close()
    assert written_chunks(tmp_path) == {}


def test_a_cache_without_all_chunks_is_not_finished(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    writer = CacheWriter(tmp_path, plan)
    writer.write(1, records[4:8])
    writer.close()
    with pytest.raises(CacheError, match="2 of 3 chunks are missing"):
        finish(tmp_path, plan)
    refused(tmp_path, "is unfinished")


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "g"}, {"width": 9}, {"dtype": "float32"}, {"systems": 11}, {"graph": {"cutoff": 4.0}}, {"chunk": 5}],
)
def test_going_on_with_another_plan_is_refused(tmp_path, change):
    (name,) = change
    CacheWriter(tmp_path, make_plan()).close()
    CacheWriter(tmp_path, make_plan()).close()
    with pytest.raises(CacheError, match=f"{tmp_path} was begun with {name} .* now asked for with"):
        CacheWriter(tmp_path, make_plan(**change))


def test_a_shard_that_was_created_and_never_written(tmp_path):
    """A kill between the file's creation and its first bytes."""
    (tmp_path / SHARD).touch()
    assert written_chunks(tmp_path) == {}
    plan, records = make_plan(), make_records(make_plan())
    cache = write_cache(tmp_path, plan, records)
    assert_holds(cache[9], records[9], plan)


def test_a_killed_writer_leaves_whole_chunks(tmp_path):
    """SIGKILL of a writer at random moments, again and again until some chunks are there; then an undisturbed one."""
    plan, records = make_plan(400), make_records(make_plan(400))
    write_cache(tmp_path / "whole", plan, records)
    directory = tmp_path / "killed"
    directory.mkdir()
    moments, before = random.Random(0), 0
    for _ in range(1000):
        if before >= 10:
            break
        pid = os.fork()
        if pid == 0:
            try:
                _write_slowly(directory, plan, records)
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        there = len(written_chunks(directory))
        assert before <= there < plan.chunks  # which take 10 ms each at least
        before = there
    assert before >= 10
    _write_slowly(directory, plan, records)
    finish(directory, plan)
    assert content(directory) == content(tmp_path / "whole")
    size = [sum(file.stat().st_size for file in (tmp_path / name).glob("shard*")) for name in ("whole", "killed")]
    assert size[1] < 1.1 * size[0] + 2**16


def _write_slowly(directory: Path, plan: Plan, records: list[Record]) -> None:
    done = written_chunks(directory)
    writer = CacheWriter(directory, plan)
    for chunk in range(plan.chunks):
        if chunk not in done:
            time.sleep(0.01)
            writer.write(chunk, records[chunk * plan.chunk : (chunk + 1) * plan.chunk])
    writer.close()


# ---- refusals


def test_no_directory(tmp_path):
    refused(tmp_path / "gone", r"does not exist \(looked in .*cache-teacher --config-yml")


def test_an_unfinished_cache(cache):
    (cache / HEADER).unlink()
    assert (cache / PLAN).is_file()
    refused(cache, "is unfinished")


def test_a_missing_shard(cache):
    (cache / SHARD).unlink()
    refused(cache, f"lacks {SHARD}")


@pytest.mark.parametrize("size", [0, 100, 4096, 12288])
def test_a_truncated_shard(cache, size):
    os.truncate(cache / SHARD, size)
    refused(cache, rf"{SHARD} of {size} bytes where \d+ were written")


def test_swapped_shards(tmp_path):
    """Of the same size, so that only their marks differ."""
    plan = make_plan(8)
    records = [make_record(np.random.default_rng(seed), 5, plan) for seed in range(8)]
    write_cache(tmp_path, plan, records, shards=2)
    one, other = (tmp_path / f"shard.{number:04d}.lmdb" for number in (0, 1))
    assert one.stat().st_size == other.stat().st_size
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    refused(tmp_path, "shard.000")


def test_the_shard_of_another_cache(cache, tmp_path):
    plan = make_plan(fingerprint="g")
    write_cache(tmp_path / "other", plan, make_records(plan))
    assert (tmp_path / "other" / SHARD).stat().st_size == (cache / SHARD).stat().st_size
    shutil.copy(tmp_path / "other" / SHARD, cache / SHARD)
    refused(cache, SHARD)


def test_a_newer_format(cache):
    header = json.loads((cache / HEADER).read_text())
    header["format"] = FORMAT + 1
    (cache / HEADER).write_text(json.dumps(header))
    refused(cache, f"has format {FORMAT + 1}; this fairchem-crack knows up to {FORMAT}. Update")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": "x"}', '{"format": 1}', "\x00\x01"])
def test_a_damaged_header(cache, text):
    (cache / HEADER).write_text(text)
    refused(cache, f"has a damaged {HEADER}")


@pytest.mark.parametrize(
    "name", ["embedding_mean", "dataset", "systems", "shards", "graph", "fingerprint", "max_atomic_number"]
)
def test_an_altered_header(cache, name):
    header = json.loads((cache / HEADER).read_text())
    altered = {"embedding_mean": [0.5] * 8, "dataset": "", "shards": {}, "graph": {"cutoff": 3.0}, "fingerprint": "g"}
    (cache / HEADER).write_text(json.dumps({**header, name: altered.get(name, 7)}))
    refused(cache, f"has a damaged {HEADER}")
    shortened = {key: value for key, value in header.items() if key != name}
    (cache / HEADER).write_text(json.dumps(shortened))
    refused(cache, f"has a damaged {HEADER}")


def read_all(directory: Path, expected: list[bytes]) -> int:
    """0: all records are as expected; 1: some are refused, the others as expected; 2: wrong, or another exception."""
    code = 0
    try:
        cache = TeacherCache(directory)
        for index, wanted in enumerate(expected):
            try:
                if encode(cache[index], cache.plan, index) != wanted:
                    return 2
            except CacheError:
                code = 1
    except CacheError:
        return 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return code


def in_fork(function, *arguments) -> str:
    """What becomes of a process that calls the function: `exit CODE` or `signal NUMBER`."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = function(*arguments)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return f"exit {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


@pytest.mark.parametrize("atoms", [6, 30], ids=["values within LMDB's pages", "values of several pages"])
def test_flipped_bits_of_a_shard_are_refused_or_harmless(tmp_path, atoms):
    """Half of them where LMDB itself would stumble: in the pages by which it finds a value."""
    plan = make_plan(200)
    write_cache(tmp_path, plan, make_records(plan, sizes=(atoms, atoms + 1)))
    expected, file = content(tmp_path), tmp_path / SHARD
    good = file.read_bytes()
    pages = [at for at in range(0, len(good), 4096) if int.from_bytes(good[at : at + 8], "little") == at // 4096]
    index = [at for at in pages if not good[at + 10] & 4]  # lmdb.h, MDB_page: flags, P_OVERFLOW
    flips = random.Random(atoms)
    chosen = [
        flips.choice(index) + flips.randrange(4096) if number % 2 else flips.randrange(len(good)) for number in range(200)
    ]

    def read_flipped() -> int:
        outcomes: Counter[int] = Counter()
        for at in chosen:
            overwrite(file, at, good[at] ^ 1 << flips.randrange(8))
            outcomes[read_all(tmp_path, expected)] += 1
            overwrite(file, at, good[at])
            assert encode(TeacherCache(tmp_path)[0], plan, 0) == expected[0]
        return int(not outcomes.keys() <= {0, 1} or outcomes[1] < 50)

    assert in_fork(read_flipped) == "exit 0"


def overwrite(file: Path, at: int, value: int) -> None:
    with file.open("r+b") as content:
        content.seek(at)
        content.write(bytes([value]))


# ---- with a dataset


class Systems(Dataset):
    """Systems as fairchem's datasets give them."""

    def __init__(self, systems: int = 10, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.systems = [
            Data(
                atomic_numbers=torch.from_numpy(rng.integers(1, 80, size=atoms)),
                pos=torch.from_numpy(rng.normal(size=(atoms, 3)).astype("f4")),
                cell=10 * torch.eye(3)[None],
                natoms=atoms,
            )
            for atoms in rng.integers(2, 9, size=systems).tolist()
        ]

    def __len__(self) -> int:
        return len(self.systems)

    def __getitem__(self, index: int) -> Data:
        return self.systems[index].clone()


def cached(directory: Path, systems: Systems, **options) -> TeacherCache:
    plan, rng = make_plan(len(systems), **options), np.random.default_rng(1)
    records = [make_record(rng, system.natoms, plan, digest=digest_of(system)) for system in systems.systems]
    return write_cache(directory, plan, records)


def test_digest_of_a_system():
    (system,) = Systems(1).systems
    digest = system_digest(system.atomic_numbers.numpy(), system.pos.numpy(), system.cell.numpy())
    assert digest == digest_of(system) and len(digest) == 16
    assert (
        system_digest(system.atomic_numbers.float().numpy(), system.pos.double().numpy(), system.cell[0].numpy()) == digest
    )
    for name in ("atomic_numbers", "pos", "cell"):
        other = system.clone()
        other[name].view(-1)[-1] += 1
        assert digest_of(other) != digest


def test_a_system_comes_with_its_record(tmp_path):
    systems = Systems()
    cache = cached(tmp_path, systems)
    dataset = CachedDataset(systems, cache, "dataset.train", NODE)
    assert len(dataset) == 10
    for index in range(10):
        embedding = dataset[index][TEACHER_EMBEDDING]
        assert embedding.dtype == torch.float16
        assert np.array_equal(embedding.numpy(), cache[index].values["node_embedding"])
        assert np.array_equal(dataset[index][keys.TEACHER_PAIRS].numpy(), cache[index].pairs)
        assert TEACHER_EMBEDDING not in systems[index]


def test_pairs_of_a_batch_count_its_atoms(tmp_path):
    from fairchem.core.datasets import data_list_collater

    dataset = CachedDataset(Systems(), cached(tmp_path, Systems(), dtype="float32"), "dataset.train", NODE)
    batch = data_list_collater([dataset[index] for index in (4, 1, 7)], otf_graph=True)
    said = CachedTeacher(dataset.cache)(batch)
    first = 0
    expected = []
    for index in (4, 1, 7):
        expected.append(dataset.cache[index].pairs + first)
        first += dataset[index].natoms
    assert np.array_equal(said.edge_index.numpy(), np.concatenate(expected, 1))
    assert said.node_embedding.shape == (first, 8) and said.node_embedding.dtype == torch.float32


def test_a_dataset_of_another_length(tmp_path):
    with pytest.raises(CacheError, match=rf"{tmp_path} holds 10 systems, dataset.train 9\. .*another dataset"):
        CachedDataset(Systems(9), cached(tmp_path, Systems()), "dataset.train", NODE)


def test_a_reordered_dataset(tmp_path):
    systems = Systems()
    cache = cached(tmp_path, systems)
    for system in systems.systems:  # by its digest alone
        system.pos = system.pos + 1e-3
    with pytest.raises(CacheError, match=rf"{tmp_path}: record 0 was made of another system than .*src, seed, first_n"):
        CachedDataset(systems, cache, "dataset.train", NODE)


def test_two_systems_in_another_place(tmp_path):
    """Too few to be among those looked at before the first step: noticed when they are read."""
    systems = Systems(640)
    dataset = CachedDataset(systems, cached(tmp_path, systems), "dataset.train", NODE)
    systems.systems[3], systems.systems[5] = systems.systems[5], systems.systems[3]
    dataset = CachedDataset(systems, dataset.cache, "dataset.train", NODE)
    with pytest.raises(CacheError, match="record 3"):
        dataset[3]


def test_another_atom_count(tmp_path):
    systems = Systems()
    cache = cached(tmp_path, systems)
    removed = systems.systems[0]
    found = removed.natoms
    for name in ("atomic_numbers", "pos"):
        removed[name] = removed[name][1:]
    removed.natoms = found - 1
    with pytest.raises(CacheError, match=f"record 0 holds {found} atoms, system 0 of dataset.train has {found - 1}"):
        CachedDataset(systems, cache, "dataset.train", NODE)


def test_a_cache_without_embeddings_says_so(tmp_path):
    from fairchem.core.datasets import data_list_collater

    cache = cached(tmp_path, Systems(), width=0, fields=("energy", "forces"), has_pairs=False)
    with pytest.raises(CacheError, match=f"{tmp_path} holds energy, forces, and no node_embedding, which terms"):
        CachedDataset(Systems(), cache, "dataset.train", NODE)
    dataset = CachedDataset(Systems(), cache, "dataset.train", ["energy", "forces"])
    said = CachedTeacher(cache)(data_list_collater([dataset[0], dataset[1]], otf_graph=True), ["energy", "forces"])
    records = [cache[index].values for index in (0, 1)]
    assert said.energy.numpy() == pytest.approx([float(values["energy"]) for values in records])
    assert said.forces.numpy() == pytest.approx(np.concatenate([values["forces"] for values in records]))
    assert said.edge_index.shape == (2, 0) and said.node_embedding.shape == (len(said.forces), 0)


# ---- processes


def first(batch: list) -> Data:
    return batch[0]


def test_workers_of_a_loader_read_the_same(tmp_path):
    dataset = CachedDataset(Systems(40), cached(tmp_path, Systems(40)), "dataset.train", NODE)  # has read, so has open files
    loader = DataLoader(dataset, num_workers=2, collate_fn=first)
    for _ in range(2):
        for index, system in enumerate(loader):
            for name in (TEACHER_EMBEDDING, keys.TEACHER_PAIRS):
                assert torch.equal(system[name], dataset[index][name])
    dataset.cache.close()
    assert sum(1 for _ in loader) == 40


def test_a_cache_is_read_in_a_fork_and_after_it(cache):
    opened = TeacherCache(cache)
    expected = content(cache)
    assert in_fork(read_all, cache, expected) == "exit 0"

    def read_inherited() -> int:
        return int(any(encode(opened[index], opened.plan, index) != wanted for index, wanted in enumerate(expected)))

    opened[0]
    assert in_fork(read_inherited) == "exit 0"
    assert content(cache) == expected


def test_a_cached_dataset_can_be_pickled(tmp_path):
    dataset = CachedDataset(Systems(), cached(tmp_path, Systems()), "dataset.train", NODE)
    copied = pickle.loads(pickle.dumps(dataset))
    for index in range(10):
        assert torch.equal(copied[index][TEACHER_EMBEDDING], dataset[index][TEACHER_EMBEDDING])


def test_a_spawned_process_reads_a_pickled_cache(cache, tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(TeacherCache(cache)))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb'))[9].digest.hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == TeacherCache(cache)[9].digest.hex(), done.stderr
