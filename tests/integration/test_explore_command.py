"""`fairchem-crack explore`: its rounds, interruptions, an early end, bad input."""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import distill_config, run_fairchem, write_cache, write_edited

from fairchem_crack import keys
from fairchem_crack.explore import exploration, rounds, student
from fairchem_crack.explore.rounds import explore
from fairchem_crack.explore.settings import Settings
from fairchem_crack.explore.tools import Job
from fairchem_crack.explore.training import checkpoint_of
from fairchem_crack.generate import outcome
from fairchem_crack.generate.staging import Staging
from fairchem_crack.io.datasets import Records
from fairchem_crack.io.locks import LockedError, exclusive
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.frozen import Teacher

FEW = {"rounds": 2, "steps": 4, "starts": 3, "ps": 0.012, "every": 4, "relax_steps": 5, "max_energy_change": 1e6}


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, teacher_checkpoint) -> tuple[dict, Path]:
    """A config with a teacher cache, and a student that has been trained by it for a few steps."""
    directory = tmp_path_factory.mktemp("explore")
    config = distill_config(data, teacher_checkpoint)
    config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, directory))
    config["dataset"]["train"]["no_shuffle"] = True
    return config, run_fairchem(directory, config).checkpoints / "checkpoint.pt"


@pytest.fixture
def config(made) -> dict:
    return copy.deepcopy(made[0])


@pytest.fixture
def checkpoint(made) -> Path:
    return made[1]


def train(place: Path, steps: int) -> None:
    """In place of a training: the student, its weights a little larger."""
    content = torch.load(place / "student.pt", weights_only=True)
    for value in content["ema"]["shadow_params"]:
        value *= 1.01
    checkpoint_of(place).parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "step": steps, "optimizer": {}}, checkpoint_of(place))


def explored(config: dict, checkpoint: Path, directory: Path, train=train, **settings) -> list:
    gc.collect()
    return explore(Job(config, Settings(**{**FEW, **settings}), cpu=True), checkpoint, directory, train)


def content(directory: Path) -> dict[str, bytes]:
    """All that is there, by name; without locks, the database of frames, and the paths of this directory."""
    return {
        str(file.relative_to(directory)): file.read_bytes().replace(str(directory).encode(), b"")
        for file in directory.rglob("*")
        if file.is_file() and "lock" not in file.name and file.parent.name != "frames"
    }


def test_a_round_adds_frames_that_the_teacher_has_labelled(config, checkpoint, tmp_path):
    first, second, last = explored(config, checkpoint, tmp_path / "out")
    for seen in (first, second, last):
        assert seen.ps == pytest.approx([0.012] * 3) and seen.kept == {"md": 9, "relax": 3} and seen.teacher_labels == 12
        assert seen.errors["forces_mae"] > 0
    assert [start["parent"] for start in first.starts] == [0, 4, 8]
    rows = [json.loads(line) for line in (tmp_path / "out/round-2/manifest.jsonl").read_text().splitlines()]
    record = json.loads((tmp_path / "out/round-2/round.json").read_text())
    assert len(rows) == record["training"]["systems"] == 12 + 12 + 12
    assert [(row.get("round"), row["strategy"]) for row in rows[11:13]] == [(None, "parent"), (1, "md")]
    cache = TeacherCache(tmp_path / "out/round-2/cache")
    with Records(record["training"]["dataset"]) as records:
        systems = records.first(len(records))
    assert len(systems) == len(cache) == 36 and len({digest_of(system) for system in systems}) == 36
    for row, system in zip(rows, systems):
        kept = cache.get(digest_of(system))
        if row["labels"]["energy"] == "teacher":
            assert system.energy == pytest.approx(float(kept.values["energy"])) == row["teacher_energy"]
            assert np.array_equal(system.forces, kept.values["forces"])
    by_round = {row["round"]: row for row in rows[12:] if row["parent"] == 4 and row["strategy"] == "md"}
    assert by_round[1]["teacher_energy"] != by_round[2]["teacher_energy"]  # other velocities


def test_the_student_of_a_round_is_the_average_of_the_last(config, checkpoint, tmp_path):
    explored(config, checkpoint, tmp_path / "out", rounds=1)
    given = torch.load(checkpoint, weights_only=False)
    first, second = (torch.load(tmp_path / f"out/round-{number}/student.pt", weights_only=True) for number in (1, 2))
    names = [name for name, value in student._model_of(config).named_parameters() if value.requires_grad]
    average = dict(zip(names, given["ema"]["shadow_params"]))
    assert all(torch.equal(first["state_dict"][name], value) for name, value in average.items())
    assert all(torch.equal(second["state_dict"][name], 1.01 * value) for name, value in average.items())
    assert not {"step", "optimizer", "scheduler"} & first.keys() and first["ema"]["decay"] == 0.9
    assert keys.PROJECTION in first[keys.CHECKPOINT_KEY]  # that of the same terms and teacher
    config["loss_functions"].pop()
    explored(config, checkpoint, tmp_path / "other", rounds=1)
    assert keys.PROJECTION not in torch.load(tmp_path / "other/round-1/student.pt")[keys.CHECKPOINT_KEY]


def die_at(owner, name: str, number: int) -> None:
    """SIGKILL to this process before call `number` of a function."""
    function, calls = getattr(owner, name), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, dying)


MOMENTS = [
    (student, "whole", 2),
    (exploration, "run_from", 2),
    (exploration, "write_json", 1),
    (Staging, "put", 2),
    (exploration.shutil, "rmtree", 1),
    (outcome, "write_cache", 1),
    (os, "replace", 5),
    (rounds, "write_yaml", 1),
    (checkpoint_of.__globals__["Path"], "mkdir", 30),
    (rounds, "write_json", 2),
]


@pytest.mark.slow
def test_killed_at_ten_moments_the_outcome_is_equal(config, checkpoint, tmp_path):
    settings = {"select": 7, "rounds": 1}
    expected = explored(config, checkpoint, tmp_path / "whole", **settings)
    for owner, name, number in MOMENTS:
        gc.collect()
        pid = os.fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)  # the threads of the parent's pool are not here
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                die_at(owner, name, number)
                explored(config, checkpoint, tmp_path / "killed", **settings)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, (name, number)
    assert explored(config, checkpoint, tmp_path / "killed", **settings) == expected
    assert [seen.teacher_labels for seen in expected] == [7, 7]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_rounds_end_early_and_can_go_on(config, checkpoint, tmp_path):
    reached = explored(config, checkpoint, tmp_path / "out", stable_ps=0.01, max_forces_mae=1e6)
    assert len(reached) == 1 and not (tmp_path / "out/round-1/data").exists()
    assert len(explored(config, checkpoint, tmp_path / "out", rounds=1)) == 2
    assert len(explored(config, checkpoint, tmp_path / "out", rounds=1, stable_ps=0.012, max_forces_mae=1e-9)) == 2


def test_a_failing_trajectory_ends_and_the_frames_before_it_stay(config, checkpoint, tmp_path):
    """A student whose forces are a hundred times too large heats up within a few steps."""
    content = torch.load(checkpoint, weights_only=False)
    content["normalizers"]["forces"] = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(200.0)}
    torch.save(content, tmp_path / "hot.pt")
    (seen, _) = explored(config, tmp_path / "hot.pt", tmp_path / "out", rounds=1, ps=0.05, relax_steps=0)
    assert all(start["reason"] in ("a temperature above the limit", "a force above the limit") for start in seen.starts)
    assert 0 < max(seen.ps) < 0.05
    with Staging(tmp_path / "out/round-1/frames") as staging:
        rows = [frame.row for frame in exploration.frames_of(staging, 3)]
    assert {row["before_failure"] for row in rows} == {True}


def test_bad_input_is_refused_before_anything_runs(config, checkpoint, data, teacher_checkpoint, tmp_path):
    other = copy.deepcopy(config)
    other["model"]["hidden_channels"] = 8
    with pytest.raises(ValueError, match=r"checkpoint.pt is another student than the YAML's `model`, a `painn`"):
        explored(other, checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is another student than the YAML's `model`"):
        explored(config, teacher_checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match=r"--checkpoint .*nowhere.pt: does not exist"):
        explored(config, tmp_path / "nowhere.pt", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["lock"]
    without = copy.deepcopy(config)
    del without["task"]["distill"]["teacher"]["cache"]
    with pytest.raises(ValueError, match=r"task.distill.teacher.cache: missing. Each round trains on"):
        explored(without, checkpoint, tmp_path / "out")
    del config["task"]["distill"]["teacher"]["checkpoint"]
    with pytest.raises(ValueError, match=r"task.distill.teacher.checkpoint: missing; the teacher labels the frames"):
        explored(config, checkpoint, tmp_path / "out")


def test_other_options_and_a_second_command_are_refused(config, checkpoint, tmp_path):
    explored(config, checkpoint, tmp_path / "out", rounds=1, relax_steps=0)
    with pytest.raises(ValueError, match=r"made with other settings: temperature 500.0, now 600.0; relax_steps 0, now 5"):
        explored(config, checkpoint, tmp_path / "out", temperature=600.0)
    config["optim"]["lr_initial"] = 1e-2
    with pytest.raises(ValueError, match=r"made with other settings: optim.lr_initial 0.001, now 0.01"):
        explored(config, checkpoint, tmp_path / "out", relax_steps=0)
    with exclusive(tmp_path / "out/lock"), pytest.raises(LockedError):
        explored(config, checkpoint, tmp_path / "out")


def test_systems_without_free_atoms_are_counted_or_refused(config, checkpoint, data, tmp_path):
    for name, is_fixed in (("one", lambda index: index == 4), ("all", lambda index: True)):
        place = tmp_path / name
        place.mkdir()

        def edit(index: int, system, is_fixed=is_fixed) -> None:
            if is_fixed(index):
                system.fixed[:] = 1

        config["dataset"]["train"]["src"] = str(write_edited(data / "train", place / "data", edit))
        config["task"]["distill"]["teacher"].pop("cache")
        config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, place))
    one = copy.deepcopy(config)
    one["dataset"]["train"]["src"], one["task"]["distill"]["teacher"]["cache"] = (
        str(tmp_path / "one" / each) for each in ("data", "cache")
    )
    (seen,) = explored(one, checkpoint, tmp_path / "one/out", stable_ps=0.012)  # from all that can move
    assert [start["ps"] is None for start in seen.starts] == [False, True, False]
    assert seen.thrown_out["md"] == {"all atoms are fixed": 1}
    with pytest.raises(ValueError, match=r"nothing can move: all atoms of the 3 starts are fixed"):
        explored(config, checkpoint, tmp_path / "all/out")


def test_a_teacher_that_returns_nan_and_a_full_disk(config, checkpoint, tmp_path, monkeypatch):
    run, put = Teacher.__call__, Staging.put

    def spoilt(teacher, batch, *arguments):
        outputs = run(teacher, batch, *arguments)
        if teacher.name == "equiformer_v2" and "parent" in batch:
            outputs.forces[batch.batch == 0] = torch.nan
        return outputs

    def full(self, number, unit):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Teacher, "__call__", spoilt)
    monkeypatch.setattr(Staging, "put", full)
    with pytest.raises(ValueError, match=r"cannot write \(.*No space left on device\)\. Put that right"):
        explored(config, checkpoint, tmp_path / "out", rounds=1, relax_steps=0)
    monkeypatch.setattr(Staging, "put", put)
    seen, _ = explored(config, checkpoint, tmp_path / "out", rounds=1, relax_steps=0)
    assert seen.kept == {"md": 6} and seen.thrown_out == {"md": {"numbers that are not finite": 3}}
    with pytest.raises(ValueError, match=r"no frame is kept. Thrown out: md: 6 an energy out of range, 3 numbers that are"):
        explored(config, checkpoint, tmp_path / "none", relax_steps=0, max_energy_change=1e-12)
