"""`task.distill.labels` in whole trainings: equal, step for step, to training on data relabelled by hand."""

from __future__ import annotations

import copy
import gc
import math
import re
from pathlib import Path

import ase.db
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import TERMS, same_weights, stock_config, with_terms, write_cache, write_edited

from fairchem_crack.commands.cli import main
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import Records
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.frozen import Teacher

WITHOUT_ENERGY, WITHOUT_FORCES = {0, 3, 4}, {3, 5}  # of the 12 systems; 4 and 5 have NaN in their place


def unlabel(index: int, system) -> None:
    if index in (0, 3):
        del system.y
    if index == 4:
        system.y = math.nan
    if index == 3:
        del system.force
    if index == 5:
        system.force[-1, 0] = math.nan


def weights(run) -> dict:
    return torch.load(run.checkpoints / "checkpoint.pt", map_location="cpu", weights_only=False)["state_dict"]


def relabelled(source: Path, directory: Path, answers: dict, labels: str) -> Path:
    """A copy of the data with the teacher's labels, by `sid`, where the training takes them."""

    def edit(index, system):
        energy, forces = answers[int(system.sid)]
        if labels == "teacher" or index in WITHOUT_ENERGY:
            system.y = energy
        if labels == "teacher" or index in WITHOUT_FORCES:
            system.force = forces

    return write_edited(source, directory, edit)


@pytest.fixture
def unlabelled(data, tmp_path) -> Path:
    return write_edited(data / "train", tmp_path / "unlabelled", unlabel)


@pytest.mark.parametrize("labels", ["fill", "teacher"])
def test_without_terms_it_is_stock_training_on_its_labels(run, data, distilled, unlabelled, tmp_path, monkeypatch, labels):
    answers, call = {}, Teacher.__call__

    def remembered(teacher, batch, *arguments):
        outputs, sizes = call(teacher, batch, *arguments), batch.natoms.tolist()
        for sid, energy, forces in zip(batch.sid.tolist(), outputs.energy, outputs.forces.split(sizes)):
            answers[sid] = float(energy), forces.clone()  # of the batch of the step, the last that has it
        return outputs

    monkeypatch.setattr(Teacher, "__call__", remembered)
    config = with_terms(distilled, {})
    config["task"]["distill"]["labels"] = labels
    config["dataset"]["train"]["src"] = str(unlabelled)
    trained = run(config, name="ours")
    stock = stock_config(data)
    stock["dataset"]["train"]["src"] = str(relabelled(data / "train", tmp_path / "by_hand", answers, labels))
    expected = run(stock, name="stock")
    names = ("loss", "energy_mae", "forces_mae")
    assert [[step[name] for name in names] for step in trained.steps] == [
        [step[name] for name in names] for step in expected.steps
    ]
    assert len(trained.steps) == 6 and same_weights(weights(trained), weights(expected))
    assert [record["forces_mae"] for record in trained.validations] == [
        record["forces_mae"] for record in expected.validations
    ]  # on the data's labels


def test_filled_labels_come_from_a_cache_beside_terms(run, data, distilled, unlabelled, tmp_path):
    config = with_terms(distilled, {key: TERMS[key] for key in ("relations", "teacher_energy")})
    config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, tmp_path))
    answers, cache = {}, TeacherCache(tmp_path / "cache")
    gc.collect()
    with Records({"src": str(data / "train")}) as records:
        for system in (records[index] for index in range(12)):
            values = cache.get(digest_of(system)).values
            answers[int(system.sid)] = float(values["energy"]), torch.tensor(values["forces"])
    cache.close()
    config["optim"]["max_epochs"] = 2
    by_hand = copy.deepcopy(config)
    by_hand["dataset"]["train"]["src"] = str(relabelled(data / "train", tmp_path / "by_hand", answers, "fill"))
    expected = run(by_hand, name="by_hand")
    config["task"]["distill"]["labels"] = "fill"
    config["dataset"]["train"]["src"] = str(unlabelled)
    filled = run(config, name="filled")
    assert len(filled.steps) == 12 and filled.losses() == expected.losses()
    assert same_weights(weights(filled), weights(expected))


def test_a_resumed_run_without_terms_equals_the_whole(run, distilled, unlabelled):
    config = with_terms(distilled, {})
    config["task"]["distill"]["labels"] = "fill"
    config["dataset"]["train"]["src"] = str(unlabelled)
    config["optim"].update(max_epochs=2, checkpoint_every=1)
    whole = run(config, name="whole")
    run(config, name="cut", stop_at=7)
    resumed = run(config, name="cut", checkpoint=whole.checkpoints.parent / "cut/checkpoint.pt")
    assert whole.losses()[-len(resumed.steps) :] == resumed.losses()
    assert same_weights(weights(whole), weights(resumed))


def test_a_teachers_label_that_is_not_finite_is_named(run, distilled, unlabelled, monkeypatch, caplog):
    call = Teacher.__call__

    def spoiled(teacher, batch, *arguments):
        outputs = call(teacher, batch, *arguments)
        if outputs.energy is not None:
            outputs.energy[:] = math.nan
        return outputs

    monkeypatch.setattr(Teacher, "__call__", spoiled)
    config = with_terms(distilled, {})
    config["task"]["distill"]["labels"] = "fill"
    config["dataset"]["train"]["src"] = str(unlabelled)
    run(config)
    skipped = [record.message for record in caplog.records if "The step is skipped" in record.message]
    assert 2 <= len(skipped) <= 3 and all("teacher's label `energy` of sid" in message for message in skipped)


def check(config: dict, directory: Path, capsys) -> str:
    file = directory / "checked.yml"
    file.write_text(yaml.safe_dump({**config, "logger": "tensorboard"}))
    gc.collect()
    main(["check", "--config-yml", str(file), "--cpu"])  # exits with 1 where it finds a problem
    return capsys.readouterr().out


def test_check_counts_the_labels_of_the_teacher(distilled, data, unlabelled, tmp_path, capsys):
    config = with_terms(distilled, {})
    config["dataset"]["train"]["src"] = str(unlabelled)
    config["task"]["distill"]["labels"] = "fill"
    said = check(config, tmp_path, capsys)
    assert "no distillation term, so plain training on labels of the teacher" in said
    assert "train: none (of a sample of 12 systems, 3 the teacher's `energy`, 2 the teacher's `forces`)" in said
    assert re.search(r"^agreement teacher on the labels of the sample: energy MAE \d", said, re.MULTILINE)
    assert re.search(r"^step .* student \S+, teacher \S+ \(median", said, re.MULTILINE)
    bare = write_edited(data / "train", tmp_path / "bare", lambda _, system: (system.pop("y"), system.pop("force")))
    config["dataset"]["train"]["src"] = str(bare)
    config["task"]["distill"]["labels"] = "teacher"
    said = check(config, tmp_path, capsys)
    assert "train: none (of a sample of 12 systems, 12 the teacher's `energy`, 12 the teacher's `forces`)" in said
    assert "left out: the training data has no energies and forces" in said


def test_an_ase_database_with_some_labels_is_trained_on(run, distilled, data, tmp_path):
    gc.collect()
    with Records({"src": str(data / "train")}) as records, ase.db.connect(tmp_path / "data.db") as database:
        for index in range(12):
            system = records[index]
            atoms = to_atoms(system)
            if index % 2:
                atoms.calc = SinglePointCalculator(atoms, energy=system.y, forces=system.force.numpy())
            database.write(atoms)
    config = with_terms(distilled, {})
    a2g = {"r_energy": True, "r_forces": True}
    config["dataset"]["train"] = {"format": "ase_db", "src": str(tmp_path / "data.db"), "a2g_args": a2g}
    config["dataset"]["val"] = {**stock_config(data)["dataset"]["train"], "src": str(data / "val_id")}
    del config["dataset"]["test"]
    config["model"]["otf_graph"] = True
    config["optim"]["load_balancing_on_error"] = "warn_and_no_balance"
    config["task"]["distill"].update(labels="fill")
    config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, tmp_path))
    assert len(run(config).steps) == 6
