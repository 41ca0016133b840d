"""Labelling with a teacher of another framework: cache, digests, what is refused. No framework runs."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stub_labeller
import yaml
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.db import connect
from ase.geometry import wrap_positions
from ase.io import write
from caches import RECORDS, content
from conftest import DATASET, distill_config
from fairchem.core.datasets import AseDBDataset
from fairchem.core.preprocessing import atoms_to_graphs
from stub_labeller import CALLS, outputs_of
from tolerances import SUM_OF_FLOAT64
from torch.utils.data import Subset

from fairchem_crack.commands.cli import main as fairchem_crack
from fairchem_crack.commands.init.data import look_at
from fairchem_crack.config import DistillConfig, TeacherConfig
from fairchem_crack.evaluation.teacher_caches import TeacherCaches
from fairchem_crack.io.datasets import Records, open_dataset
from fairchem_crack.io.wrapping import wrapped
from fairchem_crack.teacher.cache import CacheError, TeacherCache
from fairchem_crack.teacher.cached import CachedDataset, digest_of
from fairchem_crack.teacher.label import Outputs, job, protocol
from fairchem_crack.teacher.label.command import main
from fairchem_crack.teacher.label.systems import EXPORTED, Systems
from fairchem_crack.teacher.labels import TeacherLabels, validation_labels

STUB = ("--teacher", "stub_labeller:Stub")
FLOAT32 = 1e-6  # of a value that is kept in it


def slab(seed: int = 0) -> Atoms:
    """Fixed and free atoms, tags, and atoms that lie outside the cell."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=4.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.rattle(0.1, seed=seed)
    atoms.positions[::3] -= 2 * atoms.cell[0]
    return atoms


def kinds() -> list[Atoms]:
    """What fairchem reads in ways of its own."""
    untagged, charged = bulk("Cu", cubic=True), molecule("CO", vacuum=3.0)
    untagged.rattle(0.1)
    charged.info.update(charge=1, spin=2)
    layer = slab()
    layer.pbc = (True, True, False)
    return [slab(), untagged, layer, molecule("H2O"), charged]


def database(file: Path, systems: list[Atoms]) -> Path:
    with connect(file) as opened:
        for number, atoms in enumerate(systems):
            opened.write(atoms, data={**atoms.info, "sid": f"s{number}"})
    return file


def label(data: Path, directory: Path, *flags: str, teacher: str = "stub_labeller:Stub") -> TeacherCache:
    main(["--teacher", teacher, "--data", str(data), "--output", str(directory), "--chunk", "2", *flags])
    return TeacherCache(directory)


@pytest.fixture
def slabs(tmp_path) -> Path:
    """Ten slabs in five chunks."""
    return database(tmp_path / "train.db", [slab(seed) for seed in range(10)])


# ---- which record is whose


def test_wrapping_is_that_of_ase_but_for_faces():
    for atoms in kinds():
        atoms.positions += np.random.default_rng(0).normal(scale=20, size=atoms.positions.shape)
        cell = atoms.get_cell(complete=True).array
        expected = wrap_positions(atoms.positions, cell, atoms.pbc, eps=0)
        np.testing.assert_allclose(wrapped(atoms.positions, cell, atoms.pbc), expected, atol=SUM_OF_FLOAT64)
    corner = wrapped(np.array([[4.0, -4.0, 8.0]]), np.diag([4.0, 4.0, 4.0]), [True, True, False])
    assert corner.tolist() == [[0.0, 0.0, 8.0]]


def test_a_system_that_fairchem_wraps_otherwise_is_looked_up(tmp_path, slabs, monkeypatch):
    """As on another processor: an atom on a face comes out on its other side."""
    cache = label(slabs, tmp_path / "cache")

    def to_the_other_side(positions, cell, pbc, eps):
        moved = wrap_positions(positions, cell, pbc, eps=eps)
        moved[0] += cell[0]
        return moved

    monkeypatch.setattr(atoms_to_graphs, "wrap_positions", to_the_other_side)
    dataset = Subset(AseDBDataset({"src": str(slabs)}), [3, 7])
    assert cache.get(digest_of(dataset[1])) is None
    expected = outputs_of(Systems([slabs])[7].atoms).energy
    assert float(CachedDataset(dataset, cache, "dataset.train", ["energy"])[1].teacher_energy) == expected
    labelled = TeacherLabels(dataset, cache, {"energy": "energy"}, "dataset.val", "teacher")
    assert float(labelled[1].energy) == np.float32(expected)
    caches = TeacherCaches([cache.directory])
    assert float(caches.record(dataset[1], 1, "val", dataset, ["energy"]).values["energy"]) == expected
    assert look_at(slabs, 10, cache).labels == "teacher"


@pytest.mark.parametrize("suffix", ["db", "json", "extxyz"])
def test_digests_are_those_of_fairchems_datasets(tmp_path, suffix):
    file = tmp_path / f"data.{suffix}"
    if suffix == "extxyz":
        write(file, kinds())
        dataset = open_dataset({"format": "ase_read_multi", "src": str(tmp_path), "no_shuffle": True})
    else:
        dataset = AseDBDataset({"src": str(database(file, kinds()))})
    assert [system.digest for system in Systems([file])] == [digest_of(dataset[index]) for index in range(5)]


def test_options_of_the_dataset_are_in_the_digest(tmp_path):
    file = database(tmp_path / "data.db", [atoms for atoms in kinds() if "charge" in atoms.info])
    options = {"a2g_args": {"r_data_keys": ["charge", "spin"]}, "atoms_transform_args": {"skip_always": True}}
    expected = digest_of(AseDBDataset({"src": str(file), **options})[0])
    assert Systems([file], ["charge", "spin"], is_untagged=True)[0].digest == expected
    assert len({expected, Systems([file])[0].digest, Systems([file], is_untagged=True)[0].digest}) == 3


def test_a_training_finds_the_records_in_any_order(tmp_path, slabs):
    cache = label(slabs, tmp_path / "cache", "--vectors", "--dtype", "float32")
    part = database(tmp_path / "part.db", [slab(seed) for seed in (7, 2, 5)])
    names = ["energy", "forces", "atom_energies", "node_embedding", "vector_embedding"]
    dataset = CachedDataset(AseDBDataset({"src": str(part)}), cache, "dataset.train", names)
    for index in range(3):
        system = dataset[index]
        atoms = Atoms(system.atomic_numbers, system.pos, cell=system.cell[0], pbc=True)
        for name, value in outputs_of(atoms).fields.items():
            np.testing.assert_allclose(system[f"teacher_{name}"], value, rtol=FLOAT32, atol=10 * FLOAT32)
        assert np.array_equal(system.teacher_pair_index, outputs_of(atoms).pairs)
    other = database(tmp_path / "other.db", [slab(3), slab(11)])
    with pytest.raises(CacheError, match=r"no record of system 1 of dataset\.train \(sid s1\)"):
        CachedDataset(AseDBDataset({"src": str(other)}), cache, "dataset.train", names)


def test_exported_systems_keep_digest_labels_and_ids(tmp_path, data):
    """Of LMDBs, whose positions fairchem does not wrap."""
    config, exported = tmp_path / "student.yml", tmp_path / "val.db"
    config.write_text(yaml.safe_dump({**distill_config(data, tmp_path / "no teacher"), "trainer": "ocp"}))
    command = ["export-data", "--config-yml", str(config), "--output", str(exported), "--split", "val"]
    fairchem_crack(command)
    gc.collect()
    with Records({**DATASET, "src": str(data / "val_id")}) as records:
        systems = {system.sid: system for system in records.first(6)}
    rows = list(connect(exported).select())
    assert sorted(row.data.sid for row in rows) == sorted(systems)
    for row, exported_system in zip(rows, Systems([exported])):
        atoms, system = row.toatoms(), systems[row.data.sid]
        assert exported_system.digest == digest_of(system)
        assert row.energy == pytest.approx(float(system.energy), rel=FLOAT32)
        assert np.array_equal(row.forces, system.forces) and np.array_equal(atoms.get_tags(), system.tags)
        assert np.array_equal(atoms.constraints[0].index, np.flatnonzero(system.fixed))
    with pytest.raises(SystemExit, match=r"export-data: --output .*val\.db: is there"):
        fairchem_crack(command)
    changed = rows[0].toatoms()
    changed.positions[-1] += 0.1
    with connect(tmp_path / "changed.db") as opened:
        opened.write(changed, data=rows[0].data)
    with pytest.raises(ValueError, match=rf"row 1 of changed\.db .*has changed .* without {EXPORTED}"):
        Systems([tmp_path / "changed.db"])[0]


# ---- labelling


def test_processes_and_interruptions_change_no_record(tmp_path, slabs, monkeypatch, capsys):
    whole = content(label(slabs, tmp_path / "whole").directory)
    assert content(label(slabs, tmp_path / "two", "--processes", "2").directory) == whole
    calls = tmp_path / "calls"
    monkeypatch.setenv(CALLS, str(calls))
    (tmp_path / "two/header.json").unlink()
    rows = tmp_path / "two/shard.0000.rows"
    rows.write_bytes(rows.read_bytes()[: -2 * 48])  # a chunk is lost
    assert content(label(slabs, tmp_path / "two").directory) == whole
    assert len(calls.read_text().splitlines()) == 2 + 2  # the first system, twice, says what a cache holds
    label(slabs, tmp_path / "two")
    assert "is complete; nothing to do" in capsys.readouterr().out
    records = tmp_path / "two" / RECORDS
    records.write_bytes(records.read_bytes()[:-1] + b"\7")
    assert content(label(slabs, tmp_path / "two", "--repair").directory) == whole


def test_the_plan_says_whose_the_records_are(tmp_path, slabs):
    plan = label(slabs, tmp_path / "cache").plan
    source = hashlib.sha256(Path(stub_labeller.__file__).read_bytes()).hexdigest()
    assert (plan.teacher, plan.fingerprint) == ("stub_labeller:Stub", "stub")
    assert plan.identity == {"source": source, "stub": "1.0"}
    assert (plan.width, plan.vector_width, plan.graph, plan.has_pairs) == (4, 0, {"cutoff": 4.0}, True)
    with pytest.raises(SystemExit, match="was begun with teacher stub_labeller:Stub, and is now requested with"):
        label(slabs, tmp_path / "cache", teacher="stub_labeller:Turning")
    with pytest.raises(SystemExit, match="was begun with systems 10, and is now requested with 1"):
        label(database(tmp_path / "other.db", [slab(3)]), tmp_path / "cache")


@pytest.mark.parametrize("teacher, width", [("stub_labeller:emt", 0), ("stub_labeller:lists", 4)])
def test_any_calculator_or_function_is_a_teacher(tmp_path, teacher, width):
    data = database(tmp_path / "data.db", [slab(1), slab(2)])
    cache = label(data, tmp_path / "cache", teacher=teacher)
    assert cache.plan.width == width and cache.plan.has_pairs == (width > 0)
    for system, record in zip(Systems([data]) if width else [], cache.records()):
        np.testing.assert_allclose(record.values["forces"], outputs_of(system.atoms).forces, rtol=FLOAT32, atol=FLOAT32)
    if not width:
        with pytest.raises(CacheError, match="holds energy, forces, and no node_embedding, which terms"):
            CachedDataset(AseDBDataset({"src": str(data)}), cache, "dataset.train", ["node_embedding"])


@pytest.mark.parametrize(
    "teacher, message",
    [
        (
            "stub_labeller:Stub",
            r"does not know an element of 1 of 6 systems: row 6 .*Au \(atomic number 79\)\. Leave them out",
        ),
        (
            "stub_labeller:raises",
            r"row 5 of data\.db \(sid s4\), N2: the teacher fails \(KeyError: 'N'\)\. Leave the system",
        ),
        ("stub_labeller:not_finite", r"row 5 .*N2: the teacher returned forces not finite\. Leave the system out"),
        ("stub_labeller:unlike_its_sum", r"N2: .*atom_energies whose sum is .* eV, and the energy is 7 eV"),
        ("stub_labeller:without_embedding", r"row 5 .*: the teacher .* gives no node_embedding, as it did for others"),
        ("stub_labeller:misshapen", r"node_embedding of shape \(3, 4\), expected \(N, D\) with N = 2"),
        (
            "sevennet:7net-0",
            r"--teacher sevennet:7net-0: No module named 'sevenn'.* Run it where `sevenn>=0.11` is installed",
        ),
        ("nequix:a.pt", r"--teacher nequix:a.pt: No module named .*\. Run it where `nequix\[torch\]>=0\.3` is installed"),
        (
            "fairchem2:uma-s-1p1@oc20",  # in the student's own environment
            r"fairchem-core 1\..* is installed here, which is too old\. Run it where `fairchem-core>=2\.16` is installed",
        ),
        ("sevennet", r"expected a model, for example sevennet:7net-0"),
        (
            "stub_labeller:fails_to_load",
            r"--teacher .*: `fails_to_load` fails; OSError: no weights",
        ),
        ("stub_labeller:outputs_of", r"`outputs_of` fails; TypeError: .*'atoms'\. Expected package\.module:function, which"),
        ("stub_labeller:a_class", r"`a_class` returned the class Stub, no instance\. Expected package\.module:function"),
        ("stub_labeller:a_number", r"`a_number` returned int\. Expected package\.module:function"),
        (
            "stub_labeller:random",
            r"row 1 .*: the teacher's node_embedding changed by .* when it was called again\. .*dropout",
        ),
        ("stub_labeller:with_more", r"row 5 .*: the teacher .* gives atom_energies, pairs, and gave none for others"),
        ("stub_labeller:without_list", r"The teacher returned NoneType, expected a list of .*label\.Outputs"),
        ("stub_labeller:tuples", r"The teacher returned a list with tuple, expected a list of .*label\.Outputs"),
        ("stub_labeller:words", r"row 1 .*: the teacher returned energy of type <U3, expected numbers"),
        ("stub_labeller:no_array", r"row 1 .*: the teacher returned what is no array \(RuntimeError: requires grad\)"),
        ("stub_labeller:with_edges", r"row 1 .*: the teacher returned pairs that are not .* 0 <= i < j < 8, each pair once"),
        ("stub_labeller:nothing", r"--teacher stub_labeller:nothing: expected .* AttributeError"),
        ("emt", r"--teacher emt: expected sevennet:7net-0, .* or package\.module:function"),
    ],
)
def test_what_cannot_be_labelled_is_named(tmp_path, teacher, message):
    data = database(tmp_path / "data.db", [*(slab(seed) for seed in range(4)), molecule("N2"), bulk("Au")])
    with pytest.raises(SystemExit, match=f"label: .*{message}"):
        label(data, tmp_path / "cache", teacher=teacher)


@pytest.mark.parametrize(
    "name, message",
    [("no.db", "there is no such file"), ("text.db", "cannot read it .*export-data`"), ("empty.db", "holds no system")],
)
def test_data_that_cannot_be_read_are_named(tmp_path, name, message):
    (tmp_path / "text.db").write_text("text")
    with connect(tmp_path / "empty.db") as opened:
        del opened[opened.write(bulk("Cu"))]
    with pytest.raises(SystemExit, match=rf"label: --data {tmp_path}/{name}: .*{message}"):
        label(tmp_path / name, tmp_path / "cache")


@pytest.mark.parametrize(
    "atoms, message",
    [
        (Atoms(), "no atoms"),
        (Atoms("Cu", [[np.nan, 0, 0]]), "positions or a cell that are not finite"),
        (Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]], cell=[9, 9, 0], pbc=True), "periodic, and its cell has no volume"),
        (Atoms("Cu", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True), "periodic, and its cell has no volume"),
    ],
    ids=["no_atoms", "nan", "no_vector", "flat"],
)
def test_systems_that_no_teacher_should_see_are_named(tmp_path, atoms, message):
    data = database(tmp_path / "data.db", [slab(), atoms])
    with pytest.raises(SystemExit, match=rf"label: row 2 of data\.db.*: {message}.*\. Leave the system out of the data"):
        label(data, tmp_path / "cache")


def test_progress_counts_what_was_there(monkeypatch, capsys):
    monkeypatch.setattr(job, "EVERY", 0)
    job.show_progress(iter([2, 1]), missing=3, total=10)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["9 of 10 systems", "10 of 10 systems"]


def test_a_half_written_cache_is_refused_and_then_finished(tmp_path, slabs):
    directory = label(slabs, tmp_path / "cache").directory
    (directory / "header.json").unlink()
    with pytest.raises(CacheError, match=r"is unfinished.* or what else wrote it, again"):
        TeacherCache(directory)
    fairchem_crack(["cache-finish", str(directory)])
    assert len(TeacherCache(directory)) == 10
    (directory / "header.json").unlink()
    os.truncate(directory / "shard.0000.rows", 32 + 7 * 48)
    with pytest.raises(SystemExit, match=r"cache-finish: Teacher cache .*: 2 of 5 chunks are missing"):
        fairchem_crack(["cache-finish", str(directory)])
    with pytest.raises(SystemExit, match=r"cache-finish: .*nothing holds no teacher cache: there is no plan.json"):
        fairchem_crack(["cache-finish", str(tmp_path / "nothing")])


def test_systems_that_a_teacher_fails_for_have_empty_records(tmp_path, capsys, caplog):
    data = database(tmp_path / "data.db", [molecule("N2"), *(slab(seed) for seed in range(3)), molecule("N2")])
    cache = label(data, tmp_path / "cache", "--keep-going", teacher="stub_labeller:not_finite")
    assert [record.atoms for record in cache.records()] == [0, 8, 8, 8, 0]
    assert "No outputs. row 1 of data.db (sid s0), N2: the teacher returned forces not finite" in caplog.text
    dataset = AseDBDataset({"src": str(data)})
    with pytest.raises(CacheError, match=r"has an empty record of system 0 of dataset\.train: the teacher failed for it"):
        CachedDataset(dataset, cache, "dataset.train", ["energy"])
    with pytest.raises(
        CacheError, match=r"--teacher-cache: the record of system 0 of val is empty: the teacher failed for it"
    ):
        TeacherCaches([cache.directory]).record(dataset[0], 0, "val", dataset, ["energy"])
    energies = [outputs_of(system.atoms).energy for system in Systems([data])]
    assert look_at(data, 5, cache).energy == pytest.approx((np.mean(energies[1:4]), np.std(energies[1:4])))
    verify = ["--teacher", "stub_labeller:not_finite", "--output", str(cache.directory), "--verify", "9"]
    main([*verify, "--data", str(data)])
    assert "5 records recomputed: they differ by at most" in capsys.readouterr().out


def test_systems_that_differ_in_what_no_training_reads(tmp_path):
    """By 3 of 400 eV, the total energies of two charges."""
    data = tmp_path / "ions.db"
    with connect(data) as opened:
        for charge in (0, 1, 1):
            opened.write(molecule("CO", vacuum=3.0), data={"charge": charge})
    with pytest.raises(SystemExit, match="systems 0 and 1 are the same to a training, and the teacher's energy differ"):
        label(data, tmp_path / "without", teacher="stub_labeller:charged")
    told = label(data, tmp_path / "with", "--data-keys", "charge", teacher="stub_labeller:charged")
    assert [record.values["energy"] for record in told.records()] == [-400, -397, -397]


def test_caches_of_two_tasks_of_one_model_are_of_two_teachers(tmp_path, slabs):
    first = label(slabs, tmp_path / "first").directory
    second = label(slabs, tmp_path / "second", teacher="stub_labeller:OtherTask").directory
    with pytest.raises(CacheError, match=r"second was made by another teacher than .*first: task is omat and None\."):
        TeacherCaches([first, second])
    config = DistillConfig(teacher=TeacherConfig(cache=str(first), val_cache=str(second)), labels="teacher")
    with pytest.raises(
        CacheError, match=r"second \(val_cache\) was made by another teacher than .*: task is omat and None\."
    ):
        validation_labels(config, AseDBDataset({"src": str(slabs)}), {"energy": "energy"})


def test_the_response_of_forces_is_of_a_second_run(tmp_path, slabs, capsys):
    """Of free atoms moved; with the teacher's own outputs as without it, and read by a training."""
    cache, plain = label(slabs, tmp_path / "cache", "--force-response", "--vectors"), label(slabs, tmp_path / "plain")
    assert "force_response" in cache.plan.fields
    for system in Systems([slabs]):
        record, without = cache.get(system.digest), plain.get(system.digest)
        shift, response = np.split(record.values["force_response"], 2, axis=1)
        assert 0 < system.fixed.sum() < len(shift) and not shift[system.fixed].any() and shift[~system.fixed].all()
        moved = system.atoms.copy()
        moved.positions += shift
        expected = (outputs_of(moved).forces - outputs_of(system.atoms).forces) / 0.02
        np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-4)
        assert all(np.array_equal(record.values[name], value) for name, value in without.values.items())
    label(slabs, tmp_path / "cache", "--verify", "2")
    assert "2 records recomputed" in capsys.readouterr().out
    dataset = CachedDataset(AseDBDataset({**DATASET, "src": str(slabs)}), cache, "train", ["forces", "force_response"])
    assert dataset[0].teacher_force_response.shape == (len(shift), 6)


def test_verification_names_a_record_that_is_not_the_teachers(tmp_path, slabs, monkeypatch, capsys):
    directory = label(slabs, tmp_path / "cache", "--vectors").directory
    verify = ["--output", str(directory), "--verify", "10", "--data"]
    main([*STUB, *verify, str(slabs)])
    deviation = re.search(r"10 records recomputed: they differ by at most (\S+) of the largest", capsys.readouterr().out)[1]
    assert 0 < float(deviation) < 1e-3  # float16
    part, other = (database(tmp_path / f"{seed}.db", [slab(seed)]) for seed in (7, 11))
    main([*STUB, *verify, str(part)])
    with pytest.raises(SystemExit, match=r"has no record of row 1 of 11\.db .*: it is of other data"):
        main([*STUB, *verify, str(other)])
    with pytest.raises(SystemExit, match=r"was begun with teacher stub_labeller:Stub, and is now requested with .*:Turning"):
        main(["--teacher", "stub_labeller:Turning", *verify, str(slabs)])
    with pytest.raises(SystemExit, match="--verify 0: expected at least 1"):
        main([*STUB, *verify[:3], "0", "--data", str(slabs)])

    def shifted(atoms: Atoms) -> Outputs:
        made = outputs_of(atoms)
        return replace(made, node_embedding=made.node_embedding + 0.1)

    monkeypatch.setattr(stub_labeller, "outputs_of", shifted)
    with pytest.raises(SystemExit, match=r": record of row \d+ of .* differs from the teacher by .* in node_embedding"):
        main([*STUB, *verify, str(slabs)])


# ---- what a teacher promises


def test_a_vector_that_vanishes_by_symmetry_is_no_change():
    expected = outputs_of(slab())
    expected = replace(expected, vector_embedding=np.full((8, 3, 2), 1e-7))
    changed = replace(expected, vector_embedding=np.full((8, 3, 2), -1e-7), pairs=expected.pairs[:, 1:])
    differences = {name: deviation for deviation, name in protocol.deviations([expected], [changed])}
    assert differences["vector_embedding"] == pytest.approx(2e-6 / np.abs(expected.node_embedding).max())
    assert differences["pairs"] == 1 / expected.pairs.shape[1] and differences["energy"] == 0


def test_the_check_tells_a_teacher_from_one_that_is_not(slabs, capsys):
    main(["--teacher", "stub_labeller:Stub", "--data", str(slabs), "--check"])
    table = capsys.readouterr().out
    assert "time of a system" in table and table.count("pass") == 9 and "FAIL" not in table
    slope, largest = re.search(r"-dE/dx +differ by (\S+) of (\S+) eV/A", table).groups()
    assert float(slope) < protocol.EQUAL * float(largest)
    with pytest.raises(SystemExit, match="label: 2 of 12 checks failed"):
        main(["--teacher", "stub_labeller:Turning", "--data", str(slabs), "--check"])
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert [line.split()[0] for line in failed] == ["turned", "moved"]
    assert all("(node_embedding)" in line for line in failed)
