"""Labels of the data and of the teacher in one batch: what is missing, what takes its place, and what is fitted."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import ase.db
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import stock_config
from fairchem.core.datasets import create_dataset, data_list_collater
from fairchem.core.modules.loss import DDPLoss
from stub_teacher import distillation_of, plain_teacher
from tolerances import REORDERED

from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import read_options
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.training.guard import Compared, faults
from fairchem_crack.training.labels import LabelWeights, check_origins, take_teachers_labels

NAMES = {"energy": "oc20_energy", "forces": "forces"}
OUTPUTS = ModelOutputs("outputs", {"oc20_energy": {"property": "energy"}, "forces": {}})


def mixed(systems: list) -> list:
    """The first without energy, the second without forces of one atom, the third with both labels."""
    first, second, third = systems = [system.clone() for system in systems]
    for system, energy in zip((second, third), (-1.5, 2.5)):
        system.oc20_energy = energy
    for system in (first, second, third):
        system.forces = torch.ones_like(system.pos)
    second.forces[1, 2] = math.nan
    return systems


def collated(systems: list):
    return data_list_collater(list(map(OptionalLabels(systems, NAMES).__getitem__, range(len(systems)))), otf_graph=True)


def test_systems_without_a_label_collate_with_others(systems):
    batch = collated(mixed(systems))
    assert batch.oc20_energy.dtype == torch.float32 and batch.oc20_energy.isnan().tolist() == [True, False, False]
    assert batch.oc20_energy[1:].tolist() == [-1.5, 2.5]
    bare = mixed(systems)
    bare[0].oc20_energy, bare[1].oc20_energy = None, torch.tensor(7.0)
    del bare[0].forces
    batch = collated(bare)
    assert batch.oc20_energy.isnan().tolist() == [True, False, False] and batch.oc20_energy[1] == 7.0
    assert batch.forces.isnan().all(dim=1).tolist() == [True] * len(bare[0].pos) + [False] * len(
        batch.pos[len(bare[0].pos) :]
    )


@pytest.mark.parametrize("labels, from_teacher", [("fill", ([0], [1])), ("teacher", ([0, 1, 2], [0, 1, 2]))])
def test_the_loss_of_a_mixed_batch_is_that_by_hand(systems, device, labels, from_teacher):
    from architectures import build

    student, teacher = build("painn").to(device), plain_teacher()
    batch = collated(mixed(systems)).to(device)
    data, said = copy.deepcopy(batch), teacher(batch)
    distillation = distillation_of(student, teacher, [], outputs=OUTPUTS, device=device, labels=labels)
    step = distillation.run_teacher(batch, 1)
    out = student(batch)
    by_hand, starts = [0.0, 0.0], [0, *batch.natoms.cumsum(0).tolist()]
    for system in range(3):
        own, atoms = [system in chosen for chosen in from_teacher], slice(starts[system], starts[system + 1])
        energy = said.energy[system] if own[0] else data.oc20_energy[system]
        forces = said.forces[atoms] if own[1] else data.forces[atoms]
        by_hand[0] += float((out["energy"].view(-1)[system] - energy).abs()) / 3
        by_hand[1] += float((out["forces"][atoms] - forces).norm(dim=1).sum()) / len(batch.pos)
    assert float((out["energy"].view(-1) - batch.oc20_energy).abs().mean()) == pytest.approx(by_hand[0], rel=REORDERED)
    assert float((out["forces"] - batch.forces).norm(dim=1).mean()) == pytest.approx(by_hand[1], rel=REORDERED)
    replaced = [step.replaced[name].nonzero()[:, 0].tolist() for name in NAMES.values()]
    assert replaced == list(from_teacher)
    distillation.close()


def test_a_label_that_is_not_finite_is_named_by_whose_it_is(systems):
    batch = collated(mixed(systems))
    label = torch.tensor([[math.nan], [math.inf], [1.0]])
    row = Compared(torch.zeros(3, 1), label, torch.arange(3))
    first, second, _ = batch.sid.tolist()
    assert faults({"oc20_energy": row}, batch, {"oc20_energy": batch.oc20_energy.isnan()}) == [
        f"label `oc20_energy` of sid {second}",
        f"teacher's label `oc20_energy` of sid {first}",
    ]


@pytest.mark.parametrize("labels", ["fill", "teacher"])
def test_labels_of_the_teacher_need_no_distillation_term(labels):
    own = stock_config(Path())["loss_functions"]
    options = read_options({"distill": {"teacher": {"cache": "c"}, "labels": labels}}, own)
    assert not options.faults and not options.is_distilling and options.distill.labels == labels
    assert read_options({"distill": {"teacher": 3, "labels": "data"}}, own).distill is None
    (fault,) = read_options({"distill": {"teacher": {"cache": "c"}, "labels": "fil"}}, own).faults
    assert str(fault).startswith("task.distill.labels: expected") and "Did you mean `fill`?" in str(fault)


def test_an_ase_system_without_labels_is_read(tmp_path):
    water = molecule("H2O", vacuum=3.0)
    forces = np.arange(9.0).reshape(3, 3)
    with ase.db.connect(tmp_path / "data.db") as database:
        for results in ({"energy": 1.0, "forces": forces}, {"energy": 2.0}, {"forces": forces}, {}):
            water.calc = SinglePointCalculator(water, **results) if results else None
            database.write(water)
    options = {"format": "ase_db", "src": str(tmp_path / "data.db"), "no_shuffle": True}
    dataset = create_dataset({**options, "a2g_args": {"r_energy": True, "r_forces": True}}, "train")
    labelled = OptionalLabels(dataset, {"energy": "energy", "forces": "forces"})
    batch = data_list_collater([labelled[index] for index in range(4)], otf_graph=True)
    assert batch.energy[:2].tolist() == [1.0, 2.0] and batch.energy[2:].isnan().all()
    assert torch.equal(batch.forces[:3], torch.tensor(forces).float()) and torch.equal(batch.forces[6:9], batch.forces[:3])
    assert batch.forces[3:6].isnan().all() and batch.forces[9:].isnan().all()


@pytest.mark.parametrize("fn", ["mae", "l2mae", "mse"])
def test_a_label_of_the_data_counts_by_its_weight(fn):
    loss = DDPLoss(fn, "mean")
    weights = LabelWeights([("forces", {"fn": loss})], data_label_weight=3.0)
    prediction, label = torch.arange(15.0).view(5, 3), torch.ones(5, 3)
    rows = {"forces": Compared(prediction, label, torch.tensor([0, 0, 1, 2, 2]))}
    elements = {"mae": (prediction - 1).abs(), "l2mae": (prediction - 1).norm(dim=1), "mse": (prediction - 1) ** 2}[fn]
    with weights.of(rows, {"forces": torch.tensor([True, False, False])}):
        weighted = loss(prediction, label, torch.tensor([2, 1, 2]))
    by_hand = torch.cat((elements[:2], 3 * elements[2:])).sum() / elements.numel()
    assert float(weighted) == pytest.approx(float(by_hand), rel=REORDERED)
    assert float(loss(prediction, label, torch.tensor([2, 1, 2]))) == pytest.approx(float(elements.mean()), rel=REORDERED)


def test_a_loss_without_a_number_for_each_label_has_no_weights():
    class Mean(torch.nn.Module):
        def forward(self, prediction, label, natoms):
            return (prediction - label).abs().mean()

    loss = DDPLoss("mae", "mean")
    loss.loss_fn = Mean()
    weights = LabelWeights([("energy", {"fn": loss})], data_label_weight=3.0)
    rows = {"energy": Compared(torch.zeros(2, 1), torch.ones(2, 1), torch.arange(2))}
    with weights.of(rows, {"energy": torch.tensor([True, False])}), pytest.raises(ValueError) as raised:
        loss(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([1, 1]))
    assert "data_label_weight: Mean of `energy` gives numbers of shape () for 2 labels" in str(raised.value)


def test_labels_that_a_teacher_gave_before_are_the_teachers(systems):
    batch = collated(mixed(systems))
    batch.energy_of_teacher = torch.tensor([False, True, False])
    said = plain_teacher()(batch)
    own = batch.oc20_energy.clone()
    replaced = take_teachers_labels(batch, OUTPUTS, said, "fill")
    assert replaced["oc20_energy"].tolist() == [True, True, False] and replaced["forces"].tolist() == [False, True, False]
    assert batch.oc20_energy[1:].tolist() == own[1:].tolist()  # it has that label already


def test_a_weight_of_the_data_needs_both_kinds_of_labels(systems, caplog):
    own = stock_config(Path())["loss_functions"]
    task = {"distill": {"teacher": {"cache": "c"}, "labels": "teacher", "data_label_weight": 2}}
    (fault,) = read_options(task, own).faults
    assert "data_label_weight: weighs the labels of the data against the teacher's; expected `labels: fill`" in str(fault)
    batch = collated(mixed(systems))
    check_origins(batch, OUTPUTS)
    assert not caplog.records
    batch.oc20_energy, batch.forces = torch.zeros(3), torch.zeros_like(batch.pos)
    check_origins(batch, OUTPUTS)
    assert "every label of a sample of 3 systems of dataset.train is of the data" in caplog.text
