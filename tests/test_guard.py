"""What is not finite is detected, named by system, and counted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fairchem.core.modules.normalization.element_references import LinearReferences
from fairchem.core.modules.normalization.normalizer import Normalizer
from torch import nn

from fairchem_crack import keys
from fairchem_crack.config import CONTRASTIVE, DistillConfig, TeacherConfig, TermConfig
from fairchem_crack.evaluation.s2ef.evaluator import check_errors
from fairchem_crack.evaluation.s2ef.submission import TEST_SPLITS, write_submission
from fairchem_crack.training import scale_factors
from fairchem_crack.training.config_checks import check_normalizers
from fairchem_crack.training.guard import SkippedSteps, compared, drop_unless_finite, faults, teacher_faults
from fairchem_crack.training.losses import LossContext, build_loss

OUTPUTS = {
    "energy": {"level": "system"},
    "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": False},
}


@pytest.fixture
def out(batch) -> dict:
    """Predictions of a student, normalised."""
    return {"energy": torch.zeros(3, 1), "forces": torch.zeros(len(batch.pos), 3)}


def faults_of(batch, out, mask: str = "train_on_free_atoms") -> list[str]:
    return faults(compared(OUTPUTS, OUTPUTS, mask, out, batch), batch)


def labelled(batch):
    batch.energy, batch.forces = torch.zeros(3), torch.zeros(len(batch.pos), 3)
    return batch


def test_labels_predictions_and_positions_are_named_by_system(batch, out):
    first, second, third = labelled(batch).sid.tolist()
    assert faults_of(batch, out) == []
    batch.energy[1], out["energy"][2] = math.inf, math.nan
    batch.forces[int(((batch.batch == 0) & (batch.fixed == 0)).nonzero()[0]), 2] = math.nan
    batch.pos[-1, 0] = math.nan
    assert faults_of(batch, out) == [
        f"pos of sid {third}",
        f"label `energy` of sid {second}",
        f"student's `energy` of sid {third}",
        f"label `forces` of sid {first}",
    ]


def test_fixed_atoms_count_where_they_are_compared(batch, out):
    fixed = int((labelled(batch).fixed == 1).nonzero()[0])
    batch.forces[fixed] = math.nan
    assert faults_of(batch, out) == []
    assert faults_of(batch, out, "eval_on_free_atoms") == [f"label `forces` of sid {int(batch.sid[0])}"]


@pytest.mark.parametrize("sids", [None, ["a", "b", "c"]])
def test_systems_without_numbers_are_named(batch, out, sids):
    del labelled(batch).sid
    if sids is not None:
        batch.sid = sids
    batch.energy[1] = math.nan
    assert faults_of(batch, out) == [f"label `energy` of {'number 1' if sids is None else 'sid b'}"]


def test_a_teachers_fields_of_atoms_and_systems(batch):
    atoms, energy = torch.zeros(len(batch.pos), 2), torch.zeros(3)
    atoms[0, 1], energy[2] = math.nan, math.inf
    first, _, third = batch.sid.tolist()
    given = {"node_embedding": atoms, "energy": energy, "forces": torch.zeros_like(batch.pos)}
    assert teacher_faults(given.items(), batch) == [
        f"teacher's `node_embedding` of sid {first}",
        f"teacher's `energy` of sid {third}",
    ]


@pytest.mark.parametrize("fn", ["mse", "mae", "l2mae", "crack", "info_nce"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_reaches_the_loss(fn, value):
    """fairchem's DDPLoss makes it 0: a finite loss, and no gradient."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=generator) for _ in range(2))
    student[2, 1] = value
    key = {fn: key for key, fn in CONTRASTIVE.items()}.get(fn, keys.NODE_EMBEDDINGS)
    context = LossContext(torch.tensor([3, 3]), pairs=torch.tensor([[0, 0, 1, 3], [1, 2, 2, 4]]))
    loss = build_loss(TermConfig(key, fn, 1.0), DistillConfig(TeacherConfig("any")))
    assert not loss(student.requires_grad_(True), teacher, context).isfinite()


def test_a_term_of_two_shapes_is_refused():
    loss = build_loss(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0), DistillConfig(TeacherConfig("any")))
    with pytest.raises(ValueError, match=r"equal shape; found \(6, 4\) and \(6, 1\)"):
        loss(torch.zeros(6, 4), torch.zeros(6, 1), LossContext(torch.tensor([6])))


@pytest.mark.parametrize("spoiled", [None, 0, 1])
def test_two_optimizers_step_together_or_not_at_all(spoiled):
    modules = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1) for module in modules]
    for module in modules:
        module(torch.ones(1, 2)).sum().backward()
    if spoiled is not None:
        modules[spoiled].bias.grad[0] = math.nan
    assert drop_unless_finite(*optimizers) is (spoiled is None)
    gradients = [value.grad for module in modules for value in module.parameters()]
    assert all((gradient is None) is (spoiled is not None) for gradient in gradients)


def test_only_steps_in_a_row_count(caplog):
    steps = SkippedSteps(3)
    for _ in range(4):
        steps.count_skipped("Step 1: spoiled.")
        steps.count_skipped("Step 2: spoiled.")
        steps.count_taken()
    steps.conclude(began_at=0)
    assert "8 of the 12 steps since the start were skipped" in caplog.text
    steps.count_skipped("Step 13: spoiled.")
    steps.count_skipped("Step 14: spoiled.")
    with pytest.raises(FloatingPointError, match=r"Step 15: spoiled\. The step is skipped, number 3 in a row"):
        steps.count_skipped("Step 15: spoiled.")


def test_a_scale_that_can_be_lowered_is_no_reason_to_stop(caplog):
    steps = SkippedSteps(2)
    for exponent in range(15, -1, -1):  # from the scaler's 65536, halved
        steps.count_skipped("Step 1: spoiled.", loss_scale=2.0**exponent)
    assert "the loss scale of --amp lowered to 32768." in caplog.text
    steps.count_skipped("Step 17: spoiled.", loss_scale=0.5)
    with pytest.raises(FloatingPointError, match="Step 18"):
        steps.count_skipped("Step 18: spoiled.", loss_scale=0.25)


def test_a_run_of_only_skipped_steps_is_an_error():
    steps = SkippedSteps(10)
    steps.count_skipped("Step 1: spoiled.")
    steps.conclude(began_at=5)  # a resumed student is trained
    with pytest.raises(FloatingPointError, match=r"1 of the 1 steps .* the student is untrained"):
        steps.conclude(began_at=0)


# ---- outside of training


def test_a_mean_error_is_of_finite_errors():
    errors = {"energy": np.array([0.1, np.nan, 0.2]), "forces": np.array([1.0, 1.0, np.inf])}
    with pytest.raises(ValueError, match=r"a.pt on val: the errors of 2 systems \(number 1, 2\) are not finite"):
        check_errors(errors, "a.pt on val")
    check_errors({name: values[:1] for name, values in errors.items()}, "a.pt on val")


@pytest.mark.parametrize("mean, stdev", [(math.nan, 1.0), (0.0, math.nan), (0.0, 0.0), (math.inf, 1.0)])
def test_a_normalizer_is_finite(mean, stdev):
    check_normalizers({"energy": Normalizer(0.0, 2.0)}, {"energy": LinearReferences(torch.zeros(10))})
    with pytest.raises(ValueError, match=r"transforms\.normalizer\.energy: mean .*; expected finite numbers"):
        check_normalizers({"energy": Normalizer(mean, stdev)}, {})


def test_element_references_are_finite():
    with pytest.raises(ValueError, match=r"element_references\.energy: holds numbers that are not finite"):
        check_normalizers({}, {"energy": LinearReferences(torch.tensor([0.0, math.nan]))})


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
def test_a_scale_factor_is_positive(stock, monkeypatch, factor):
    def fit(config):
        torch.save({"upd_out_scalar_scale_0": torch.tensor(factor)}, config["checkpoint"])

    monkeypatch.setattr(scale_factors, "compute_scaling_factors", fit)
    with pytest.raises(ValueError, match=f"scale factors come out as upd_out_scalar_scale_0 = {factor}"):
        scale_factors.fit_scale_factors(stock)


def test_a_submission_is_finite(tmp_path):
    class Evaluator:
        def predict(self, _, directory):
            directory.mkdir()
            np.savez(directory / "predictions.npz", energy=np.array([0.0, np.inf]), forces=np.zeros((2, 3)))
            return directory / "predictions.npz"

    with pytest.raises(ValueError, match="--test id=a: predictions of energies or forces are not finite"):
        write_submission(Evaluator(), dict.fromkeys(TEST_SPLITS, Path("a")), tmp_path / "submission.npz")
    assert list(tmp_path.iterdir()) == []
