"""Element references by ridge regression: fairchem's where compositions determine them, the prior's where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fairchem.core.modules.normalization.element_references import fit_linear_references
from tolerances import REFERENCE
from torch_geometric.data import Data

from fairchem_crack.training.reference_fit import fit_references
from fairchem_crack.training.references import References, has_direct_forces

ELEMENTS = np.array([1, 8, 29, 46])
TRUE = np.array([-3.4, -4.9, -3.7, -5.2])  # eV


def slabs(systems: int, *, ratio: bool, seed: int = 0) -> np.ndarray:
    """(S, 4) counts; with `ratio` there are two Cu for each Pd in all of them."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4, (systems, 4))
    counts[:, 2:] = random.integers(3, 9, (systems, 1)) * (2, 1) if ratio else random.integers(3, 20, (systems, 2))
    return counts


def test_a_determined_fit_is_fairchems():
    counts = slabs(60, ratio=False)
    energies = counts @ TRUE + np.random.default_rng(1).normal(0, 0.01, 60)
    fit = fit_references(counts, ELEMENTS, energies)
    dataset = [
        Data(atomic_numbers=torch.tensor(ELEMENTS.repeat(row)), natoms=int(row.sum()), energy=float(energy))
        for row, energy in zip(counts, energies)
    ]
    theirs = fit_linear_references(["energy"], dataset, batch_size=20, log_metrics=False)["energy"].element_references
    np.testing.assert_allclose(fit.references, theirs[ELEMENTS], atol=2 * REFERENCE)  # both are ridges
    assert not fit.undetermined.any() and fit.determined.min() > 0.999
    assert fit.error == pytest.approx(np.abs(energies - counts @ fit.references).mean(), rel=0.05)  # a sample of the systems
    assert fit.deviation > 20 * fit.error


@pytest.mark.parametrize("prior", [None, TRUE + np.array([0.0, 0.0, 0.3, -0.5])])
def test_what_compositions_leave_open_is_the_priors(prior):
    counts = slabs(40, ratio=True)
    fit = fit_references(counts, ELEMENTS, counts @ TRUE, prior)
    assert fit.undetermined.tolist() == [False, False, True, True]
    np.testing.assert_allclose(fit.determined, [1, 1, 0.8, 0.2], atol=1e-6)  # of the direction (2, 1)
    assert fit.systems.tolist() == (counts > 0).sum(axis=0).tolist() and fit.error < 1e-3
    np.testing.assert_allclose(fit.references[:2], TRUE[:2], atol=REFERENCE)
    sums = fit.references @ [0, 0, 2, 1]
    assert sums == pytest.approx(TRUE @ [0, 0, 2, 1], abs=REFERENCE)
    start = np.full(4, fit.per_atom) if prior is None else prior
    moved = fit.references[2:] - start[2:]  # by the smallest change that gives the sums
    assert moved[0] == pytest.approx(2 * moved[1], abs=REFERENCE)


def test_the_error_left_out_is_that_of_a_fit_of_the_others():
    counts = np.repeat(slabs(9, ratio=False), 3, axis=0)
    energies = counts @ TRUE + np.random.default_rng(2).normal(0, 0.3, 27)
    fit, errors = fit_references(counts, ELEMENTS, energies), []
    for first in range(0, 27, 3):
        others = np.delete(np.arange(27), range(first, first + 3))
        references = np.linalg.lstsq(counts[others], energies[others], rcond=None)[0]
        errors.append(abs(energies[first : first + 3].mean() - counts[first] @ references))
    assert fit.left_out == pytest.approx(np.mean(errors), rel=0.05)  # without a ridge
    assert fit.compositions == 9
    assert fit_references(counts[:3], ELEMENTS, energies[:3]).left_out is None


PAINN = {"hidden_channels": 8, "num_layers": 1, "num_rbf": 4}
GEMNET = {f"emb_size_{part}": 2 for part in ("atom", "edge", "trip", "rbf", "cbf", "bil_trip")} | {
    f"num_{part}": 2 for part in ("spherical", "radial", "blocks", "before_skip", "after_skip", "concat", "atom")
}
HEADS = {"energy": {"module": "painn_energy_head"}, "forces": {"module": "painn_force_head"}}


@pytest.mark.parametrize(
    "model, is_direct",
    [
        ({"name": "painn", **PAINN, "scale_file": "fitted_later.json"}, True),
        ({"name": "painn", **PAINN, "direct_forces": False}, False),
        ({"name": "gemnet_t", **GEMNET}, False),
        ({"name": "schnet", "hidden_channels": 8}, False),
        ({"name": "hydra", "backbone": {"model": "painn_backbone", **PAINN, "scale_file": None}, "heads": HEADS}, True),
        ({"name": "hydra", "backbone": {"model": "painn_backbone", **PAINN, "direct_forces": False}, "heads": HEADS}, False),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_direct_forces_are_told_from_gradients(model, is_direct):
    assert has_direct_forces({"model": model}) is is_direct


def test_a_student_that_cannot_be_made_is_named():
    with pytest.raises(ValueError, match=r"model: cannot be made \(TypeError: .*layers.*`fairchem-crack check`"):
        has_direct_forces({"model": {"name": "painn", "layers": 3}})


@pytest.mark.parametrize(
    "size, is_direct, expected", [(1.1, True, 1.1), (1.1, False, 2.0), (1e-17, True, 2.0), (None, True, 2.0)]
)
def test_forces_are_divided_by_their_own_size_if_any(size, is_direct, expected):
    fit = fit_references(np.ones((4, 1), int), ELEMENTS[:1], np.array([-2.0, 2.0, -2.0, 2.0]))
    names = {"energy": "energy", "forces": "forces"}
    made = References(fit, names, "", "", size, has_direct_forces=is_direct)
    assert made.transforms(Path("references.npz"))["normalizer"]["forces"]["stdev"] == pytest.approx(expected)
