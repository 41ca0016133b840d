"""The teacher cache on disk: what is written is read, and what was not written is refused. No model is run."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import ALL_FIELDS, RECORDS, content, make_plan, make_record, make_records, read_all, write_cache
from killing import in_fork
from tolerances import SUM_OF_FLOAT64
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.keys import NODE_EMBEDDING
from fairchem_crack.teacher.cache import (
    CacheError,
    CacheWriter,
    Plan,
    Record,
    TeacherCache,
    encode,
    finish,
    system_digest,
    written_chunks,
)
from fairchem_crack.teacher.cache.index import HEAD, PAGE, ROW, Row, find, row_bytes, write_index
from fairchem_crack.teacher.cache.records import decode
from fairchem_crack.teacher.cache.sums import Sums
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, digest_of

NODE = [NODE_EMBEDDING]
TEACHER_EMBEDDING = keys.TEACHER_PREFIX + NODE_EMBEDDING


@pytest.fixture
def cache(tmp_path) -> Path:
    """The directory of a finished cache of ten small systems in three chunks."""
    write_cache(tmp_path / "cache", make_plan(), make_records(make_plan()))
    return tmp_path / "cache"


def assert_holds(record: Record, expected: Record, plan: Plan) -> None:
    """Bit-equal to what was given, cast to the types of the plan."""
    assert (record.digest, record.atoms) == (expected.digest, expected.atoms)
    assert tuple(record.values) == plan.fields
    for name, value in record.values.items():
        cast = np.asarray(expected.values[name]).astype(plan.type_of(name))
        assert value.dtype == cast.dtype and value.shape == cast.shape and value.tobytes() == cast.tobytes(), name
    if plan.has_pairs:
        assert np.array_equal(record.pairs, expected.pairs)


def decoded(data: bytes, plan: Plan, atoms: int, names=None) -> Record:
    return decode(lambda begin, end: data[begin:end], plan, atoms, len(data), names)


# ---- a record


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("atoms", [1, 2, 17, 256, 257])
def test_a_record_is_what_was_encoded(atoms, dtype):
    plan = make_plan(fields=ALL_FIELDS, vector_width=5, higher_rows=12, dtype=dtype)
    assert plan.lmax == 3
    record = make_record(np.random.default_rng(atoms), atoms, plan, pairs=300)
    data = encode(record, plan)
    assert_holds(decoded(data, plan, atoms), record, plan)
    some = decoded(data, plan, atoms, ["forces"])
    assert list(some.values) == ["forces"] and some.pairs.shape == (2, 0)
    itemsize = np.dtype(dtype).itemsize
    numbers = 8 + atoms * (12 + 4 + itemsize * (plan.width + 15 * plan.vector_width) + 4 * (3 + plan.width) + 4 * 6)
    assert len(data) == 64 + numbers + 2 * record.pairs.shape[1] * (1 if atoms <= 256 else 2)


def test_a_record_without_embeddings_and_pairs():
    plan = make_plan(fields=("energy", "forces"), width=0, has_pairs=False)
    record = make_record(np.random.default_rng(0), 5, plan)
    data = encode(record, plan)
    assert_holds(decoded(data, plan, 5), record, plan)
    assert decoded(data, plan, 5).pairs.shape == (2, 0)


@pytest.mark.parametrize("name", ALL_FIELDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, name, value):
    plan = make_plan(4, fields=ALL_FIELDS, vector_width=2, higher_rows=5)
    records = make_records(plan)
    records[2].values[name][...] = value
    writer = CacheWriter(tmp_path, plan)
    with pytest.raises(CacheError, match=rf"{RECORDS}: system 2: {name} is not finite"):
        writer.write(0, records)
    writer.close()
    assert written_chunks(tmp_path, plan) == set()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs": np.array([[0, 1, 0], [2, 3, 2]])}, "holds a pair twice"),
        *(
            ({"pairs": np.array(pair)[:, None]}, "pairs must be 0 <= i < j < 4")
            for pair in [(0, 4), (0, 300), (-1, 2), (2, 1), (2, 2)]
        ),
        ({"forces": np.zeros((3, 4))}, r"forces has the shape \(3, 4\), expected \(4, 3\)"),
        ({"node_embedding": np.full((4, 8), 7e4)}, "node_embedding is not finite in float16"),
    ],
)
def test_what_cannot_be_is_not_written(change, message):
    record = make_record(np.random.default_rng(0), 4, make_plan())
    pairs = change.pop("pairs", record.pairs)
    with pytest.raises(ValueError, match=message):
        encode(dataclasses.replace(record, pairs=pairs, values={**record.values, **change}), make_plan())


def test_responses_to_different_displacements_are_not_written():
    plan = make_plan(fields=ALL_FIELDS, vector_width=2, higher_rows=5)
    record = make_record(np.random.default_rng(0), 4, plan)
    record.values["force_response"][2, 1] += 1e-3
    with pytest.raises(ValueError, match="embedding_response and force_response are of different displacements"):
        encode(record, plan)


def test_every_altered_bit_of_a_record_is_noticed():
    plan = make_plan()
    data = encode(make_record(np.random.default_rng(0), 3, plan), plan)
    for at in range(8 * len(data)):
        altered = bytearray(data)
        altered[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match="is damaged"):
            decoded(bytes(altered), plan, 3)
    for size in (0, 3, 20, len(data) - 1, len(data) - 2):
        with pytest.raises(ValueError, match=r"has .* bytes, which|is damaged"):
            decoded(data[:size], plan, 3)


# ---- the index


@pytest.mark.parametrize("count, kind", [(0, "any"), (1, "any"), (5000, "any"), (300, "one page")])
def test_the_index_finds_each_row_and_no_other(tmp_path, count, kind):
    """Also where all digests belong to one page, whose rows then fill the pages after it."""
    rng = np.random.default_rng(count)
    digests = [(b"\x80\0\0" if kind == "one page" else b"") + rng.bytes(16) for _ in range(count)]
    rows = [Row(digest[:16], number, 7 * number, 100, 3, 0) for number, digest in enumerate(digests)]
    with (tmp_path / "index").open("wb") as file:
        pages = write_index(file, np.frombuffer(b"".join(map(row_bytes, rows)), ROW), bytes(16))
    size = (tmp_path / "index").stat().st_size
    assert size % PAGE == 0 and size >= (pages + 1) * PAGE and size <= 2 * PAGE + 2.1 * count * ROW.itemsize
    with (tmp_path / "index").open("rb") as file:
        assert [find(file.fileno(), pages, row.digest) for row in rows] == rows
        assert find(file.fileno(), pages, b"\x80\0\0" + bytes(12) + b"\1") is None


def test_an_index_whose_pages_are_all_full_has_an_end(tmp_path):
    (tmp_path / "index").write_bytes(HEAD.pack(b"crackidx", bytes(16)).ljust(PAGE, b"\0") + 3 * bytes([7]) * PAGE)
    with (tmp_path / "index").open("rb") as file:
        assert find(file.fileno(), 1, bytes(15) + b"\1") is None


# ---- a cache


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("systems", [1, 4, 10])
def test_a_cache_holds_what_was_written(tmp_path, systems, shards):
    plan = make_plan(systems, fields=ALL_FIELDS, vector_width=2, graph={"cutoff": 5.0, "max_neighbors": 8, "use_pbc": True})
    records = make_records(plan)
    cache = write_cache(tmp_path, plan, records, shards=shards)
    assert cache.plan == plan and len(cache) == systems
    for record, expected in zip(cache.records(), records):
        assert_holds(record, expected, plan)
        assert_holds(cache[expected.digest], expected, plan)
    assert cache.get(bytes(16)) is None
    with pytest.raises(KeyError):
        cache[bytes(16)]


def test_only_the_requested_fields_are_read(tmp_path, monkeypatch):
    plan = make_plan(1, width=3000, dtype="float32")
    (record,) = make_records(plan)
    cache, read, pread = write_cache(tmp_path, plan, [record]), [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read.append(size) or pread(file, size, at))
    forces = cache.get(record.digest, ["forces", "pairs"])
    assert forces.values.keys() == {"forces"} and np.array_equal(forces.pairs, record.pairs)
    assert sum(read) < PAGE + 500 < 12_000 * record.atoms


@pytest.mark.parametrize("shards", [1, 3])
def test_mean_and_std_of_the_embedding(tmp_path, shards):
    plan = make_plan(100, dtype="float32")
    records = make_records(plan)
    cache = write_cache(tmp_path, plan, records, shards=shards)
    given = np.concatenate([record.values["node_embedding"] for record in records])
    embeddings = given.astype(plan.dtype).astype(float)  # as they are stored
    np.testing.assert_allclose(cache.embedding_mean, embeddings.mean(0), rtol=SUM_OF_FLOAT64, atol=1e-14)  # of order 0.01
    np.testing.assert_allclose(cache.embedding_std, embeddings.std(0), rtol=1e-10)  # of sums that are merged


def test_channels_that_float16_would_lose_are_counted(tmp_path, caplog):
    """A large mean with little on top; a constant has nothing to lose."""
    rng, values = np.random.default_rng(0), np.zeros((500, 3))
    values[:] = [0.0, 100.0, 100.0]
    values[:, :2] += rng.normal(size=(500, 2)) * [1e-3, 0.01]
    sums = Sums(3)
    sums.add(values)
    assert (sums.lost_in("float16"), sums.lost_in("float32")) == (1, 0)
    plan = make_plan(4, width=3)
    records = make_records(plan, sizes=(5, 6))
    for number, record in enumerate(records):
        record.values["node_embedding"] = values[5 * number :][:5]
    with caplog.at_level(logging.WARNING):
        write_cache(tmp_path, plan, records)
    assert "1 of 3 channels vary by less than 0.001 of their mean" in caplog.text


def test_equal_systems_with_unequal_outputs_are_refused(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    records[7] = dataclasses.replace(records[2], values=dict(records[2].values))
    cache = write_cache(tmp_path / "same", plan, records)
    assert_holds(cache[records[2].digest], records[2], plan)
    records[7].values["energy"] = records[7].values["energy"] + 1
    with pytest.raises(CacheError, match=r"systems [27] and [27] are the same .*, and the teacher's energy differ"):
        write_cache(tmp_path / "other", plan, records)


def test_bytes_are_those_of_the_documentation(tmp_path):
    """Read with numpy only, by docs/cache.md."""
    expected = make_records(make_plan())[5]
    write_cache(tmp_path, make_plan(), make_records(make_plan()))
    row = np.fromfile(tmp_path / "shard.0000.rows", ROW, offset=32)[5]
    data = (tmp_path / RECORDS).read_bytes()[int(row["offset"]) :][: int(row["length"])]
    atoms, pairs = np.frombuffer(data, "<u4", 2)
    assert (atoms, pairs, row["atoms"], row["position"]) == (expected.atoms, expected.pairs.shape[1], atoms, 5)
    assert data[8:24] == row["digest"].tobytes() == expected.digest
    at = 24 + 4 * 6
    for name, dtype, size in (
        ("energy", "<f8", 1),
        ("forces", "<f4", 3 * atoms),
        ("atom_energies", "<f4", atoms),
        ("node_embedding", "<f2", 8 * atoms),
    ):
        values = np.frombuffer(data, dtype, size, at)
        assert np.array_equal(values, expected.values[name].astype(dtype).ravel()), name
        at += values.nbytes
    assert np.array_equal(np.frombuffer(data, "u1", 2 * pairs, at).reshape(2, -1), expected.pairs)
    assert len(data) == at + 2 * pairs


def test_the_documented_writers(tmp_path, monkeypatch):
    """The two blocks of docs/cache.md, with random numbers as the other framework: their caches are the same."""
    from ase.build import molecule

    rng, answers = np.random.default_rng(0), []

    def outputs(atoms):
        n = len(atoms)
        pairs = np.stack(np.triu_indices(n, 1))
        answers.append((rng.normal(size=(n, 64)), rng.normal(size=n), rng.normal(size=(n, 3)), pairs))
        return answers[-1]

    text = (Path(__file__).parents[1] / "docs/cache.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "run_teacher" in block]
    systems = [molecule(name) for name in ("H2O", "CH4", "H", "C6H6") * 5]
    for number, atoms in enumerate(systems):
        atoms.positions += 0.1 * number
    monkeypatch.chdir(tmp_path)
    namespace = {"systems": systems, "run_teacher": outputs}
    exec(blocks[0], namespace)
    again = iter(list(answers))
    exec(blocks[1], {**namespace, "run_teacher": lambda atoms: next(again)})
    first, second = TeacherCache(Path("my_cache")), TeacherCache(Path("numpy_cache"))
    assert len(first) == len(second) == len(systems) == 20
    for record, numpy_record, atoms, (embedding, energies, forces, pairs) in zip(
        first.records(), second.records(), systems, answers
    ):
        assert encode(record, first.plan) == encode(numpy_record, second.plan)
        assert record.digest == system_digest(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        assert float(record.values["energy"]) == pytest.approx(energies.sum(), rel=SUM_OF_FLOAT64)
        assert np.array_equal(record.values["forces"], forces.astype("f4"))
        assert np.array_equal(record.values["node_embedding"], embedding.astype("f2"))
        assert np.array_equal(record.pairs, pairs)
    np.testing.assert_array_equal(second.embedding_mean, first.embedding_mean)
    np.testing.assert_array_equal(second.embedding_std, first.embedding_std)


def test_a_cache_is_written_and_read_with_numpy_only(tmp_path):
    """In an environment of another framework, where no other package of ours is installed."""
    code = f"""
import importlib.metadata, json, sys
for name in ("torch", "fairchem", "ase", "lmdb", "scipy", "torch_geometric", "yaml"): sys.modules[name] = None
def version(name): raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from caches import make_plan, make_records, write_cache
cache = write_cache(Path({str(tmp_path)!r}) / "cache", make_plan(), make_records(make_plan()))
print(len(list(cache.records())), json.loads((cache.directory / "header.json").read_text())["versions"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.startswith("10 {'fairchem-crack': None, 'fairchem-core': None, 'torch': None"), done.stderr


@pytest.mark.parametrize(
    "systems, sizes, width, pairs, limit",
    [(320, (60, 91), 128, 700, 1.02), (300, (13, 16), 48, 70, 1.15)],
    ids=["OC20", "demo"],
)
def test_size_on_disk(tmp_path, systems, sizes, width, pairs, limit):
    plan = make_plan(systems, width=width, chunk=Plan.chunk)
    rng = np.random.default_rng(0)
    records = [make_record(rng, int(rng.integers(*sizes)), plan, pairs=pairs) for _ in range(systems)]
    write_cache(tmp_path, plan, records)
    arrays = sum(8 + record.atoms * (12 + 4 + 2 * width) + 2 * record.pairs.shape[1] for record in records)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) / arrays <= limit


# ---- writing


def test_a_wrong_chunk_is_not_written(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    writer = CacheWriter(tmp_path, plan)
    for chunk, given in ((3, records[:4]), (7, records[:4]), (-1, records[:4]), (0, records[:3]), (2, records[:4]), (0, [])):
        with pytest.raises(CacheError, match=f"chunk {chunk} of 3 came with {len(given)} records"):
            writer.write(chunk, given)
    writer.close()
    assert written_chunks(tmp_path, plan) == set()


def test_a_cache_without_all_chunks_is_not_finished(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    writer = CacheWriter(tmp_path, plan)
    writer.write(1, records[4:8])
    writer.close()
    with pytest.raises(CacheError, match="2 of 3 chunks are missing"):
        finish(tmp_path, plan)
    with pytest.raises(CacheError, match=f"{tmp_path} is unfinished"):
        TeacherCache(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *({"fingerprint": "g"}, {"width": 9}, {"dtype": "float32"}, {"systems": 11}, {"graph.cutoff": 4.0}, {"chunk": 5}),
        *({"precision": "bfloat16"}, {"identity.config.avg_degree": 23.4}, {"identity.source": "another file"}),
    ],
)
def test_resuming_with_another_plan_is_refused(tmp_path, change):
    ((name, value),) = change.items()
    for key in reversed(name.split(".")):
        value = {key: value}
    CacheWriter(tmp_path, make_plan()).close()
    CacheWriter(tmp_path, make_plan()).close()
    with pytest.raises(CacheError, match=f"{tmp_path} was begun with {name} .* now requested with"):
        CacheWriter(tmp_path, make_plan(**value))


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
    zeros = torch.zeros(system.natoms, dtype=torch.int)
    same = {"pbc": torch.ones(3, dtype=torch.bool), "tags": zeros, "fixed": zeros, "charge": 0, "spin": torch.tensor([0.0])}
    for name, value in same.items():
        system[name] = value
    assert digest_of(system) == digest  # as where they are not given
    others = {"pbc": torch.tensor([True, True, False]), "tags": zeros + 1, "fixed": zeros + 1, "charge": 1, "spin": 2}
    others.update({name: system[name] + 1 for name in ("atomic_numbers", "pos", "cell")})
    others.update(initial_magmoms=torch.ones(system.natoms))
    changed = set()
    for name, value in others.items():
        altered = system.clone()
        altered[name] = value
        changed.add(digest_of(altered))
    assert len(changed - {digest}) == len(others)


def test_a_system_comes_with_its_record(tmp_path):
    systems = Systems()
    cache = cached(tmp_path, systems)
    dataset = CachedDataset(systems, cache, "dataset.train", NODE)
    assert len(dataset) == 10
    for index in range(10):
        embedding = dataset[index][TEACHER_EMBEDDING]
        assert embedding.dtype == torch.float16
        record = cache[digest_of(systems[index])]
        assert np.array_equal(embedding.numpy(), record.values["node_embedding"])
        assert np.array_equal(dataset[index][keys.TEACHER_PAIRS].numpy(), record.pairs)
        assert TEACHER_EMBEDDING not in systems[index]


def test_pairs_of_a_batch_count_its_atoms(tmp_path):
    from fairchem.core.datasets import data_list_collater

    dataset = CachedDataset(Systems(), cached(tmp_path, Systems(), dtype="float32"), "dataset.train", NODE)
    batch = data_list_collater([dataset[index] for index in (4, 1, 7)], otf_graph=True)
    outputs = CachedTeacher(dataset.cache)(batch)
    first = 0
    expected = []
    for index in (4, 1, 7):
        expected.append(dataset.cache[digest_of(dataset[index])].pairs + first)
        first += dataset[index].natoms
    assert np.array_equal(outputs.edge_index.numpy(), np.concatenate(expected, 1))
    assert outputs.node_embedding.shape == (first, 8) and outputs.node_embedding.dtype == torch.float32


def test_any_order_and_any_part_of_the_data_find_their_records(tmp_path):
    cache = cached(tmp_path, Systems())
    systems = Systems()
    systems.systems = [systems.systems[index] for index in (7, 2, 9, 0)]
    dataset = CachedDataset(systems, cache, "dataset.train", NODE)
    records = list(cache.records())
    for index, position in enumerate((7, 2, 9, 0)):
        assert np.array_equal(dataset[index][TEACHER_EMBEDDING].numpy(), records[position].values["node_embedding"])
    assert len(dataset) == 4


def test_a_dataset_that_is_larger_than_the_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match=rf"{tmp_path} holds 10 systems, dataset.train 11\. .*write one for all of it"):
        CachedDataset(Systems(11), cached(tmp_path, Systems()), "dataset.train", NODE)


@pytest.mark.parametrize("name", ["pos", "atomic_numbers", "cell"])
def test_another_system_is_refused(tmp_path, name):
    systems = Systems()
    cache = cached(tmp_path, systems)
    for system in systems.systems:
        system[name] = system[name] + (1 if name == "atomic_numbers" else 1e-3)
    with pytest.raises(CacheError, match=f"{tmp_path} has no record of system 0 of dataset.train"):
        CachedDataset(systems, cache, "dataset.train", NODE)


def test_a_system_that_the_first_look_misses_is_named_when_read(tmp_path):
    """64 are looked at before the first step."""
    systems = Systems(640)
    cache = cached(tmp_path, systems)
    systems.systems[3].pos += 1
    dataset = CachedDataset(systems, cache, "dataset.train", NODE)
    with pytest.raises(CacheError, match=r"no record of system 3 of dataset\.train"):
        dataset[3]


def test_a_cache_without_embeddings_serves_other_terms(tmp_path):
    from fairchem.core.datasets import data_list_collater

    cache = cached(tmp_path, Systems(), width=0, fields=("energy", "forces"), has_pairs=False)
    with pytest.raises(CacheError, match=f"{tmp_path} holds energy, forces, and no node_embedding, which terms"):
        CachedDataset(Systems(), cache, "dataset.train", NODE)
    dataset = CachedDataset(Systems(), cache, "dataset.train", ["energy", "forces"])
    outputs = CachedTeacher(cache)(data_list_collater([dataset[0], dataset[1]], otf_graph=True), ["energy", "forces"])
    records = [cache[digest_of(dataset[index])].values for index in (0, 1)]
    assert outputs.energy.numpy() == pytest.approx([float(values["energy"]) for values in records])
    assert outputs.forces.numpy() == pytest.approx(np.concatenate([values["forces"] for values in records]))
    assert outputs.edge_index.shape == (2, 0) and outputs.node_embedding.shape == (len(outputs.forces), 0)


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
    opened, expected = TeacherCache(cache), content(cache)
    assert in_fork(read_all, cache, expected) == "exit 0"
    assert in_fork(lambda: int([encode(record, opened.plan) for record in opened.records()] != expected)) == "exit 0"
    opened.close()
    assert [encode(record, opened.plan) for record in opened.records()] == content(cache) == expected


def test_a_cached_dataset_can_be_pickled(tmp_path):
    dataset = CachedDataset(Systems(), cached(tmp_path, Systems()), "dataset.train", NODE)
    copied = pickle.loads(pickle.dumps(dataset))
    for index in range(10):
        assert torch.equal(copied[index][TEACHER_EMBEDDING], dataset[index][TEACHER_EMBEDDING])


def test_a_spawned_process_reads_a_pickled_cache(cache, tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(TeacherCache(cache)))
    code = (
        f"import pickle; print(*(r.digest.hex() for r in pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb')).records()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == [record.digest.hex() for record in TeacherCache(cache).records()], done.stderr
