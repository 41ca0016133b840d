"""What happens in a long run: numbers that are not finite are named, and skip a step or stop the run."""

from __future__ import annotations

import dataclasses
import gc
import math
import re

import pytest
import torch
from conftest import same_weights, write_edited
from fairchem.core.datasets import LmdbDataset
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from fairchem_crack import keys
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.training import trainer
from fairchem_crack.training.distillation import Distillation


@pytest.fixture
def spoil(monkeypatch):
    """Callable: make the distillation's loss not a number in these steps."""

    def at(*steps: int) -> None:
        loss = Distillation.loss

        def spoiled(self, step, outputs):
            losses = loss(self, step, outputs)
            if step.global_step not in steps:
                return losses
            return losses._replace(total=losses.total * math.nan, log={**losses.log, "loss_relations": math.nan})

        monkeypatch.setattr(Distillation, "loss", spoiled)

    return at


@pytest.fixture
def spoil_gradient(monkeypatch):
    """Callable: make a gradient of the student, or of the projection, infinite in one step."""

    def at(step: int, which: str) -> None:
        loss = Distillation.loss

        def spoiled(self, teacher_step, outputs):
            if teacher_step.global_step == step:
                module = self.student if which == "student" else self.projections.modules[keys.NODE_EMBEDDING]
                first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
                hook = first.register_hook(lambda gradient: (hook.remove(), gradient * math.inf)[1])
            return loss(self, teacher_step, outputs)

        monkeypatch.setattr(Distillation, "loss", spoiled)

    return at


def ids_of(source, count: int) -> list[int]:
    """`sid` of the first systems of an LMDB."""
    gc.collect()
    dataset = LmdbDataset({"src": str(source)})
    ids = [int(dataset[index].sid) for index in range(count)]
    del dataset
    gc.collect()
    return ids


def skipped(caplog) -> list[str]:
    """The messages about skipped steps."""
    return [record.message for record in caplog.records if "The step is skipped" in record.message]


def weights_of(finished) -> dict:
    return torch.load(finished.checkpoints / "checkpoint.pt", weights_only=False)["state_dict"]


def test_a_step_whose_loss_is_not_finite_is_skipped_and_named(run, distilled, spoil, caplog):
    spoil(3)
    distilled["optim"].update(checkpoint_every=1, eval_every=10)
    finished = run(distilled, print_every=100)  # what is logged are means over the steps since the last print
    assert [math.isfinite(loss) for loss in finished.losses()] == [step != 3 for step in range(1, 7)]
    assert all(value.isfinite().all() for value in weights_of(finished).values())
    (message,) = skipped(caplog)
    assert "Step 3: a loss that is not finite, from systems" in message and "(loss_relations = nan)" in message
    assert "9 more in a row stop the run" in message
    assert "1 of the 6 steps since the start were skipped" in caplog.text


@pytest.mark.parametrize("cause", ["loss", "gradient of the student", "gradient of the projection"])
def test_a_skipped_step_changes_nothing(run, distilled, spoil, spoil_gradient, caplog, cause):
    distilled["optim"].update(checkpoint_every=1, eval_every=10, ema_decay=None)
    before = run(distilled, name="before", stop_at=3)  # the checkpoint of step 2
    spoil(3) if cause == "loss" else spoil_gradient(3, cause.split()[-1])
    after = run(distilled, name="after", stop_at=4)  # of step 3
    first, second = (torch.load(finished.checkpoints / "checkpoint.pt", weights_only=False) for finished in (before, after))
    assert (first["step"], second["step"]) == (2, 3)
    assert same_weights(first["state_dict"], second["state_dict"])
    assert same_weights(first["crack_distill"]["projection"], second["crack_distill"]["projection"])
    (message,) = skipped(caplog)
    assert message.startswith(
        f"Step 3: {'a loss that is' if cause == 'loss' else 'gradients that are'} not finite, from sys"
    )


# ---- where it comes from


def test_labels_that_are_not_finite_are_named_in_every_form(run, distilled, data, tmp_path, caplog):
    """And those that are not trained on, of fixed atoms, skip no step."""

    def edit(index, system):
        free, fixed = (int(torch.nonzero(system.fixed == value)[0]) for value in (0, 1))
        if index < 2:
            system.y = (math.nan, math.inf)[index]
        elif index < 4:
            system.force[free, 1] = (math.nan, -math.inf)[index - 2]
        else:
            system.force[fixed, 1] = math.nan

    distilled["dataset"]["train"]["src"] = str(write_edited(data / "train", tmp_path / "edited", edit))
    distilled["optim"].update(batch_size=1, checkpoint_every=1, eval_every=100)
    finished = run(distilled)
    assert len(finished.steps) == 12 and all(value.isfinite().all() for value in weights_of(finished).values())
    named = sorted(
        re.search(r"from systems of sid (\d+) of dataset.train \((.*?);", message).groups() for message in skipped(caplog)
    )
    labels = zip(ids_of(data / "train", 4), ("energy", "energy", "forces", "forces"))
    assert named == sorted((str(sid), f"label `{name}` of sid {sid}") for sid, name in labels)


def test_labels_with_coefficient_0_are_not_trained_on(run, stock, data, tmp_path, caplog):
    def edit(_, system):
        system.y = math.nan

    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    stock["dataset"]["train"]["src"] = str(write_edited(data / "train", tmp_path / "edited", edit))
    stock["loss_functions"][0]["energy"]["coefficient"] = 0
    finished = run(stock)
    assert skipped(caplog) == [] and all(math.isfinite(loss) for loss in finished.losses())
    assert all(value.isfinite().all() for value in weights_of(finished).values())


@pytest.mark.parametrize("name", ["energy", "forces"])
def test_an_output_that_is_not_finite_skips_the_step(run, stock, monkeypatch, caplog, name):
    """fairchem's own loss takes it for 0; of a training without distillation, too."""
    forward, steps = OCPTrainer._forward, []

    def spoiled(self, batch):
        out = forward(self, batch)
        steps.append(self.model.training)
        if sum(steps) == 3 and self.model.training:
            out[name] = out[name] * math.nan
        return out

    monkeypatch.setattr(OCPTrainer, "_forward", spoiled)
    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    finished = run(stock)
    assert len(finished.steps) == 6 and [step for step, loss in enumerate(finished.losses(), 1) if loss > 1e3] == []
    (message,) = skipped(caplog)
    assert "Step 3: a loss that is not finite" in message and f"(student's `{name}` of " in message


def test_a_teacher_whose_outputs_are_not_finite_is_named(run, distilled, teacher_checkpoint, monkeypatch, caplog):
    call, calls = Teacher.__call__, []

    def spoiled(self, batch, *given):
        outputs = call(self, batch, *given)
        calls.append(batch)
        if len(calls) != 4:  # the first is the sample, before the first step
            return outputs
        energies = torch.where(batch.batch == 1, math.nan, outputs.atom_energies)
        return dataclasses.replace(outputs, atom_energies=energies)

    monkeypatch.setattr(Teacher, "__call__", spoiled)
    distilled["loss_functions"] += [{"atom_energies": {"fn": "mae", "coefficient": 1}}]
    run(distilled)
    (message,) = skipped(caplog)
    assert f"(teacher's `atom_energies` of sid {int(calls[3].sid[1])}, by {teacher_checkpoint}; loss_atom" in message


def test_a_teacher_without_finite_embeddings_is_refused(run, distilled, monkeypatch):
    call = Teacher.__call__

    def spoiled(self, *given):
        outputs = call(self, *given)
        outputs.node_embedding[0, 0] = math.inf
        return outputs

    monkeypatch.setattr(Teacher, "__call__", spoiled)
    with pytest.raises(
        ValueError, match=r"in a sample of dataset\.train, not finite are the teacher's `node_embedding` of sid \d+"
    ):
        run(distilled)


def test_an_evaluation_names_what_is_not_finite(run, stock, data, tmp_path, caplog):
    def edit(index, system):
        system.y = math.nan if index == 2 else system.y

    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    stock["dataset"]["val"]["src"] = str(write_edited(data / "val_id", tmp_path / "edited", edit))
    run(stock)
    expected = f"dataset.val at step 6: not finite are the label `energy` of sid {ids_of(data / 'val_id', 3)[2]}."
    assert expected in caplog.text


# ---- too many


def test_too_many_in_a_row_stop_the_run(run, distilled, spoil):
    spoil(1, 3, 4, 5)
    distilled["task"]["distill"]["max_skipped_steps"] = 3
    with pytest.raises(
        FloatingPointError, match=r"Step 5: .*number 3 in a row: the run stops. Resume from the last checkpoint"
    ):
        run(distilled)


def test_graph_parallelism_is_refused_with_the_reason(distilled):
    with pytest.raises(ValueError, match="--gp-gpus 2: distillation needs all atoms of a system on one rank"):
        given = {name: distilled[name] for name in ("task", "loss_functions", "outputs", "dataset")}
        trainer.CrackDistillTrainer(**given, gp_gpus=2, run_dir=".")
