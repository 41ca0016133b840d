"""A run ends with its last step: validated and saved, whatever the intervals, and once."""

from __future__ import annotations

import copy

import pytest
import recorder
import torch
from conftest import same_weights
from fairchem.core.trainers.ocp_trainer import OCPTrainer
from tolerances import REPEATED

from fairchem_crack import keys
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.io.progress import Progress, progress_of
from fairchem_crack.training.trainer import CrackDistillTrainer

STEPS = 6


def load(finished, file: str = "checkpoint.pt") -> dict:
    return torch.load(finished.checkpoints / file, map_location="cpu", weights_only=False)


@pytest.fixture
def plain(stock) -> dict:
    """A training by our trainer without distillation."""
    return {**stock, "trainer": "fairchem_crack.CrackDistillTrainer"}


@pytest.fixture
def metric(monkeypatch):
    """Callable: the force MAE of the validations, by their steps, in place of what they give."""

    def of(values: dict[int, float]) -> None:
        validate = OCPTrainer.validate

        def replaced(self, *given):
            metrics = validate(self, *given)
            metrics["forces_mae"]["metric"] = values[self.step]
            return metrics

        monkeypatch.setattr(OCPTrainer, "validate", replaced)

    return of


@pytest.mark.parametrize(
    "optim, validated",
    [
        ({"eval_every": 100}, [6]),
        ({"eval_every": 4}, [4, 6]),
        ({"eval_every": 4, "checkpoint_every": 1}, [4, 6]),
        ({"eval_every": 4, "checkpoint_every": -1}, [4, 6]),
        ({}, [6]),
        ({"checkpoint_every": 100}, [6]),
        ({"scheduler": "ReduceLROnPlateau", "mode": "min", "eval_every": 4}, [4, 6]),
    ],
)
@pytest.mark.parametrize("is_distilled", [False, True], ids=["plain", "distilled"])
def test_the_last_step_is_validated_and_saved_once(run, plain, distilled, optim, validated, is_distilled):
    config = distilled if is_distilled else plain
    config["optim"].update(optim)
    finished = run(copy.deepcopy(config))
    assert [record["step"] for record in finished.validations] == validated
    assert load(finished)["step"] == STEPS
    best = min(finished.validations, key=lambda record: record["forces_mae"])
    assert progress_of(load(finished, "best_checkpoint.pt")) == Progress(best["step"], best["epoch"])
    assert load(finished)["best_val_metric"] == pytest.approx(best["forces_mae"])
    again = run(copy.deepcopy(config))
    assert again.steps == [] and again.validations == []


def test_the_best_checkpoint_of_the_end_has_the_averaged_weights(run, plain):
    plain["optim"].update(eval_every=100, ema_decay=0.5)
    finished = run(plain)
    best = finished.checkpoints / "best_checkpoint.pt"
    (validated,) = run(plain, mode="validate", name="validate", checkpoint=best).validations
    assert validated["forces_mae"] == pytest.approx(finished.validations[-1]["forces_mae"], rel=REPEATED)
    assert not same_weights(load(finished)["state_dict"], load(finished, best.name)["state_dict"])


def test_without_validation_the_last_step_is_saved(run, plain):
    del plain["dataset"]["val"]
    plain["optim"]["eval_every"] = 4
    finished = run(copy.deepcopy(plain))
    assert load(finished)["step"] == STEPS and finished.validations == []
    assert run(plain).steps == []


@pytest.mark.parametrize("eval_every", [3, 4])
def test_a_run_killed_in_its_last_validation_validates_on_resume(run, distilled, monkeypatch, eval_every):
    validate = CrackDistillTrainer.validate

    def killed(self, *given, **options):
        if self.step == STEPS:
            raise recorder.Interrupted
        return validate(self, *given, **options)

    distilled["optim"].update(eval_every=eval_every, checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(CrackDistillTrainer, "validate", killed)
        run(copy.deepcopy(distilled), stop_at=99)
    resumed = run(copy.deepcopy(distilled))
    assert resumed.steps == [] and [record["step"] for record in resumed.validations] == [STEPS]
    assert run(distilled).validations == []


def test_a_resumed_run_keeps_its_best_checkpoint(run, plain, metric):
    """fairchem saves step 2 before it validates it, and a run resumed from there would take step 4 for the best."""
    metric({2: 0.1, 4: 0.5, 6: 0.3})
    plain["optim"].update(eval_every=2)
    run(copy.deepcopy(plain), stop_at=3)
    resumed = run(plain)
    assert progress_of(load(resumed, "best_checkpoint.pt")).step == 2
    assert load(resumed)["best_val_metric"] == 0.1


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_plateau_schedule_resumes_with_all_its_validations(run, plain, metric, stop_at):
    metric({2: 0.1, 4: 0.5, 6: 0.6, 8: 0.7, 10: 0.8, 12: 0.9})
    schedule = {"scheduler": "ReduceLROnPlateau", "mode": "min", "factor": 0.5, "patience": 0}
    plain["optim"].update(schedule, eval_every=2, max_epochs=2)
    whole = run(copy.deepcopy(plain), name="whole")
    rates = [record["lr"] for record in whole.steps]
    assert rates[4:] == [5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4, 1.25e-4, 6.25e-5, 6.25e-5]
    run(copy.deepcopy(plain), name="cut", stop_at=stop_at)
    resumed = run(plain, name="cut")
    assert [record["lr"] for record in resumed.steps] == rates[int(resumed.steps[0]["step"]) - 1 :]


# ---- what a checkpoint says of it


def test_progress_is_read_from_every_kind_of_checkpoint(teacher_checkpoint):
    entry = {keys.CHECKPOINT_KEY: {keys.STEP: 4, keys.EPOCH: 0.5}}
    assert str(progress_of(entry)) == "step 4, epoch 0.5"
    assert str(progress_of({"step": 1128, "epoch": 3.99999})) == "step 1128, epoch 4"
    assert str(progress_of({keys.CHECKPOINT_KEY: {"projection": {}}, "step": 3})) == "step 3"
    assert str(progress_of(torch.load(teacher_checkpoint, weights_only=False))) == "step not recorded"


def test_an_untrained_checkpoint_is_refused(teacher_checkpoint, tmp_path):
    untrained = torch.load(teacher_checkpoint, weights_only=False)
    torch.save({**untrained, "step": 0, "epoch": 0}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of step 0: its model is untrained"):
        CheckpointEvaluator(tmp_path / "checkpoint.pt", {})
