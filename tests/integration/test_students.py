"""Every architecture as student and as teacher, in a training; starting from the teacher; schedules in epochs."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from architectures import MODELS, build
from conftest import TEACHER_MODEL, same_weights
from tolerances import FLOAT32_TINY, LEARNING_RATE, RANDOM_FRAMES

from fairchem_crack import keys
from fairchem_crack.training import trainer

pytestmark = pytest.mark.slow


def load(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


@pytest.fixture
def two_steps(distilled) -> dict:
    """The distilled training, of two steps: 12 systems, 6 in a batch."""
    distilled["optim"]["batch_size"] = 6
    return distilled


@pytest.fixture
def teacher_of(tmp_path):
    """Callable: the checkpoint of a toy model of that architecture."""

    def write(name: str, **options) -> Path:
        config = copy.deepcopy(MODELS[name])
        config.get("backbone", config).update(options)
        path = tmp_path / "teacher.pt"
        weights = {f"module.{key}": value for key, value in build(name, **options).state_dict().items()}
        torch.save({"config": {"model": config}, "state_dict": weights, "normalizers": {}}, path)
        return path

    return write


def of_demo_systems(name: str) -> dict:
    """A toy model with fewer neighbors, for speed."""
    model = copy.deepcopy(MODELS[name])
    for part in (model, model.get("backbone", {})):
        part.update({"max_neighbors": 12} if "max_neighbors" in part else {})
    return model


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("esc") and not name.startswith("ese")])
def test_every_architecture_is_a_student(run, two_steps, name):
    two_steps["model"] = of_demo_systems(name)
    steps = run(two_steps).steps
    assert len(steps) == 2
    for record in steps:
        assert all(
            math.isfinite(record[f"loss_{term}"]) for term in ("energy", "forces", keys.RELATIONS, keys.NODE_EMBEDDINGS)
        )


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_a_teacher(run, two_steps, teacher_of, name):
    two_steps["task"]["distill"]["teacher"]["checkpoint"] = str(
        teacher_of(name, **{"cutoff": 4.0} if "dimenet" in name else {})
    )
    steps = run(two_steps).steps
    assert len(steps) == 2 and all(math.isfinite(record["loss"]) for record in steps)


def of_the_teachers_width(**options) -> dict:
    return {**TEACHER_MODEL, **options}


def test_a_student_starts_from_the_named_blocks_only_once(run, two_steps, teacher_checkpoint, monkeypatch):
    two_steps["model"] = of_the_teachers_width()
    two_steps["task"]["distill"]["init_from_teacher"] = {"blocks": [0]}
    two_steps["task"]["distill"]["teacher"]["use_ema"] = False
    two_steps["optim"].update(lr_initial=0.0, max_epochs=2, eval_every=2, checkpoint_every=1)
    teacher = {key.removeprefix("module."): value for key, value in load(teacher_checkpoint)["state_dict"].items()}
    finished = run(two_steps, name="start")
    weights = {
        key.removeprefix("module."): value
        for key, value in load(finished.checkpoints / "checkpoint.pt")["state_dict"].items()
    }
    assert same_weights(weights, teacher)
    state = load(finished.checkpoints / "checkpoint.pt")[keys.CHECKPOINT_KEY]  # measured on the student that starts
    mean = state[keys.CHANNEL_STATISTICS]["channel_mean"]
    torch.testing.assert_close(state[keys.PROJECTION]["shift"], mean, **RANDOM_FRAMES)
    best = load(finished.checkpoints / "best_checkpoint.pt")["state_dict"]  # the averaged weights: they started there too
    assert all(torch.allclose(value, teacher[key.removeprefix("module.")], **FLOAT32_TINY) for key, value in best.items())

    copies: list[tuple] = []
    monkeypatch.setattr(trainer, "copy_weights", lambda *given: copies.append(given))
    two_steps["optim"]["max_epochs"] = 3
    resumed = run(two_steps, name="start")
    assert [record["step"] for record in resumed.steps] == [5, 6] and not copies


def test_a_student_of_another_width_cannot_start_from_teacher(run, two_steps):
    two_steps["model"] = of_the_teachers_width(sphere_channels=8)
    two_steps["task"]["distill"]["init_from_teacher"] = {"blocks": [0]}
    with pytest.raises(ValueError, match="init_from_teacher: the student must have the teacher's architecture and widths"):
        run(two_steps)


@pytest.mark.parametrize("name", ["painn", "gemnet_t", "equiformer_v2"])
def test_a_cosine_schedule_in_epochs(run, two_steps, name):
    """Linear from factor to 1 over the warm-up, then half a cosine over all steps (fairchem's EquiformerV2 schedule)."""
    two_steps["model"] = of_demo_systems(name)
    schedule = {"lambda_type": "cosine", "warmup_epochs": 1, "warmup_factor": 0.2, "lr_min_factor": 0.01}
    two_steps["optim"].update(scheduler="LambdaLR", scheduler_params=schedule, max_epochs=3)
    finished = run(two_steps)
    rates = [record["lr"] / 1e-3 for record in finished.steps]
    warm = [0.2, 0.6, 1.0]
    cosine = [0.01 + 0.5 * 0.99 * (1 + math.cos(math.pi * step / 6)) for step in (3, 4, 5)]
    assert rates == pytest.approx(warm + cosine, rel=LEARNING_RATE)
    assert load(finished.checkpoints / "checkpoint.pt")["config"]["optim"]["scheduler_params"] == schedule


def test_a_resumed_cosine_schedule_continues(run, two_steps):
    schedule = {"lambda_type": "cosine", "warmup_epochs": 1, "warmup_factor": 0.2, "lr_min_factor": 0.01}
    two_steps["optim"].update(
        scheduler="LambdaLR", scheduler_params=schedule, max_epochs=3, checkpoint_every=1, eval_every=10
    )
    whole = run(two_steps, name="whole")
    run(two_steps, name="cut", stop_at=4)
    resumed = run(two_steps, name="cut")
    start = int(resumed.steps[0]["step"])
    assert start > 1 and [record["lr"] for record in resumed.steps] == [record["lr"] for record in whole.steps[start - 1 :]]


def test_a_schedule_in_epochs_can_be_validated_without_train(run, two_steps):
    schedule = {"lambda_type": "cosine", "warmup_epochs": 1, "warmup_factor": 0.2, "lr_min_factor": 0.01}
    two_steps["optim"].update(scheduler="LambdaLR", scheduler_params=schedule)
    trained = run(two_steps)
    for split in ("train", "test"):
        two_steps["dataset"].setdefault(split, {})
    source = two_steps["dataset"]["val"]["src"]
    two_steps["dataset"] = {"train": {}, "val": {**two_steps["dataset"]["train"], "src": source}}
    checked = run(two_steps, mode="validate", name="validate", checkpoint=trained.checkpoints / "checkpoint.pt")
    assert len(checked.validations) == 1


def test_a_warmup_of_less_than_a_step_is_refused(run, two_steps):
    schedule = {"lambda_type": "cosine", "warmup_epochs": 0.1, "warmup_factor": 0.2, "lr_min_factor": 0.01}
    two_steps["optim"].update(scheduler="LambdaLR", scheduler_params=schedule)
    with pytest.raises(
        ValueError, match=r"warmup_epochs: 0.1 of an epoch of 2 steps is less than one step; give at least 0.5"
    ):
        run(two_steps)
