"""Errors of the models, over splits, elements and adsorbates. One letter per dimension: S systems, N atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fairchem.core.modules.evaluator import Evaluator

from fairchem_crack.evaluation import METRICS
from fairchem_crack.report.predict import Prediction
from fairchem_crack.report.systems import Split
from fairchem_crack.statistics import Errors, Interval, gap_closed_interval

ROLES = ("undistilled", "student", "teacher")
ENERGY_MAE, FORCE_MAE = "energy_mae", "forces_mae"


@dataclass(frozen=True)
class Groups:
    """Mean errors of the models over groups, the largest group first.

    Attributes:
        names: of the groups.
        counts: how many systems or atoms each has.
        errors: by role, one mean of each group.
    """

    names: list[str]
    counts: list[int]
    errors: dict[str, list[float]]


def metrics(split: Split, prediction: Prediction) -> dict[str, float]:
    """fairchem's own metrics: `energy_mae` (eV), `forces_mae` (eV/A), `forces_cosine_similarity`,
    `energy_forces_within_threshold` (fraction)."""
    starts = np.cumsum(split.natoms) - split.natoms
    natoms = torch.from_numpy(np.add.reduceat(split.counted.astype(np.int64), starts))

    def shaped(energy: np.ndarray, forces: np.ndarray) -> dict[str, torch.Tensor]:
        energies, of_counted = torch.from_numpy(energy)[:, None], torch.from_numpy(forces[split.counted])
        return {"energy": energies, "forces": of_counted, "natoms": natoms}

    found = Evaluator(eval_metrics=METRICS).eval(
        shaped(prediction.energy, prediction.forces), shaped(split.energy, split.forces)
    )
    return {name: float(value["metric"]) for name, value in found.items()}


def energy_errors(split: Split, prediction: Prediction) -> np.ndarray:
    """(S,) |error| in eV."""
    return np.abs(prediction.energy.astype(float) - split.energy)


def force_errors(split: Split, prediction: Prediction) -> np.ndarray:
    """(N', 3) |error| in eV/A of the atoms that are counted."""
    return np.abs(prediction.forces.astype(float) - split.forces)[split.counted]


def gap_closed(split: Split, predictions: Mapping[str, Prediction]) -> dict[str, Interval]:
    """The gap closed in energy MAE and force MAE with its 95 % interval over the systems.

    NaN where the teacher's error is not below the undistilled student's: there is no gap. Empty without undistilled student.
    """
    if "undistilled" not in predictions:
        return {}
    energy = {role: energy_errors(split, predictions[role]) for role in ROLES}
    of_system = np.repeat(np.arange(len(split.natoms)), split.natoms)[split.counted]
    forces = {
        role: np.bincount(of_system, force_errors(split, predictions[role]).sum(axis=1), len(split.natoms)) for role in ROLES
    }
    components = 3.0 * np.bincount(of_system, minlength=len(split.natoms))
    return {
        name: _interval(sums, weights)
        for name, sums, weights in (
            (ENERGY_MAE, energy, np.ones(len(split.natoms))),
            (FORCE_MAE, forces, components),
        )
    }


def _interval(sums: Mapping[str, np.ndarray], weights: np.ndarray) -> Interval:
    return gap_closed_interval([Errors(sums["undistilled"][None], sums["student"][None], sums["teacher"], weights)])


def by_element(splits: Sequence[Split], predictions: Mapping[str, Mapping[str, Prediction]]) -> Groups:
    """Force MAE (eV/A) of the atoms of each element, over all splits; `predictions` by role and split."""
    symbols = np.concatenate([split.symbols[split.counted] for split in splits])
    errors = {
        role: np.concatenate([force_errors(split, of_split[split.name]).mean(axis=1) for split in splits])
        for role, of_split in predictions.items()
    }
    return _grouped(symbols, errors)


def by_adsorbate(splits: Sequence[Split], predictions: Mapping[str, Mapping[str, Prediction]]) -> dict[str, Groups]:
    """Energy MAE (eV) and force MAE (eV/A) of the systems with each adsorbate, over the splits that have any."""
    having = [split for split in splits if len(split.adsorbates)]
    if not having:
        return {}
    systems = np.concatenate([split.adsorbates for split in having])
    atoms = np.concatenate([np.repeat(split.adsorbates, split.natoms)[split.counted] for split in having])
    energy, forces = (
        {role: np.concatenate([error(one, of_split[one.name]) for one in having]) for role, of_split in predictions.items()}
        for error in (energy_errors, lambda split, said: force_errors(split, said).mean(axis=1))
    )
    return {ENERGY_MAE: _grouped(systems, energy), FORCE_MAE: _grouped(atoms, forces)}


def _grouped(groups: np.ndarray, errors: Mapping[str, np.ndarray]) -> Groups:
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    means = {role: np.bincount(index, values) / counts for role, values in errors.items()}
    return Groups(
        names=[str(name) for name in names[order]],
        counts=[int(count) for count in counts[order]],
        errors={role: [float(value) for value in values[order]] for role, values in means.items()},
    )
