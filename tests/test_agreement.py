"""Whether the teacher's energies and the labels have the same zero, against leaving out one system after the other."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import ase.db
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.datasets.base_dataset import create_dataset
from stub_teacher import distillation_of, plain_teacher
from tolerances import TOTAL_ENERGY
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.commands.check.sample import examine_agreement
from fairchem_crack.config import TermConfig
from fairchem_crack.testing import collate, slabs
from fairchem_crack.training.agreement import EnergyAgreement, energy_agreement, explanation

REFERENCES = {1: -3.4, 8: -430.0, 29: -1800.0, 46: -3900.0}  # eV


def systems(count: int, elements: tuple[int, ...], seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    sizes = random.integers(8, 30, count)
    return Batch.from_data_list(
        [Data(atomic_numbers=torch.tensor(random.choice(elements, size)), num_nodes=int(size)) for size in sizes]
    )


def energies(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def totals(batch: Batch) -> torch.Tensor:
    values = torch.tensor([REFERENCES[int(number)] for number in batch.atomic_numbers])
    return torch.zeros(batch.num_graphs).index_add(0, batch.batch, values)


def left_out(values: np.ndarray, features: np.ndarray) -> float:
    """Mean absolute error of each system by a fit of all others."""
    errors = []
    for number in range(len(values)):
        others = np.arange(len(values)) != number
        fitted = np.linalg.lstsq(features[others], values[others], rcond=None)[0]
        errors.append(abs(values[number] - features[number] @ fitted))
    return float(np.mean(errors))


def test_a_fit_is_evaluated_on_systems_that_it_has_not_seen():
    batch, labels, teacher = systems(12, (1, 8, 29)), energies(12), energies(12, 2)
    agreement = energy_agreement(labels, teacher, batch)
    counts = np.array([[int((batch.atomic_numbers[batch.batch == n] == z).sum()) for z in (1, 8, 29)] for n in range(12)])
    difference, constant = (labels - teacher).numpy().astype(float), np.ones((12, 1))
    assert agreement.error == pytest.approx(np.abs(difference).mean()) and agreement.offset == pytest.approx(
        difference.mean()
    )
    assert agreement.after_constant == pytest.approx(left_out(difference, constant))
    assert agreement.after_elements == pytest.approx(left_out(difference, counts.astype(float)))
    deviations = [left_out(labels.numpy().astype(float), features) for features in (constant, counts.astype(float))]
    assert agreement.label_deviation == pytest.approx(min(deviations))


def test_a_constant_is_recognised():
    batch, labels = systems(16, (1, 8, 29)), energies(16)
    agreement = energy_agreement(labels - 52.5, labels + 0.03 * energies(16, 3), batch)
    assert not agreement.is_plausible and agreement.after_constant < 0.1
    assert agreement.error == pytest.approx(52.5, abs=0.1)  # the noise that is on the labels
    text = explanation(agreement, [keys.ATOM_ENERGIES])
    assert re.search(
        r"off by 52\.5 eV .* differ among themselves by 0\.\d+ eV .*A constant \(-52\.\d+ eV\) .*leaves 0\.0", text
    )
    assert "They differ by a constant." in text and "task.distill.labels: teacher" in text and "`atom_energies`" in text


def test_total_against_adsorption_energies_are_recognised():
    batch, teacher = systems(16, (1, 8, 29, 46)), energies(16)
    agreement = energy_agreement(teacher + totals(batch), teacher + 0.03 * energies(16, 3), batch)
    assert not agreement.is_plausible and agreement.after_constant > 1000 and agreement.after_elements < 0.1
    assert "another reference energy for each element" in explanation(agreement, [])


def test_total_energies_of_two_codes_are_recognised():
    """Both are total energies, spread by 10^4 eV; the codes differ by 1 % of each reference."""
    batch, residual = systems(16, (1, 8, 29, 46)), energies(16)
    agreement = energy_agreement(residual + totals(batch), residual + 0.99 * totals(batch), batch)
    assert not agreement.is_plausible and agreement.error > 100 and agreement.after_elements < 0.1


def test_more_elements_than_systems_determine_no_fit():
    batch, teacher = systems(6, tuple(range(1, 60))), energies(6)
    agreement = energy_agreement(teacher - 50 * torch.bincount(batch.batch), teacher, batch)
    assert agreement.after_elements is None and not agreement.is_plausible
    text = explanation(agreement, [])
    assert (
        "for a constant of each element the systems are too few" in text
        and "They may have another reference energy for each element" in text
    )


def test_a_bad_teacher_is_explained_by_no_reference():
    agreement = energy_agreement(energies(16), 10 * energies(16, 2), systems(16, (1, 8)))
    assert not agreement.is_plausible and "No reference energy explains it" in explanation(agreement, [])


@pytest.mark.parametrize("count, error", [(16, 0.05), (1, 50.0)], ids=["a good teacher", "a single system"])
def test_a_plausible_agreement_is_not_warned_of(count, error):
    labels = energies(count)
    assert energy_agreement(labels, labels + error, systems(count, (1, 8))).is_plausible


def test_labels_that_are_not_finite_are_not_evaluated():
    labels = energies(8)
    labels[2] = torch.inf
    assert energy_agreement(labels, energies(8), systems(8, (1, 8))).is_plausible


def test_a_missing_label_is_left_out():
    labels, batch = energies(8), systems(8, (1, 8))
    labels[5:] = torch.nan
    left = Batch.from_data_list(batch.to_data_list()[:5])
    assert energy_agreement(labels, energies(8, 3), batch) == energy_agreement(labels[:5], energies(8, 3)[:5], left)


@pytest.fixture
def shifted():
    """A batch whose labels, of an output's own name, are off by 52.5 eV from the stub teacher's energies."""
    batch = collate([*slabs(), *slabs()])
    batch.fixed, batch.forces = torch.zeros(batch.num_nodes), torch.randn(batch.num_nodes, 3)
    batch.oc20_energy = plain_teacher()(batch).energy + 52.5
    return batch


NAMED = ModelOutputs("outputs", {"oc20_energy": {"property": "energy"}, "forces": {}})
ENERGY_TERM, NODE_TERM = TermConfig(keys.TEACHER_ENERGY, "mae", 1.0), TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0)


@pytest.mark.parametrize(
    "term, labels, is_warned",
    [
        (ENERGY_TERM, "data", True),
        (ENERGY_TERM, "teacher", False),
        (NODE_TERM, "data", False),
        (ENERGY_TERM, "fill", True),
        (NODE_TERM, "fill", True),  # the labels themselves have two zeros
    ],
)
def test_a_training_warns_once_before_its_first_step(shifted, caplog, term, labels, is_warned):
    from architectures import build

    if labels == "fill":
        shifted.oc20_energy[1] = torch.nan
    distillation = distillation_of(build("painn"), plain_teacher(), [term], outputs=NAMED, labels=labels)
    with caplog.at_level(logging.WARNING):
        distillation.preflight(shifted)
    warned = [record.message for record in caplog.records if "teacher's energies are off" in record.message]
    assert len(warned) == is_warned
    if is_warned:
        assert re.search(r"^dataset\.train: in a sample the teacher's energies are off by 52\.5 eV", warned[0])
        assert ("or leave `teacher_energy` out" in warned[0]) == (term is ENERGY_TERM)


@pytest.mark.parametrize(
    ("labels", "val_cache", "shows"),
    [
        ("data", None, "WARNING: the teacher's energies are off by 52.5 eV"),
        ("teacher", None, "; the student learns the teacher's energies, so that validation shows the difference"),
        ("teacher", "caches/val", "; the student learns the teacher's energies, and is validated on them"),
    ],
)
def test_check_warns_of_energies_and_forces_alike(shifted, labels, val_cache, shows):
    parts = {"teacher": plain_teacher(), "trainer": SimpleNamespace(model_outputs=lambda: NAMED)}
    distill = SimpleNamespace(labels=labels, teacher=SimpleNamespace(val_cache=val_cache))
    check = SimpleNamespace(need=parts.get, batch=lambda: shifted, terms=[ENERGY_TERM], distill=distill)
    text = examine_agreement(check)
    assert "energy MAE 52.5 eV" in text and "WARNING: zero forces have" in text
    assert ("WARNING: the teacher's energies are off by 52.5 eV" in text) == (labels == "data")
    assert ("differ by a constant" in text) == (labels == "data")
    assert shows in text


def test_the_advice_for_ase_data_works(tmp_path):
    """fairchem subtracts the references of `lin_ref` from the labels, which are then the teacher's energies."""
    with ase.db.connect(tmp_path / "data.db") as database:
        for name, energy in (("H2O", -0.5), ("OH", 0.3), ("H2O2", 1.1)):
            atoms = molecule(name, vacuum=3.0)
            total = energy + sum(REFERENCES[number] for number in atoms.numbers)
            atoms.calc = SinglePointCalculator(atoms, energy=total, forces=np.zeros((len(atoms), 3)))
            database.write(atoms)
    coefficients = np.zeros(100)
    coefficients[list(REFERENCES)] = list(REFERENCES.values())
    np.savez(tmp_path / "references.npz", coeff=coefficients)
    options = {"format": "ase_db", "src": str(tmp_path / "data.db"), "lin_ref": str(tmp_path / "references.npz")}
    dataset = create_dataset({**options, "a2g_args": {"r_energy": True, "r_forces": True}, "no_shuffle": True}, "train")
    labels = [float(dataset[index].energy) for index in range(3)]
    assert labels == pytest.approx([-0.5, 0.3, 1.1], abs=TOTAL_ENERGY)


def test_the_explanation_depends_only_on_the_numbers():
    agreement = EnergyAgreement(
        systems=5, error=1.0, label_deviation=0.5, offset=-1.0, after_constant=0.05, after_elements=0.5
    )
    assert "They differ by a constant." in explanation(agreement, [])
