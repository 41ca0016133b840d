"""Errors of the models, over splits, elements and adsorbates. One letter per dimension: S systems, N atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fairchem.core.modules.evaluator import Evaluator

from fairchem_crack.evaluation.intervals import Errors, Interval, error_interval, gap_closed_interval
from fairchem_crack.evaluation.report.predict import Prediction
from fairchem_crack.evaluation.report.request import ROLES
from fairchem_crack.evaluation.report.systems import Split
from fairchem_crack.evaluation.s2ef.evaluator import METRICS
from fairchem_crack.evaluation.tables import ENERGY_MAE, ERRORS, FORCE_MAE

GROUP_REPLICATES = 1000  # of the bootstrap of a group: ends within some 6 % of the width of the interval


@dataclass(frozen=True)
class Groups:
    """Mean errors of the models over groups, the largest group first.

    Attributes:
        names: of the groups.
        counts: how many systems or atoms each has.
        systems: in how many systems these are.
        errors: by role, one mean of each group and its 95 % interval over those systems, without ends where there is one.
    """

    names: list[str]
    counts: list[int]
    systems: list[int]
    errors: dict[str, list[Interval]]


def metrics(split: Split, prediction: Prediction) -> dict[str, float]:
    """fairchem's own metrics: `energy_mae` (eV), `forces_mae` (eV/A), `forces_cosine_similarity`,
    `energy_forces_within_threshold` (fraction)."""
    starts = np.cumsum(split.natoms) - split.natoms
    natoms = torch.from_numpy(np.add.reduceat(split.mask.astype(np.int64), starts))

    def shaped(energy: np.ndarray, forces: np.ndarray) -> dict[str, torch.Tensor]:
        energies, of_atoms = torch.from_numpy(energy)[:, None], torch.from_numpy(forces[split.mask])
        return {"energy": energies, "forces": of_atoms, "natoms": natoms}

    measured = Evaluator(eval_metrics=METRICS).eval(
        shaped(prediction.energy, prediction.forces), shaped(split.energy, split.forces)
    )
    return {name: float(value["metric"]) for name, value in measured.items()}


def energy_errors(split: Split, prediction: Prediction) -> np.ndarray:
    """(S,) |error| in eV."""
    return np.abs(prediction.energy.astype(float) - split.energy)


def force_errors(split: Split, prediction: Prediction) -> np.ndarray:
    """(N', 3) |error| in eV/A of the atoms in the mask."""
    return np.abs(prediction.forces.astype(float) - split.forces)[split.mask]


def _of_systems(values: np.ndarray, split: Split) -> np.ndarray:
    """(S,) sums over the atoms in the mask of each system of (N',) values."""
    system = np.repeat(np.arange(len(split.natoms)), split.natoms)[split.mask]
    return np.bincount(system, values, len(split.natoms))


def system_errors(split: Split, prediction: Prediction) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Energy MAE and force MAE as ratios of sums over systems: (S,) errors, and the (S,) weights they are divided by."""
    forces = force_errors(split, prediction)
    return {
        ENERGY_MAE: (energy_errors(split, prediction), np.ones(len(split.natoms))),
        FORCE_MAE: (_of_systems(forces.sum(axis=1), split), _of_systems(np.full(len(forces), 3.0), split)),
    }


def gap_closed(splits: Sequence[Split], predictions: Mapping[str, Mapping[str, Prediction]]) -> dict[str, Interval]:
    """The gap closed in energy MAE and force MAE, each the mean over the splits, with its 95 % interval over the systems.

    NaN where the teacher's error is not below the undistilled student's: there is no gap. Empty without undistilled student.

    Args:
        predictions: by role and split.
    """
    if "undistilled" not in predictions:
        return {}
    errors = [{role: system_errors(split, predictions[role][split.name]) for role in ROLES} for split in splits]
    return {name: gap_closed_interval([_errors(of_roles, name) for of_roles in errors]) for name in ERRORS}


def _errors(of_roles: Mapping[str, dict[str, tuple[np.ndarray, np.ndarray]]], name: str) -> Errors:
    undistilled, student, teacher = (of_roles[role][name][0] for role in ROLES)
    return Errors(undistilled[None], student[None], teacher, of_roles["teacher"][name][1])


def average(metrics: Mapping[str, Mapping[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each role, its metrics' means over the splits, each counting the same; `metrics` by split and role."""
    of_splits = list(metrics.values())
    return {
        role: {name: float(np.mean([of_roles[role][name] for of_roles in of_splits])) for name in metrics_of_role}
        for role, metrics_of_role in of_splits[0].items()
    }


def by_element(splits: Sequence[Split], predictions: Mapping[str, Mapping[str, Prediction]]) -> Groups:
    """Force MAE (eV/A) of the atoms of each element, over all splits; `predictions` by role and split."""
    symbols = np.concatenate([split.symbols[split.mask] for split in splits])
    errors = {
        role: np.concatenate([force_errors(split, of_split[split.name]).mean(axis=1) for split in splits])
        for role, of_split in predictions.items()
    }
    return _grouped(symbols, _system_of_atoms(splits), errors)


def by_adsorbate(splits: Sequence[Split], predictions: Mapping[str, Mapping[str, Prediction]]) -> dict[str, Groups]:
    """Energy MAE (eV) and force MAE (eV/A) of the systems with each adsorbate, over the splits that have any."""
    having = [split for split in splits if len(split.adsorbates)]
    if not having:
        return {}
    systems = np.concatenate([split.adsorbates for split in having])
    atoms = np.concatenate([np.repeat(split.adsorbates, split.natoms)[split.mask] for split in having])
    energy, forces = (
        {
            role: np.concatenate([error(split, of_split[split.name]) for split in having])
            for role, of_split in predictions.items()
        }
        for error in (energy_errors, lambda split, prediction: force_errors(split, prediction).mean(axis=1))
    )
    return {
        ENERGY_MAE: _grouped(systems, np.arange(len(systems)), energy),
        FORCE_MAE: _grouped(atoms, _system_of_atoms(having), forces),
    }


def _system_of_atoms(splits: Sequence[Split]) -> np.ndarray:
    """(N',) which system, of all those of the splits, each atom in the mask belongs to."""
    natoms = np.concatenate([split.natoms for split in splits])
    return np.repeat(np.arange(len(natoms)), natoms)[np.concatenate([split.mask for split in splits])]


def _grouped(groups: np.ndarray, system: np.ndarray, errors: Mapping[str, np.ndarray]) -> Groups:
    """Means over groups of atoms, or of systems.

    Args:
        groups: (N,) name of the group of each.
        system: (N,) number of the system of each.
        errors: by role, (N,).
    """
    names, counts = np.unique(groups, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    systems, means = [], {role: [] for role in errors}  # type: tuple[list[int], dict[str, list[Interval]]]
    for name in names[order]:
        chosen = groups == name
        index = np.unique(system[chosen], return_inverse=True)[1]  # (N_g,) from 0 to S_g - 1
        weights = np.bincount(index).astype(float)  # (S_g,)
        systems.append(len(weights))
        for role, values in errors.items():
            means[role].append(_mean(np.bincount(index, values[chosen]), weights))
    return Groups([str(name) for name in names[order]], [int(count) for count in counts[order]], systems, means)


def _mean(sums: np.ndarray, weights: np.ndarray) -> Interval:
    if len(sums) < 2:
        return Interval(float(sums.sum() / weights.sum()))
    return error_interval(sums, weights, replicates=GROUP_REPLICATES)
