"""A run that is started again with other options warns, or is refused."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from fairchem_crack import keys


@pytest.fixture
def begun(run, distilled):
    """The config of a distillation that was killed in step 5 of 12; its checkpoint is of step 4."""
    distilled["optim"].update(max_epochs=2, T_max=12, checkpoint_every=2, eval_every=100)
    run(copy.deepcopy(distilled), stop_at=5)
    return distilled


def warnings(caplog) -> list[str]:
    """The warnings about the checkpoint."""
    return [record.message for record in caplog.records if "checkpoint.pt (step 4)" in record.message]


def test_the_same_run_elsewhere_is_not_warned_of(run, begun, data, teacher_checkpoint, tmp_path, caplog):
    shutil.copytree(data / "train", tmp_path / "moved")
    shutil.copy(teacher_checkpoint, tmp_path / "moved.pt")
    begun["dataset"]["train"]["src"] = str(tmp_path / "moved")
    begun["task"]["distill"]["teacher"]["checkpoint"] = str(tmp_path / "moved.pt")
    begun["loss_functions"][0]["energy"]["coefficient"] = 1.0
    assert run(begun).steps[0]["step"] == 5 and warnings(caplog) == []


def test_another_run_is_named_and_its_checkpoints_are_its_own(run, begun, caplog):
    begun["optim"].update(batch_size=4, lr_initial=2e-3, max_epochs=3)
    begun["loss_functions"][2]["relations"]["coefficient"] = 20
    del begun["loss_functions"][3]
    begun["loss_functions"].append({"node_contrast": {"fn": "info_nce", "coefficient": 1}})
    finished = run(copy.deepcopy(begun), seed=1)
    taken, kept, position = warnings(caplog)
    for change in (
        "seed: 0 -> 1",
        "optim.batch_size: 2 -> 4",
        "optim.max_epochs: 2 -> 3",
        "loss_functions.relations.coefficient: 10.0 -> 20.0",
        "loss_functions.node_embeddings: given -> not given",
        "loss_functions.node_contrast: not given -> given",
    ):
        assert change in taken
    assert kept.endswith("no effect: optim.lr_initial: 0.001 -> 0.002.")
    assert "that was epoch 0.6667, of 6 steps each. With 3 in an epoch fairchem resumes at epoch 1.333" in position
    # what was said of the learning rate: CosineAnnealingLR from 1e-3, of the checkpoint
    assert finished.steps[0]["lr"] == pytest.approx(1e-3 * 0.75)
    entry = torch.load(finished.checkpoints / "checkpoint.pt", weights_only=True)[keys.CHECKPOINT_KEY]
    assert entry[keys.DISTILL_CONFIG]["optim"]["batch_size"] == 4
    assert entry[keys.DISTILL_CONFIG]["loss_functions"]["relations"]["coefficient"] == 20
    caplog.clear()
    run(begun, seed=1)
    assert not any("another training" in record.message for record in caplog.records)


def test_a_run_without_distillation_is_compared_too(run, stock, caplog):
    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    stock["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=100)
    run(copy.deepcopy(stock), stop_at=5)
    stock["optim"]["clip_grad_norm"] = 5
    stock["loss_functions"][1]["forces"]["coefficient"] = 20
    run(stock)
    (message,) = warnings(caplog)
    assert "neither's: optim.clip_grad_norm: 10 -> 5; loss_functions.forces.coefficient: 10 -> 20." in message


@pytest.mark.parametrize(
    "optim, change",
    [
        ({"optimizer": "SGD"}, "optim.optimizer: AdamW -> SGD"),
        ({"scheduler": "StepLR", "step_size": 3}, "optim.scheduler: CosineAnnealingLR -> StepLR"),
        ({"optimizer_params": {"weight_decay": 0.1}}, "optim.weight_decay: 0 -> 0.1"),
    ],
)
def test_another_optimizer_or_schedule_is_refused(run, begun, optim, change, tmp_path):
    begun["optim"].update(optim)
    checkpoint = tmp_path / "checkpoints/run/checkpoint.pt"
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint.pt cannot be resumed with another {change}"):
        run(copy.deepcopy(begun))
    assert checkpoint.read_bytes() == before
    assert len(run(copy.deepcopy(begun), mode="validate", name="validate", checkpoint=checkpoint).validations) == 1
    begun["task"]["distill"]["resume"] = "student"
    assert [record["step"] for record in run(begun).steps] == list(range(5, 13))
