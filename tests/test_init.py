"""`fairchem-crack init`: what it writes for data and a teacher passes `check`, and says what was seen of them."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write
from conftest import distill_config, write_cache, write_edited
from torch_geometric.data import Data

from fairchem_crack.commands.cli import main
from fairchem_crack.commands.init.data import DataSummary
from fairchem_crack.commands.init.recipe import recipe
from fairchem_crack.commands.init.teacher import TeacherSummary
from fairchem_crack.teacher.export import write_database

ENERGY_OF = {"Cu": -3.0, "O": -5.0}  # eV


def oxide(rng: np.random.Generator, *, is_labelled: bool = True) -> Atoms:
    """Atoms in a box, of one of several compositions, with a total energy."""
    symbols = ["Cu"] * rng.integers(2, 6) + ["O"] * rng.integers(1, 5)
    places = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[: len(symbols)]
    atoms = Atoms(symbols, 2.2 * places + rng.normal(0, 0.1, places.shape), cell=[6.6] * 3, pbc=True)
    if is_labelled:
        energy = sum(map(ENERGY_OF.get, symbols)) + rng.normal(0, 0.02)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(0, 0.5, (len(atoms), 3)))
    return atoms


def database(file: Path, labelled: list[bool]) -> Path:
    rng = np.random.default_rng(0)
    with connect(file) as rows:
        for is_labelled in labelled:
            rows.write(oxide(rng, is_labelled=is_labelled))
    return file


def init(*arguments: object, output: Path) -> dict:
    """Run it, and the check of what it wrote; the YAML."""
    gc.collect()  # one process opens an LMDB only once
    main(["init", *map(str, arguments), "--output", str(output)])
    gc.collect()
    main(["check", "--config-yml", str(output), "--cpu"])  # a problem ends it
    return yaml.safe_load(output.read_text())


@pytest.mark.parametrize("student", ["painn", "gemnet_dT"])
def test_lmdbs_and_a_checkpoint(student, data, teacher_checkpoint, tmp_path, capsys):
    given = ["--dataset", data / "train", "--val", data / "val_id", "--student", student, "--teacher", teacher_checkpoint]
    config = init(*given, output=tmp_path / "mine.yml")
    assert "No problem found" in capsys.readouterr().out
    train = config["dataset"]["train"]
    assert (train["format"], train["key_mapping"]) == ("lmdb", {"y": "energy", "force": "forces"})
    assert config["dataset"]["val"] == {"src": str(data / "val_id")}
    terms = [name for loss in config["loss_functions"] for name in loss]
    vectors = ["vector_embeddings"] if student == "painn" else []  # GemNet-dT has none
    assert terms == ["energy", "forces", "relations", "node_embeddings", *vectors, "atom_energies"]
    assert config["evaluation_metrics"]["primary_metric"] == "forces_mae" and config["model"]["otf_graph"] is True
    assert "labels" not in config["task"]["distill"] and 0 < train["transforms"]["normalizer"]["forces"]["stdev"] < 5


def test_total_energies_of_an_ase_database_get_references(teacher_checkpoint, tmp_path, capsys):
    source = database(tmp_path / "oxides.db", 39 * [True] + [False])
    given = ["--dataset", source, "--student", "painn", "--teacher", teacher_checkpoint]
    config = init(*given, output=tmp_path / "mine.yml")
    printed = capsys.readouterr().out
    assert "ASE database of 40 systems" in printed and "Cu" in printed and "a reference for each element" not in printed
    assert config["task"]["distill"]["labels"] == "fill"
    assert "atom_energies" not in [name for loss in config["loss_functions"] for name in loss]  # of another zero, perhaps
    train = config["dataset"]["train"]
    assert (train["format"], train["a2g_args"]) == ("ase_db", {"r_energy": True, "r_forces": True})
    references = np.load(train["transforms"]["element_references"]["energy"]["file"])["element_references"]
    assert references[[29, 8]] == pytest.approx([-3.0, -5.0], abs=0.05)  # the noise on the energies


def test_a_cache_gives_the_labels_that_data_lack(data, teacher_checkpoint, tmp_path, capsys):
    cache = write_cache(distill_config(data, teacher_checkpoint), tmp_path)

    def without_labels(index: int, system: Data) -> None:
        del system.y, system.force

    source = write_edited(data / "train", tmp_path / "train", without_labels)
    val = write_edited(data / "train", tmp_path / "val", without_labels)
    given = ["--dataset", source, "--val", val, "--val-cache", cache, "--student", "painn", "--teacher", cache]
    config = init(*given, output=tmp_path / "mine.yml")
    assert config["task"]["distill"] == {"teacher": {"cache": str(cache), "val_cache": str(cache)}, "labels": "teacher"}
    assert {"vector_embeddings": {"fn": "mse", "coefficient": 300}} in config["loss_functions"]
    assert "key_mapping" not in config["dataset"]["train"] and "No problem found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--dataset": "nowhere"}, "--dataset nowhere: does not exist"),
        (
            {"--dataset": "some.extxyz"},
            r"--dataset some.extxyz: expected an ASE database .*`ase convert FILE.extxyz FILE.db`",
        ),
        ({"--dataset": "bare.db"}, r"--dataset bare.db: no system of a sample of 2 has an energy and forces"),
        ({"--val": "nowhere"}, "--val nowhere: does not exist"),
        ({"--val": "bare.db"}, r"--val bare.db: no system .* give it as --val-cache"),
        ({"--val": "good.db", "--val-cache": "nowhere"}, "Teacher cache nowhere does not exist"),
        ({"--val": "good.db", "--val-cache": "good.db"}, r"Teacher cache good\.db is a file, no directory"),
        ({"--teacher": "nowhere.pt"}, "nowhere.pt"),
        ({"--teacher": "."}, r"--teacher \.: a directory without plan.json"),
        ({"--output": "there.yml"}, "--output there.yml: there is such a file already"),
        ({"--output": "my_student"}, "--output my_student: expected the name of a .yml file"),
        ({"--systems": "1"}, "--systems 1: expected at least 2"),
    ],
)
def test_bad_input_is_named_and_nothing_written(change, message, teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("some.extxyz", Atoms("Cu"))
    database(Path("bare.db"), [False, False])
    database(Path("good.db"), [True, True])
    Path("there.yml").write_text("mine")
    options = {"--dataset": "good.db", "--student": "painn", "--teacher": str(teacher_checkpoint), **change}
    with pytest.raises(SystemExit, match=f"fairchem-crack init: .*{message}"):
        main(["init", *(word for option in options.items() for word in option)])
    assert [file.name for file in tmp_path.glob("*.yml")] == ["there.yml"] and Path("there.yml").read_text() == "mine"


@pytest.mark.parametrize(
    ("systems", "atoms", "batch_size", "epochs", "hidden"),
    [
        (12, 15.0, 1, 100, 64),  # ten batches in an epoch
        (300, 30.0, 30, 100, 64),
        (10_000, 70.0, 14, 20, 64),
        (200_000, 70.0, 14, 20, 512),
    ],
)
def test_the_recipe_follows_the_number_of_systems(systems, atoms, batch_size, epochs, hidden):
    data = DataSummary({}, systems, atoms, ("Cu",), "data", (0.0, 1.0), 0.5, None, False)
    chosen = recipe("painn", data, TeacherSummary("escn", "teacher.pt", frozenset({"node_embedding"})))
    assert (chosen.batch_size, chosen.epochs, chosen.model["hidden_channels"]) == (batch_size, epochs, hidden)
    steps = -(-systems // batch_size)
    assert chosen.warmup_epochs * steps >= 1 and chosen.eval_every * 10 <= epochs * steps
    assert [name for loss in chosen.losses for name in loss] == ["energy", "forces", "relations", "node_embeddings"]


@pytest.mark.parametrize(
    ("labels", "references", "is_trained"), [("data", None, True), ("data", "total", False), ("teacher", "total", True)]
)
def test_atom_energies_need_labels_of_the_teachers_zero(labels, references, is_trained):
    """Also where the teacher is a cache: DFT and a foundation potential agree on no zero."""
    data = DataSummary({"format": "ase_db"}, 300, 20.0, ("O",), labels, (0.0, 1.0), 1.0, references, False)
    teacher = TeacherSummary("sevennet", "caches/7net", frozenset({"node_embedding", "atom_energies"}), cache=object())
    terms = [name for loss in recipe("painn", data, teacher).losses for name in loss]
    assert ("atom_energies" in terms) is is_trained and "node_embeddings" in terms


def test_hold_out_divides_one_database(teacher_checkpoint, tmp_path, capsys):
    """All rows are on one side, as they were; what they carry, too."""
    source = tmp_path / "oxides.db"
    rng = np.random.default_rng(0)
    with connect(source) as rows:
        for index in range(40):
            atoms = oxide(rng)
            atoms.set_constraint(FixAtoms([0]))
            rows.write(atoms, key_value_pairs={"material": f"number {index}"}, data={"sid": index, "list": [index]})
    given = ["--dataset", source, "--hold-out", 10, "--student", "painn", "--teacher", teacher_checkpoint]
    config = init(*given, output=tmp_path / "deep" / "mine.yml")
    train, val = (config["dataset"][split]["src"] for split in ("train", "val"))
    assert (train, val) == tuple(str(tmp_path / "deep" / f"mine_{split}.db") for split in ("train", "val"))
    parts = [{row.data["sid"]: row for row in connect(file).select()} for file in (train, val)]
    assert 1 <= len(parts[1]) <= 10 and not parts[0].keys() & parts[1].keys()
    of_all, of_val = (len({row.formula for row in connect(file).select()}) for file in (source, val))
    held = f"{len(parts[1])} of 40 systems, {of_val} of {of_all} compositions"
    assert f"Held out for validation: {held}, {val}; trained on: {train}." in capsys.readouterr().out
    before = {row.data["sid"]: row for row in connect(source).select()}
    after = {**parts[0], **parts[1]}
    assert before.keys() == after.keys()
    for sid, row in after.items():
        assert row.toatoms() == before[sid].toatoms() and row.key_value_pairs == {"material": f"number {sid}"}
        assert row.data == {"sid": sid, "list": [sid]} and repr(row.toatoms().constraints) == "[FixAtoms(indices=[0])]"
        assert row.energy == before[sid].energy and np.array_equal(row.forces, before[sid].forces)


def test_systems_of_one_composition_are_on_one_side(teacher_checkpoint, tmp_path):
    """Else the student would be validated on frames and volumes next to those that it was trained on."""
    source = tmp_path / "relaxations.db"
    rng = np.random.default_rng(0)
    with connect(source) as rows:
        for _ in range(12):
            first = oxide(rng)
            for number in range(5):
                frame = first[rng.permutation(len(first))]
                frame.set_cell(frame.cell * (1 + number / 50), scale_atoms=True)
                frame.calc = SinglePointCalculator(frame, **first.calc.results)
                rows.write(frame)
    given = ["--dataset", source, "--hold-out", 13, "--student", "painn", "--teacher", teacher_checkpoint]
    config = init(*given, output=tmp_path / "mine.yml")
    train, val = ([row.formula for row in connect(config["dataset"][split]["src"]).select()] for split in ("train", "val"))
    assert len(train) + len(val) == 60 and 5 <= len(val) <= 13 and not set(train) & set(val)


def test_labels_of_a_cache_replace_those_of_the_data(data, teacher_checkpoint, tmp_path, capsys):
    """One database that the teacher labelled is enough: both parts have their records in the one cache."""
    cache = write_cache(distill_config(data, teacher_checkpoint), tmp_path)
    gc.collect()
    config = distill_config(data, teacher_checkpoint)
    source = tmp_path / "all.db"
    write_database(config, "train", source)
    gc.collect()
    given = ["--dataset", source, "--hold-out", 3, "--labels", "teacher", "--student", "painn", "--teacher", cache]
    written = init(*given, output=tmp_path / "mine.yml")
    assert written["task"]["distill"] == {"teacher": {"cache": str(cache), "val_cache": str(cache)}, "labels": "teacher"}
    out = capsys.readouterr().out
    assert "No problem found" in out and f"val: energy, forces (teacher: of {cache})" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--hold-out": "0"}, "--hold-out 0: expected at least 1"),
        ({"--hold-out": "1", "--val": "good.db"}, "expected no --val, no --val-cache"),
        ({"--hold-out": "1", "--dataset": "nowhere.db"}, "--dataset nowhere.db: does not exist"),
        ({"--hold-out": "1", "--dataset": "lmdbs"}, r"--hold-out: divides an ASE database .* not lmdbs"),
        ({"--hold-out": "1", "--dataset": "alike.db"}, "alike.db has 4 systems of 1 compositions, at least 4"),
        ({"--hold-out": "1", "--dataset": "bare.db"}, r"--dataset my_student_train.db: no system of a sample"),
        ({"--hold-out": "1", "--output": "there.yml"}, r"there_val\.db is there already"),
        ({"--labels": "teacher"}, "--labels teacher: expected a teacher cache of --dataset as --teacher"),
    ],
)
def test_no_part_is_left_of_a_division_that_fails(change, message, teacher_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database(Path("bare.db"), [False, False])
    database(Path("good.db"), [True, True])
    Path("lmdbs").mkdir()
    with connect("alike.db") as rows:
        for _ in range(4):
            rows.write(oxide(np.random.default_rng(0)))
    Path("there_val.db").write_text("mine")
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    options = {"--dataset": "good.db", "--student": "painn", "--teacher": str(teacher_checkpoint), **change}
    with pytest.raises(SystemExit, match=f"fairchem-crack init: .*{message}"):
        main(["init", *(word for option in options.items() for word in option)])
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
