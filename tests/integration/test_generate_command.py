"""`fairchem-crack generate`: its dataset, its teacher cache, interruptions, bad input."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from conftest import DATASET, distill_config, with_terms, write_edited
from fairchem.core.common.utils import merge_dicts
from killing import kill_at_call
from stub_labeller import DIES, outputs_of

from fairchem_crack import keys
from fairchem_crack.commands.cli import main
from fairchem_crack.generate import job as module
from fairchem_crack.generate import outcome, staging
from fairchem_crack.generate.directory import STAGING
from fairchem_crack.generate.outcome import CACHE, DATA, MANIFEST
from fairchem_crack.generate.staging import Drawings, Staging
from fairchem_crack.generate.unit import Workshop
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import Records
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.frozen import Teacher

TESTS = Path(__file__).parents[1]
STRATEGIES = ("rattle=2", "displace+rattle=1", "md=2", "relax=1")
MIXED = ("--strategies", *STRATEGIES, "--every", "2", "--select", "9", "--dtype", "float32")
ANY_FORCE = ("--max-force", "1e6", "--max-energy-change", "1e6")  # the toy teacher has random weights


@pytest.fixture
def config(distilled) -> dict:
    distilled["dataset"]["train"]["first_n"] = 3
    return distilled


@pytest.fixture(scope="module")
def whole(data, teacher_checkpoint, tmp_path_factory) -> Path:
    """What MIXED makes of three parents, in one go."""
    config, directory = distill_config(data, teacher_checkpoint), tmp_path_factory.mktemp("generate") / "whole"
    config["dataset"]["train"]["first_n"] = 3
    generate(config, directory, *MIXED)
    return directory


def generate(config: dict, directory: Path, *flags: str) -> dict:
    """Run the command in this process; its summary."""
    file = directory.parent / f"{directory.name}.yml"
    file.write_text(yaml.safe_dump(config))
    gc.collect()  # one process opens an LMDB only once
    main(["generate", "--config-yml", str(file), "--cpu", "--output", str(directory), *ANY_FORCE, *flags])
    gc.collect()
    return json.loads((directory / "generate.json").read_text())


def records_of(options: dict) -> list:
    with Records(options) as records:
        return records.first(len(records))


def manifest(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / MANIFEST).read_text().splitlines()]


def content(directory: Path) -> dict[str, bytes]:
    """All that is there, by name; without the locks."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and "lock" not in file.name
    }


def test_data_cache_and_manifest_are_of_the_same_systems(whole, data):
    summary = json.loads((whole / "generate.json").read_text())
    made = Counter(summary["kept"])
    made.update({strategy: reasons["not selected"] for strategy, reasons in summary["thrown_out"].items()})
    assert made == {"parent": 3, "rattle": 6, "displace+rattle": 3, "md": 6, "relax": 3} and summary["kept"]["parent"] == 3
    records, rows, cache = records_of(summary["dataset"]), manifest(whole), TeacherCache(whole / CACHE)
    assert len(records) == len(rows) == len(cache) == summary["systems"] == 12
    assert Counter(row["strategy"] for row in rows) == summary["kept"]
    assert (np.load(whole / DATA / "metadata.npz")["natoms"] == [len(record.pos) for record in records]).all()
    parents = records_of({**DATASET, "src": str(data / "train")})
    originals = {record.parent: record for record in records if record.copy_number == 0}
    for record, row in zip(records, rows):
        parent = originals[record.parent]
        assert (row["parent"], row["copy_number"]) == (record.parent, record.copy_number) and record.sid == parent.sid
        kept = cache.get(digest_of(record))
        assert kept is not None and row["teacher_energy"] == pytest.approx(float(kept.values["energy"]))
        for name in ("cell", "atomic_numbers", "tags", "fixed"):
            assert torch.equal(record[name], parent[name])
        assert torch.equal(record.pos[record.fixed == 1], parent.pos[record.fixed == 1])
        if record.copy_number == 0:
            assert row["labels"] == {"energy": "data", "forces": "data"}
            own = next(given for given in parents if given.sid == record.sid)
            assert record.energy == pytest.approx(own.energy) and torch.equal(record.forces, own.forces)
            continue
        assert row["labels"] == {"energy": "teacher", "forces": "teacher"} and not torch.equal(record.pos, parent.pos)
        assert record.energy == pytest.approx(float(kept.values["energy"]))
        assert np.array_equal(record.forces, kept.values["forces"])
    assert len({digest_of(record) for record in records}) == 12


def test_training_and_verification_take_what_was_made(config, run, tmp_path, capsys):
    summary = generate(config, tmp_path / "out", "--strategies", "rattle=2")
    printed = capsys.readouterr().out.partition("Train with\n\n")[2]
    config, _ = merge_dicts(config, yaml.safe_load(printed))
    assert len(run(config).steps) == 5  # 9 systems, not the first_n of the parents
    file = tmp_path / "verify.yml"
    file.write_text(yaml.safe_dump(config))
    gc.collect()
    main(["cache-teacher", "--config-yml", str(file), "--cpu", "--verify", "9"])
    assert "9 records recomputed" in capsys.readouterr().out
    del config["task"], config["loss_functions"][2:]
    config["trainer"], config["dataset"]["train"] = "ocp", summary["dataset"]
    assert len(run(config, name="plain").steps) == 5  # plain distillation, by fairchem alone


def test_a_system_depends_on_its_seed_parent_and_number(config, whole, tmp_path):
    many, few, other = (
        {(each.parent, each.copy_number): each.pos for each in records_of(summary["dataset"])}
        for summary in (
            json.loads((whole / "generate.json").read_text()),
            generate(config, tmp_path / "few", "--strategies", "rattle=1"),
            generate(config, tmp_path / "other", "--strategies", "rattle=1", "--seed", "1", "--without-parents"),
        )
    )
    common = few.keys() & many.keys()
    assert len(common) > 3 and all(torch.equal(few[system], many[system]) for system in common)  # parents, and copies
    assert set(other) == {(0, 1), (1, 1), (2, 1)} and not any(torch.equal(few[system], other[system]) for system in other)


def assert_same_outcome(first: Path, second: Path) -> None:
    """Bit-equal, but for the paths in the summary."""
    before, after = content(first), content(second)
    summaries = [json.loads(files.pop("generate.json")) for files in (before, after)]
    for summary in summaries:
        del summary["dataset"]["src"]
    assert before == after and summaries[0] == summaries[1]


MOMENTS = [
    (Staging, "put", 1),
    (staging, "_key", 5),  # three to see what is there; then within a transaction
    (Staging, "put", 2),
    (Workshop, "draw", 2),
    (module, "choose", 1),
    (outcome, "write_cache", 1),
    (outcome, "manifest_line", 4),
    (os, "replace", 6),
    (module, "Summary", 1),
    (module.shutil, "rmtree", 5),
]


@pytest.mark.slow
def test_killed_at_ten_moments_the_outcome_is_equal(config, whole, tmp_path):
    killed = tmp_path / "killed"
    for owner, name, number in MOMENTS:
        kill_at_call(owner, name, number, lambda: generate(config, killed, *MIXED))
    generate(config, killed, *MIXED)
    assert_same_outcome(whole, killed)
    assert not (killed / STAGING).exists()


@pytest.mark.slow
def test_the_outcome_does_not_depend_on_the_number_of_ranks(quick_processes, config, whole, tmp_path):
    generate(config, tmp_path / "two", *MIXED, "--num-gpus", "2")
    assert_same_outcome(whole, tmp_path / "two")


def test_another_outcome_and_other_files_are_refused(config, whole, tmp_path):
    before = content(whole)
    generate(config, whole, *MIXED)  # complete
    assert content(whole) == before
    shutil.copytree(whole, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / CACHE)
    with pytest.raises(SystemExit, match=r"moved: cache of a finished run is missing\. Delete"):
        generate(config, tmp_path / "moved", *MIXED)
    with pytest.raises(SystemExit, match=r"made with other settings: max_gap None, now 3.0; select 9, now 8"):
        generate(config, whole, *MIXED, "--max-gap", "3", "--select", "8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"mine: holds notes.txt; expected a new or an empty directory"):
        generate(config, tmp_path / "mine")
    with pytest.raises(SystemExit, match=r"--strategies rattle: expected NAME=N, for example rattle=9"):
        generate(config, tmp_path / "new", "--strategies", "rattle")
    with pytest.raises(SystemExit, match=r"--select 7: 6 systems are made of 3 parents. Select fewer"):
        generate(config, tmp_path / "new", "--strategies", "rattle=2", "--select", "7")
    assert not (tmp_path / "new").exists()


FULL = r"cannot write \((.*No space left on device|database or disk is full)\)\. Put that right"


def test_a_full_disk_is_named_and_what_is_made_is_kept(config, tmp_path, monkeypatch):
    """Full while systems are made, while the data are written, while the cache is; each kept system is made once."""
    draw, made = Workshop.draw, []

    def counted(self, number, system):
        made.append(number)
        return draw(self, number, system)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_for_sqlite(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Workshop, "draw", counted)
    for owner, name, fault in (
        (Staging, "put", full),
        (outcome, "write_dataset", full_for_sqlite),
        (outcome, "write_cache", full),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=FULL):
            patch.setattr(owner, name, fault)
            generate(config, tmp_path / "out", "--strategies", "rattle=1")
    assert generate(config, tmp_path / "out", "--strategies", "rattle=1")["systems"] == 6
    assert made == [0, 0, 1, 2]


def test_outputs_that_are_not_finite_are_thrown_out(config, tmp_path, monkeypatch):
    """Those of one copy; of a parent, with its copies; of all, which is an error."""
    run, is_bad = Teacher.__call__, [lambda batch, index: False]

    def spoilt(teacher, batch, *arguments):
        outputs = run(teacher, batch, *arguments)
        for index in range(len(batch.natoms)):
            if is_bad[0](batch, index):
                outputs.forces[batch.batch == index] = torch.nan
        return outputs

    monkeypatch.setattr(Teacher, "__call__", spoilt)
    is_bad[0] = lambda batch, index: (int(batch.parent[index]), int(batch.copy_number[index])) in ((0, 2), (1, 0))
    summary = generate(config, tmp_path / "out", "--strategies", "rattle=2")
    reason = "numbers that are not finite"
    assert summary["thrown_out"] == {"parent": {reason: 1}, "rattle": {reason: 3}}
    assert [(row["parent"], row["copy_number"]) for row in manifest(tmp_path / "out")] == [
        (0, 0),
        (0, 1),
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    is_bad[0] = lambda batch, index: True
    with pytest.raises(SystemExit, match=f"no system is kept. Thrown out: parent: 3 {reason}; rattle: 6 {reason}"):
        generate(config, tmp_path / "none", "--strategies", "rattle=2")
    is_bad[0] = lambda batch, index: False
    assert generate(config, tmp_path / "none", "--strategies", "rattle=1")["systems"] == 6  # nothing is left of the other


def by_command(config: dict, teacher: str = "function") -> dict:
    """The config, its teacher the stub in another process."""
    command = f"{sys.executable} -m fairchem_crack.teacher.label --teacher stub_labeller:{teacher}"
    config["task"]["distill"]["teacher"] = {"command": command}
    return config


IN_TWO_CHUNKS = ("--strategies", "rattle=2", "strain=1", "--chunk", "6", "--dtype", "float32")


def test_a_teacher_in_another_process_labels_all_by_one_call(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    summary = generate(by_command(config), tmp_path / "out", *IN_TWO_CHUNKS)
    assert summary["kept"] == {"parent": 3, "rattle": 6, "strain": 3} and not summary["thrown_out"]
    cache = TeacherCache(tmp_path / "out" / CACHE)
    for record in records_of(summary["dataset"]):
        kept, expected = cache.get(digest_of(record)), outputs_of(to_atoms(record))
        assert np.allclose(kept.values["node_embedding"], expected.node_embedding, rtol=1e-5, atol=1e-5)
        assert np.array_equal(kept.pairs, expected.pairs)
        if record.copy_number:
            assert float(record.energy) == pytest.approx(expected.energy, rel=1e-5)
    other = by_command(config, "Failing")
    with pytest.raises(SystemExit, match=r"made with other settings: command .*:function, now .*:Failing"):
        generate(other, tmp_path / "out", *IN_TWO_CHUNKS)


@pytest.mark.slow
def test_killed_in_a_command_and_around_it_the_outcome_is_equal(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(DIES, str(tmp_path / "died"))
    config, killed = by_command(config, "Dying"), tmp_path / "killed"
    kill_at_call(Drawings, "put", 2, lambda: generate(config, killed, *IN_TWO_CHUNKS))
    with pytest.raises(SystemExit, match="Dying` ended with status -9"):
        generate(config, killed, *IN_TWO_CHUNKS)
    for owner, name, number in ((Staging, "put", 2), (outcome, "write_cache", 1)):
        kill_at_call(owner, name, number, lambda: generate(config, killed, *IN_TWO_CHUNKS))
    generate(config, killed, *IN_TWO_CHUNKS)
    generate(config, tmp_path / "whole", *IN_TWO_CHUNKS)
    assert_same_outcome(tmp_path / "whole", killed)


def test_limits_and_failures_of_a_command_are_counted(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    config = by_command(config, "Failing")
    summary = generate(config, tmp_path / "out", "--strategies", "rattle=2")
    assert summary["thrown_out"] == {"parent": {"the teacher fails": 1}, "rattle": {"the teacher fails": 3}}
    with pytest.raises(
        SystemExit, match=r"no system is kept\. Thrown out: .*; rattle: 3 a force above the limit, 3 the teacher"
    ):
        generate(config, tmp_path / "weak", "--strategies", "rattle=2", "--max-force", "1e-6")
    with pytest.raises(SystemExit, match=r"md or relax: .*only labels what is made\. Give a student .*--with CHECKPOINT"):
        generate(config, tmp_path / "none", "--strategies", "md=1")
    for key, needed in (("force_jacobian", "rows"), ("embedding_response", "the response")):
        with pytest.raises(
            SystemExit, match=rf"{key} needs {needed} .* which task\.distill\.teacher\.command does not give"
        ):
            generate(with_terms(config, {key: {"fn": "mse", "coefficient": 1}}), tmp_path / "none")
    with pytest.raises(SystemExit, match=r"`lmax: all` needs .* which task\.distill\.teacher\.command does not give"):
        generate(config, tmp_path / "none", "--all-degrees")
    assert not (tmp_path / "none").exists()


def test_limits_are_counted_by_reason(config, tmp_path, monkeypatch):
    flags = ("--strategies", "rattle=2", "md=2", "--sigma", "1.5", "1.5")
    summary = generate(config, tmp_path / "close", *flags, "--every", "1")
    assert summary["thrown_out"] == {"rattle": {"two atoms too close": 6}} and summary["kept"]["md"] == 6
    with pytest.raises(SystemExit, match="--select 7: 6 systems are within the limits; what is made is kept"):
        generate(config, tmp_path / "few", *flags, "--every", "1", "--select", "7")
    monkeypatch.delattr(Workshop, "draw")  # another number takes up what is made
    summary = generate(config, tmp_path / "few", *flags, "--every", "1", "--select-random", "4")
    assert summary["thrown_out"] == {"md": {"not selected": 2}, "rattle": {"two atoms too close": 6}}
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="md: 6 a force above the limit; rattle: 6 a force above the limit"):
        generate(config, tmp_path / "strong", "--strategies", "rattle=2", "md=2", "--max-force", "1e-6")


def test_parents_unlabelled_fixed_with_one_atom_or_words_as_ids(config, data, tmp_path):
    def edit(index: int, system) -> None:
        system.sid = f"system-{index}"
        if index == 0:
            del system.y, system.force
        if index == 1:
            system.fixed[:] = 1
        if index == 2:
            system.y = float("nan")
            system.tags[system.tags == 2] = 1
            system.tags[-1] = 2  # one atom is the adsorbate

    config["dataset"]["train"]["src"] = str(write_edited(data / "train", tmp_path / "edited", edit))
    summary = generate(config, tmp_path / "out", "--strategies", "rattle=1", "displace=1")
    assert summary["thrown_out"] == {"displace": {"the adsorbate is fixed": 1}, "rattle": {"all atoms are fixed": 1}}
    rows = manifest(tmp_path / "out")
    labels = {row["sid"]: row["labels"] for row in rows if row["strategy"] == "parent"}
    assert labels["system-0"] == {"energy": "teacher", "forces": "teacher"}
    assert labels["system-2"] == {"energy": "teacher", "forces": "data"}
    assert [(row["sid"], row["strategy"]) for row in rows if row["strategy"] == "displace"] == [
        ("system-0", "displace"),
        ("system-2", "displace"),
    ]
    assert {row["sid"] for row in rows} == {f"system-{index}" for index in range(3)}


PBC = list(itertools.product((True, False), repeat=3))


def test_an_ase_database_in_and_out_with_every_pbc(config, tmp_path):
    rng = np.random.default_rng(0)
    with connect(tmp_path / "parents.db") as database:
        for pbc in PBC:
            atoms = Atoms(
                "Cu4", np.array([(0, 0, 0), (2.5, 0, 0), (0, 2.5, 0), (2.5, 2.5, 1)]) - 0.5, cell=[5, 5, 9], pbc=pbc
            )
            atoms.set_constraint(FixAtoms([0]))
            atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=rng.normal(size=(4, 3)))
            database.write(atoms)
    options = {"format": "ase_db", "src": str(tmp_path / "parents.db"), "a2g_args": {"r_energy": True, "r_forces": True}}
    config["dataset"]["train"] = options
    for output_format in ("lmdb", "ase_db"):
        summary = generate(config, tmp_path / output_format, "--strategies", "rattle=1", "--format", output_format)
        records = records_of(summary["dataset"])
        assert [tuple(record.pbc.view(-1).tolist()) for record in records[::2]] == PBC
        assert [float(record.energy) for record in records[::2]] == [1.0] * 8
        assert [record[name] for record in records for name in keys.OF_TEACHER.values()] == [False, False, True, True] * 8
        assert len(records) == len(TeacherCache(tmp_path / output_format / CACHE)) == 16
        assert all(TeacherCache(tmp_path / output_format / CACHE).get(digest_of(record)) for record in records)
        free = np.abs(records[1].pos - records[0].pos).max(1).values > 0
        assert free.tolist() == [False, True, True, True]


def test_a_student_moves_the_atoms_where_asked(config, run, tmp_path):
    student = run(config | {"trainer": "ocp", "task": {}} | {"loss_functions": config["loss_functions"][:2]})
    flags = ("--strategies", "md=1", "--every", "3")
    by_teacher = records_of(generate(config, tmp_path / "teacher", *flags)["dataset"])
    checkpoint = str(student.checkpoints / "checkpoint.pt")
    summary = generate(config, tmp_path / "student", *flags, "--with", checkpoint)
    by_student = records_of(summary["dataset"])
    assert summary["settings"]["options"]["checkpoint"]  # its fingerprint
    assert torch.equal(by_teacher[0].pos, by_student[0].pos) and not torch.equal(by_teacher[1].pos, by_student[1].pos)
    shutil.copy(checkpoint, tmp_path / "elsewhere.pt")
    generate(config, tmp_path / "student", *flags, "--with", str(tmp_path / "elsewhere.pt"))  # the same


def test_rows_of_the_jacobian_are_kept_where_a_term_reads_them(config, tmp_path):
    terms = {"force_jacobian": {"fn": "mse", "coefficient": 1}, "vector_embeddings": {"fn": "mse", "coefficient": 1}}
    generate(with_terms(config, terms), tmp_path / "out", "--strategies", "rattle=1", "--jacobian-rows", "2")
    assert TeacherCache(tmp_path / "out" / CACHE).plan.fields[-2:] == ("vector_embedding", "force_jacobian")
