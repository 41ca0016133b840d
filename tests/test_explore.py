"""The parts of `fairchem_crack.explore` that need no model: settings, frames, errors, the YAML of a round."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from conftest import distill_config
from torch_geometric.data import Data

from fairchem_crack.explore import training
from fairchem_crack.explore.labelling import mean_errors
from fairchem_crack.explore.settings import Settings
from fairchem_crack.explore.summary import Explored, table
from fairchem_crack.explore.training import Training, command, write_yaml
from fairchem_crack.explore.trajectories import Frames, run_from


def taken(steps: int, every: int) -> Frames:
    frames = Frames(every)
    for step in range(1, steps + 1):
        frames.take(Atoms("H", [[step, 0, 0]]), step)
    return frames


def test_every_kth_frame_is_kept_and_more_before_a_failure():
    frames = taken(47, every=20)
    assert [(step, position[0, 0], before) for step, position, before in frames] == [(20, 20, False), (40, 40, False)]
    frames.fail()
    steps = {step: before for step, _, before in frames}
    assert steps == {20: False, 40: False, 31: True, 39: True, 43: True, 45: True, 46: True, 47: True}
    short = taken(2, every=20)
    short.fail()
    assert [step for step, _, _ in short] == [1, 2]
    nothing = taken(0, every=20)
    nothing.fail()
    nothing.keep_last()
    assert not list(nothing)


def test_a_start_without_free_atoms_is_counted():
    start = Data(pos=torch.zeros(2, 3), atomic_numbers=torch.tensor([1, 1]), fixed=torch.ones(2), parent=4)
    run = run_from(start, None, torch.device("cpu"), Settings(rounds=1, steps=1), 1)
    assert run.ending.ps is None and not run.candidates and run.thrown_out == {("md", "all atoms are fixed"): 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "--rounds 0: expected at least 1"),
        ({"select": 0}, "--select 0: expected at least 1"),
        ({"relax_steps": -1}, "--relax-steps -1: expected at least 0"),
        ({"temperature": float("nan")}, "--temperature nan: expected a positive number"),
        ({"max_force": 0.0}, "--max-force 0: expected a positive number"),
        ({"min_distance": -1.0}, "--min-distance -1: expected 0 or"),
        ({"sigma": (0.2, 0.1)}, "--sigma 0.2 0.1: expected two positive numbers"),
        ({"stable_ps": 3.0}, "--stable-ps 3: the dynamics last --ps 2 only"),
        ({"stable_starts": 3}, "--stable-starts 3: give --stable-ps"),
        ({"stable_starts": 30, "stable_ps": 1.0}, "--stable-starts 30: there are --starts 20 only"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_option(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"rounds": 1, "steps": 1, **given})


def explored(*ps: float | None, forces_mae: float = 0.1) -> Explored:
    starts = [{"parent": index, "ps": each, "reason": None, "detail": ""} for index, each in enumerate(ps)]
    errors = {"energy_mae": 0.5, "forces_mae": forces_mae}
    return Explored(2, "f", starts, {"md": 7}, {"md": {"two atoms too close": 2}}, 9, errors)


@pytest.mark.parametrize(
    ("asked", "is_good_enough"),
    [
        ({}, False),
        ({"stable_ps": 2.0}, False),
        ({"stable_ps": 0.5}, True),
        ({"stable_ps": 2.0, "stable_starts": 1}, True),
        ({"stable_ps": 0.5, "max_forces_mae": 0.05}, False),
        ({"max_forces_mae": 0.1}, True),
    ],
)
def test_rounds_end_when_all_that_is_asked_for_holds(asked, is_good_enough):
    seen = explored(2.0, 0.5, None)  # of the last start no atom can move
    assert seen.is_good_enough(Settings(rounds=1, steps=1, **asked)) is is_good_enough


def test_the_table_has_a_line_for_each_student():
    first, second = table([explored(2.0, 0.5, None), explored(None)], Settings(rounds=1, steps=1)).splitlines()[2:]
    assert first.split("  ") == [*first.split("  ")[:-1], first.split("  ")[-1]]
    assert "1.25 (0.5 to 2)" in first and "1 of 2" in first and first.split()[-5:] == ["7", "2", "9", "0.500", "0.100"]
    assert "0 of 0" in second


def test_errors_of_forces_are_means_over_free_atoms():
    rows = [
        {"student_energy_error": 1.0, "student_forces_error": 0.3, "free_atoms": 1},
        {"student_energy_error": 3.0, "student_forces_error": 0.1, "free_atoms": 3},
    ]
    assert mean_errors(rows) == {"energy_mae": pytest.approx(2.0), "forces_mae": pytest.approx(0.15)}
    assert mean_errors([]) == {}


@pytest.mark.parametrize(("scheduler", "option"), [("OneCycleLR", "total_steps"), ("CosineAnnealingLR", "T_max")])
def test_a_round_trains_for_whole_epochs_on_its_data(tmp_path, scheduler, option):
    config = distill_config(tmp_path, tmp_path / "teacher.pt")
    config["optim"] |= {"scheduler": scheduler, "batch_size": 4}
    config["seed"], config["checkpoint"] = 0, "elsewhere.pt"  # fairchem's flags
    steps = write_yaml(tmp_path, config, {"format": "lmdb", "src": "new"}, tmp_path / "cache", systems=21, steps=20, ranks=2)
    written = yaml.safe_load((tmp_path / "train.yml").read_text())
    assert steps == 21 == written["optim"][option] and written["optim"]["max_epochs"] == 7  # 11 systems on a rank
    assert written["dataset"]["train"] == {"format": "lmdb", "src": "new"}
    assert written["dataset"]["val"] == {
        **config["dataset"]["train"],
        "src": config["dataset"]["val"]["src"],
        "use_train_settings": False,
    }
    assert written["task"]["distill"]["teacher"]["cache"] == str(tmp_path / "cache")
    assert not {"seed", "checkpoint"} & written.keys() and np.isfinite(written["optim"]["lr_initial"])


def test_a_training_begins_at_the_student_and_resumes_its_own(tmp_path):
    training = Training(("--cpu", "--seed", "3"), ranks=2)
    begun = command(tmp_path, training)
    assert begun[-2:] == ["--checkpoint", str(tmp_path / "student.pt")] and {"--cpu", "--seed"} <= set(begun)
    checkpoint = tmp_path / "run/checkpoints/student/checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert command(tmp_path, training) == begun[:-2]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "print('no such option'); raise SystemExit(3)",
            r"ended with status 3. Its log, .*train.log, ends with:\nno such",
        ),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("pass", "ended at step 4 of 5"),
    ],
)
def test_a_training_that_does_not_end_is_an_error_with_its_log(tmp_path, monkeypatch, script, message):
    checkpoint = tmp_path / "run/checkpoints/student/checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "config": {}, "step": 4}, checkpoint)
    monkeypatch.setattr(training, "command", lambda place, options: [sys.executable, "-c", script])
    with pytest.raises(ValueError, match=message):
        Training()(tmp_path, 5)
    if script == "pass":
        Training()(tmp_path, 4)
