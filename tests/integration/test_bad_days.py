"""What a long run meets: gradients that are not finite, and interruptions of a student that draws random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TEACHER_MODEL, same_weights

from fairchem_crack import trainer
from fairchem_crack.distillation import Distillation


@pytest.fixture
def spoil(monkeypatch):
    """Callable: make the distillation's loss not a number in these steps."""

    def at(*steps: int) -> None:
        loss = Distillation.loss

        def spoiled(self, batch, step, *more):
            value = loss(self, batch, step, *more)
            if step in steps:
                self.log["loss_relations"] = math.nan
                return value * math.nan
            return value

        monkeypatch.setattr(Distillation, "loss", spoiled)

    return at


def test_a_step_without_finite_gradients_is_skipped_and_named(run, distilled, spoil, caplog):
    spoil(3)
    distilled["optim"].update(checkpoint_every=1, eval_every=10)
    finished = run(distilled)
    assert len(finished.steps) == 6
    weights = torch.load(finished.checkpoints / "checkpoint.pt", weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())
    said = [record.message for record in caplog.records if "not finite" in record.message]
    assert len(said) == 1
    assert "Step 3: gradients that are not finite, from systems" in said[0] and "(loss_relations = nan)" in said[0]
    assert "9 more in a row stop the run" in said[0]


def test_a_skipped_step_changes_nothing(run, distilled, spoil):
    distilled["optim"].update(checkpoint_every=1, eval_every=10, ema_decay=None)
    before = run(distilled, name="before", stop_at=3)  # the checkpoint of step 2
    spoil(3)
    after = run(distilled, name="after", stop_at=4)  # of step 3
    one, other = (torch.load(found.checkpoints / "checkpoint.pt", weights_only=False) for found in (before, after))
    assert (one["step"], other["step"]) == (2, 3)
    assert same_weights(one["state_dict"], other["state_dict"])
    projection = "projection"
    assert same_weights(one["crack_distill"][projection], other["crack_distill"][projection])


def test_too_many_in_a_row_stop_the_run(run, distilled, spoil):
    spoil(1, 3, 4, 5)
    distilled["task"]["distill"]["max_skipped_steps"] = 3
    with pytest.raises(
        FloatingPointError, match=r"Step 5: .*number 3 in a row: the run stops. Resume from the last checkpoint"
    ):
        run(distilled)


def test_graph_parallelism_is_refused_with_the_reason(distilled):
    with pytest.raises(ValueError, match="--gp-gpus 2: distillation needs all atoms of a system on one rank"):
        trainer.CrackDistillTrainer(
            task=distilled["task"], loss_functions=distilled["loss_functions"], gp_gpus=2, run_dir="."
        )


@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_student_with_dropout_and_random_frames_resumes_exactly(run, distilled, stop_at):
    distilled["model"] = {**TEACHER_MODEL, "alpha_drop": 0.1, "drop_path_rate": 0.1}
    distilled["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=4)
    whole = run(distilled, name="whole")
    run(distilled, name="cut", stop_at=stop_at)
    resumed = run(distilled, name="cut")
    first = int(resumed.steps[0]["step"])
    assert first > 1 and resumed.losses() == pytest.approx(whole.losses()[first - 1 :], rel=1e-6)
