"""Mixed precision, as far as a machine without a GPU shows it: fairchem's autocast and loss scaling, on the CPU.

fairchem has both for CUDA only. Here `torch.autocast("cuda")` is the CPU's in bfloat16, and the trainer has a CPU scaler.
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import same_weights
from tolerances import REORDERED, REPEATED

from fairchem_crack import keys
from fairchem_crack.training.distillation import Distillation
from fairchem_crack.training.trainer import CrackDistillTrainer

SCALE = 2.0**16


class _CpuAutocast(torch.autocast):
    def __init__(self, device_type: str, dtype=None, enabled: bool = True) -> None:
        super().__init__("cpu", torch.bfloat16 if device_type == "cuda" else dtype, enabled)


@pytest.fixture
def amp(distilled, monkeypatch):
    """A training in mixed precision, 6 steps, a checkpoint after each."""
    load = CrackDistillTrainer.load

    def with_scaler(trainer, inference_only):
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        load(trainer, inference_only)

    monkeypatch.setattr(CrackDistillTrainer, "load", with_scaler)
    monkeypatch.setattr(torch, "autocast", _CpuAutocast)
    distilled["optim"].update(checkpoint_every=1, eval_every=100)
    return distilled


@pytest.fixture
def overflow(monkeypatch):
    """Callable: spoil in some steps the loss, or a gradient of the student or of the projection."""

    def at(steps: tuple[int, ...], spoiled_part: str) -> None:
        loss = Distillation.loss

        def spoiled(self, step, outputs):
            losses = loss(self, step, outputs)
            if step.global_step in steps and spoiled_part == "loss":
                return losses._replace(total=losses.total * math.inf)
            if step.global_step in steps:
                module = self.student if spoiled_part == "student" else self.projections.modules[keys.NODE_EMBEDDING]
                first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
                hook = first.register_hook(lambda gradient: (hook.remove(), gradient * math.inf)[1])
            return losses

        monkeypatch.setattr(Distillation, "loss", spoiled)

    return at


def state(finished) -> dict:
    return torch.load(finished.checkpoints / "checkpoint.pt", map_location="cpu", weights_only=False)


def test_the_distillation_is_computed_in_float32(run, amp, monkeypatch):
    seen: list[tuple] = []
    part_of = Distillation._part

    def watched(self, term, context, *more):
        part = part_of(self, term, context, *more)
        seen.append((torch.is_autocast_cpu_enabled(), context.embeddings(keys.NODE_EMBEDDING)[0].dtype, part.total.dtype))
        return part

    monkeypatch.setattr(Distillation, "_part", watched)
    finished = run(amp)
    assert len(finished.steps) == 6 and all(math.isfinite(loss) for loss in finished.losses())
    assert set(seen) == {(True, torch.float32, torch.float32)}


def test_finite_gradients_update_the_student_and_the_projection(run, amp):
    two, three = (state(run(amp, name=f"until {stop}", stop_at=stop)) for stop in (3, 4))
    assert (two["step"], three["step"]) == (2, 3) and three["amp"]["scale"] == SCALE
    assert not same_weights(two["state_dict"], three["state_dict"])
    before, after = (checkpoint[keys.CHECKPOINT_KEY][keys.PROJECTION] for checkpoint in (two, three))
    assert not same_weights(before, after)


def test_the_scale_of_the_loss_does_not_reach_the_weights(run, amp, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    plain = run(amp, name="plain")
    monkeypatch.setitem(globals(), "SCALE", 2.0**20)
    assert run(amp, name="scaled").losses() == pytest.approx(plain.losses(), rel=REORDERED)


@pytest.mark.parametrize("spoiled_part", ["loss", "student", "projection"])
def test_an_overflow_updates_neither_and_lowers_the_scale(run, amp, overflow, caplog, spoiled_part):
    """A loss that is not finite before it is scaled is not made so by a lower scale, which therefore stays."""
    overflow((3,), spoiled_part)
    amp["optim"]["ema_decay"] = None
    two, three = (state(run(amp, name=f"until {stop}", stop_at=stop)) for stop in (3, 4))
    assert (two["step"], three["step"]) == (2, 3)
    assert (two["amp"]["scale"], three["amp"]["scale"]) == (SCALE, SCALE if spoiled_part == "loss" else SCALE / 2)
    assert same_weights(two["state_dict"], three["state_dict"])
    before, after = (file[keys.CHECKPOINT_KEY] for file in (two, three))
    assert same_weights(before[keys.PROJECTION], after[keys.PROJECTION])
    steps = [entry[keys.PROJECTION_OPTIMIZER]["state"][0]["step"] for entry in (before, after)]
    assert steps[0] == steps[1]
    rest = "; 9 more in a row stop the run" if spoiled_part == "loss" else ", and the loss scale of --amp lowered to 32768"
    assert f"The step is skipped{rest}." in caplog.text


@pytest.mark.parametrize("spoiled_part", ["student", "projection"])
def test_gradients_that_no_scale_makes_finite_stop_the_run(run, amp, overflow, monkeypatch, spoiled_part):
    """The scale goes 4, 2, 1, 0.5: two steps may be for the scale, those after it count."""
    monkeypatch.setitem(globals(), "SCALE", 4.0)
    overflow(range(1, 7), spoiled_part)
    amp["task"]["distill"]["max_skipped_steps"] = 3
    with pytest.raises(FloatingPointError, match=r"Step 5: gradients .* not finite.* number 3 in a row: the run stops"):
        run(amp)


def test_a_run_of_mixed_precision_resumes_exactly(run, amp, overflow):
    overflow((3,), "student")
    whole = run(amp, name="whole")
    run(amp, name="cut", stop_at=5)
    resumed = run(amp, name="cut")
    assert [record["step"] for record in resumed.steps] == [5, 6]
    assert resumed.losses() == pytest.approx(whole.losses()[4:], rel=REPEATED)
    assert state(resumed)["amp"] == state(whole)["amp"]
