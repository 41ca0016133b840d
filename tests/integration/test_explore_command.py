"""The rounds of `fairchem-crack explore`, with a stand-in for the training: interruptions, an early end, bad input.

tests/test_docs.py runs the command with fairchem's training.
"""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import STUDENT_MODEL, distill_config, stock_config
from killing import kill_at_call
from stub_labeller import DIES, outputs_of

from fairchem_crack import keys
from fairchem_crack.commands.cli import main
from fairchem_crack.explore import exploration, rounds, student
from fairchem_crack.explore.rounds import explore
from fairchem_crack.explore.settings import Settings
from fairchem_crack.explore.student import write_student
from fairchem_crack.explore.tools import Job
from fairchem_crack.explore.training import checkpoint_of
from fairchem_crack.explore.trajectories import Ending, Run
from fairchem_crack.generate import outcome
from fairchem_crack.generate.staging import Staging
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import Records
from fairchem_crack.io.locks import LockedError, exclusive
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import digest_of, settings_of
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.teacher.label.command import main as label

TESTS = Path(__file__).parents[1]
FEW = {"rounds": 1, "steps": 4, "starts": 2, "ps": 0.006, "every": 2, "relax_steps": 2, "max_energy_change": 1e6}
SELECT = {"select": 5}  # of 8 frames
AT_ONCE = {"max_forces_mae": 1e9}  # any student is good enough: nothing is trained


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, teacher_checkpoint) -> tuple[dict, Path]:
    """A config with a teacher cache, and the checkpoint of a training by it, whose average is not its last weights."""
    directory = tmp_path_factory.mktemp("explore")
    config = distill_config(data, teacher_checkpoint)
    config["dataset"]["train"]["no_shuffle"] = True
    (directory / "cached.yml").write_text(yaml.safe_dump(config))
    cache = directory / "cache"
    gc.collect()  # one process opens an LMDB only once
    main(["cache-teacher", "--config-yml", str(directory / "cached.yml"), "--cpu", "--output", str(cache)])
    config["task"]["distill"]["teacher"]["cache"] = str(cache)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = student._model_of(config)
    trained = [value.detach().clone() for value in model.parameters() if value.requires_grad]
    average = {
        "decay": 0.9,
        "num_updates": None,
        "shadow_params": [0.9 * value for value in trained],
        "collected_params": [],
    }
    plan = TeacherCache(cache).plan
    entry = {
        keys.PROJECTION: {"trainable.weight": torch.ones(1)},
        keys.TEACHER_FINGERPRINT: plan.fingerprint,
        keys.TEACHER_SETTINGS: settings_of(TeacherCache(cache)),
        keys.DISTILL_CONFIG: {"loss_functions": {name: {} for losses in config["loss_functions"] for name in losses}},
    }
    content = {
        "config": {**stock_config(data), "model": dict(STUDENT_MODEL)},
        "state_dict": model.state_dict(),
        **{"normalizers": {}, "elementrefs": {}, "step": 6, "epoch": 1.0, "optimizer": {}, "ema": average},
        keys.CHECKPOINT_KEY: entry,
    }
    torch.save(content, directory / "checkpoint.pt")
    return config, directory / "checkpoint.pt"


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


def explored(config: dict, checkpoint: Path, directory: Path, **settings) -> list:
    gc.collect()
    return explore(Job(config, Settings(**{**FEW, **settings}), cpu=True), checkpoint, directory, train)


def content(directory: Path) -> dict[str, bytes]:
    """All that is there, by name; without locks, the database of frames, and the paths of this directory."""
    return {
        str(file.relative_to(directory)): file.read_bytes().replace(str(directory).encode(), b"")
        for file in directory.rglob("*")
        if file.is_file() and "lock" not in file.name and file.parent.name != "frames"
    }


def rows_of(place: Path) -> list[dict]:
    """Of the manifest, of the frames of a round."""
    with Staging(place / "frames") as staging:
        return [frame.row for frame in exploration.frames_of(staging, FEW["starts"])]


@pytest.fixture(scope="module")
def out(made, tmp_path_factory) -> Path:
    """A directory in which a student was good enough at once; then that of one more round."""
    directory = tmp_path_factory.mktemp("rounds") / "out"
    (at_once,) = explored(*made, directory, **SELECT, **AT_ONCE)
    assert not (directory / "round-1/data").exists()
    first, last = explored(*made, directory, **SELECT)
    assert first == at_once and last.student != first.student
    return directory


def test_a_round_adds_frames_that_the_teacher_has_labelled(out):
    seen, record = (json.loads((out / f"round-1/{name}.json").read_text()) for name in ("explored", "round"))
    assert [start["parent"] for start in seen["starts"]] == [0, 6]
    assert [start["ps"] for start in seen["starts"]] == pytest.approx([0.006, 0.006])
    assert sum(seen["kept"].values()) == seen["teacher_labels"] == 5 and seen["errors"]["forces_mae"] > 0
    assert sum(reasons.get("not selected", 0) for reasons in seen["thrown_out"].values()) == 3
    rows = [json.loads(line) for line in (out / "round-1/manifest.jsonl").read_text().splitlines()]
    cache = TeacherCache(out / "round-1/cache")
    with Records(record["training"]["dataset"]) as records:
        systems = records.first(len(records))
    assert len(rows) == len(systems) == len(cache) == len({digest_of(system) for system in systems}) == 12 + 5
    assert {row["strategy"] for row in rows[:12]} == {"parent"} and {row["round"] for row in rows[12:]} == {1}
    for row, system in zip(rows, systems):
        kept = cache.get(digest_of(system))
        assert row["labels"]["energy"] == ("data" if row["strategy"] == "parent" else "teacher")
        if row["labels"]["energy"] == "teacher":
            assert system.energy == pytest.approx(float(kept.values["energy"])) == row["teacher_energy"]
            assert np.array_equal(system.forces, kept.values["forces"])
    first, second = ([row["teacher_energy"] for row in rows_of(out / f"round-{number}")] for number in (1, 2))
    assert len(first) == len(second) == 5 and not set(first) & set(second)  # other velocities


def test_the_student_of_a_round_is_the_average_of_the_last(out, config, checkpoint, tmp_path):
    given = torch.load(checkpoint, weights_only=True)
    first, second = (torch.load(out / f"round-{number}/student.pt", weights_only=True) for number in (1, 2))
    names = [name for name, value in student._model_of(config).named_parameters() if value.requires_grad]
    average = dict(zip(names, given["ema"]["shadow_params"]))
    assert all(torch.equal(first["state_dict"][name], value) for name, value in average.items())
    assert all(torch.equal(second["state_dict"][name], 1.01 * value) for name, value in average.items())
    assert not {"step", "optimizer", "scheduler"} & first.keys() and first["ema"]["decay"] == 0.9
    for written in (first, second):  # the projections of the same terms and teacher
        assert keys.PROJECTION in written[keys.CHECKPOINT_KEY]
    config["loss_functions"].pop()
    write_student(checkpoint, tmp_path / "other.pt", config, Job(config, Settings(**FEW)).cache())
    entry = torch.load(tmp_path / "other.pt", weights_only=True)[keys.CHECKPOINT_KEY]
    assert entry == {keys.STEP: 6, keys.EPOCH: 1.0}


def test_other_options_and_a_second_command_are_refused(out, config, checkpoint):
    with pytest.raises(ValueError, match=r"made with other settings: temperature 500.0, now 600.0; relax_steps 2, now 5"):
        explored(config, checkpoint, out, temperature=600.0, relax_steps=5, **SELECT)
    with exclusive(out / "lock"), pytest.raises(LockedError):
        explored(config, checkpoint, out, **SELECT)
    config["optim"]["lr_initial"] = 1e-2
    with pytest.raises(ValueError, match=r"made with other settings: optim.lr_initial 0.001, now 0.01"):
        explored(config, checkpoint, out, **SELECT)


MOMENTS = [  # of the first round, but for the last
    (student, "write_bytes", 2),
    (exploration, "run_from", 2),
    (exploration, "write_json", 1),  # of what is selected
    (Staging, "put", 2),
    (exploration, "_concluded", 1),
    (outcome, "write_cache", 1),
    (os, "replace", 5),
    (rounds, "write_yaml", 1),
    (torch, "save", 2),  # in the training
    (rounds, "write_json", 1),  # after it
    (exploration.shutil, "rmtree", 3),  # what the second round has labelled
]


@pytest.mark.slow
def test_killed_at_many_moments_the_outcome_is_equal(out, config, checkpoint, tmp_path):
    for owner, name, number in MOMENTS:
        kill_at_call(owner, name, number, lambda: explored(config, checkpoint, tmp_path / "out", **SELECT))
    explored(config, checkpoint, tmp_path / "out", **SELECT)
    assert content(tmp_path / "out") == content(out)


def test_a_failing_trajectory_ends_and_the_frames_before_it_stay(config, checkpoint, tmp_path):
    """A student whose forces are far too large heats up within a few steps."""
    content = torch.load(checkpoint, weights_only=True)
    content["normalizers"]["forces"] = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(200.0)}
    torch.save(content, tmp_path / "hot.pt")
    (seen,) = explored(config, tmp_path / "hot.pt", tmp_path / "out", ps=0.05, every=50, relax_steps=0, **AT_ONCE)
    assert set(seen.endings) <= {"a temperature above the limit", "a force above the limit", "two atoms too close"}
    assert sum(seen.endings.values()) == 2 and 0 < max(seen.ps) < 0.05
    assert {row["before_failure"] for row in rows_of(tmp_path / "out/round-1")} == {True}


@pytest.mark.slow
def test_a_teacher_in_another_process_labels_the_frames(config, checkpoint, tmp_path, monkeypatch):
    """Killed while it labels, and run again."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(DIES, str(tmp_path / "died"))
    (tmp_path / "died").touch()  # not yet
    database, cache = tmp_path / "train.db", tmp_path / "cache"
    (tmp_path / "student.yml").write_text(yaml.safe_dump(config))
    gc.collect()
    main(["export-data", "--config-yml", str(tmp_path / "student.yml"), "--output", str(database)])
    teacher = ["--teacher", "stub_labeller:Dying"]
    label([*teacher, "--data", str(database), "--output", str(cache), "--chunk", "2", "--dtype", "float32"])
    command = f"{sys.executable} -m fairchem_crack.teacher.label {' '.join(teacher)}"
    config["task"]["distill"]["teacher"] = {"cache": str(cache), "command": command}
    explored(config, checkpoint, tmp_path / "whole", **SELECT)
    (tmp_path / "died").unlink()
    with pytest.raises(ValueError, match=r"Dying` ended with status -9\. Its log"):
        explored(config, checkpoint, tmp_path / "out", **SELECT)
    explored(config, checkpoint, tmp_path / "out", **SELECT)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    made = json.loads((tmp_path / "out/round-1/round.json").read_text())
    with Records(made["training"]["dataset"]) as records:
        systems = records.first(len(records))
    of_teacher = TeacherCache(tmp_path / "out/round-1/cache")
    assert len(systems) == 12 + 5
    for system in systems:
        record, expected = of_teacher.get(digest_of(system)), outputs_of(to_atoms(system))
        assert np.allclose(record.values["node_embedding"], expected.node_embedding, rtol=1e-5, atol=1e-5)
    config["task"]["distill"]["teacher"]["command"] = command.replace("Dying", "function")
    with pytest.raises(ValueError, match=r"was not made as `.*:function` labels: teacher .*:Dying \(cache\), .*:function"):
        explored(config, checkpoint, tmp_path / "other", **SELECT)


def test_bad_input_is_refused_before_anything_runs(config, checkpoint, teacher_checkpoint, tmp_path, monkeypatch):
    other = copy.deepcopy(config)
    other["model"]["hidden_channels"] = 8
    with pytest.raises(ValueError, match=r"checkpoint.pt is another student than the YAML's `model`, a `painn`"):
        explored(other, checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is another student than the YAML's `model`"):
        explored(config, teacher_checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match=r"--checkpoint .*nowhere.pt: does not exist"):
        explored(config, tmp_path / "nowhere.pt", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["lock"]
    for name, message in (("cache", "Each round trains on"), ("checkpoint", "the teacher labels the frames")):
        without = copy.deepcopy(config)
        del without["task"]["distill"]["teacher"][name]
        with pytest.raises(ValueError, match=rf"task.distill.teacher.{name}: missing.*{message}"):
            explored(without, checkpoint, tmp_path / "out")
    monkeypatch.setattr(exploration, "run_from", lambda *_: Run(Ending(None, "all atoms are fixed"), [], Counter()))
    with pytest.raises(ValueError, match=r"nothing can move: all atoms of the 2 starts are fixed"):
        explored(config, checkpoint, tmp_path / "out")
    monkeypatch.setattr(exploration, "run_from", lambda start, *_: Run(Ending(None if start.parent else 0.006)))
    with pytest.raises(ValueError, match=r"--stable-starts 2: 1 of the 2 starts have free atoms\. Give fewer"):
        explored(config, checkpoint, tmp_path / "few", stable_ps=0.006, stable_starts=2)


def test_a_teacher_that_returns_nan_and_a_full_disk(config, checkpoint, tmp_path, monkeypatch):
    run, put = Teacher.__call__, Staging.put

    def spoilt(teacher, batch, *arguments):
        outputs = run(teacher, batch, *arguments)
        if teacher.name == "equiformer_v2" and "parent" in batch:
            outputs.forces[batch.batch == 0] = torch.nan
        return outputs

    def full(self, number, unit):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = {"relax_steps": 0, "starts": 1}
    monkeypatch.setattr(Teacher, "__call__", spoilt)
    monkeypatch.setattr(Staging, "put", full)
    with pytest.raises(ValueError, match=r"cannot write \(.*No space left on device\)\. Put that right"):
        explored(config, checkpoint, tmp_path / "out", **settings)
    monkeypatch.setattr(Staging, "put", put)
    (seen,) = explored(config, checkpoint, tmp_path / "out", **settings, **AT_ONCE)
    assert seen.kept == {"md": 2} and seen.thrown_out == {"md": {"numbers that are not finite": 1}}
    with pytest.raises(ValueError, match=r"no frame is kept. Thrown out: md: 2 an energy out of range, 1 numbers"):
        explored(config, checkpoint, tmp_path / "none", **{**settings, "max_energy_change": 1e-12})
