"""The metrics of IS2RE and IS2RS. Each is the mean over the systems of a figure of each system, which a bootstrap resamples.

Definitions: Chanussot et al., "The Open Catalyst 2020 (OC20) Dataset and Community Challenges", ACS Catal. 11, 6059 (2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from fairchem_crack.evaluation.intervals import Interval, error_interval
from fairchem_crack.evaluation.tables import digits

ENERGY_THRESHOLD = 0.02  # eV, of EwT, as in fairchem's Evaluator
FORCE_THRESHOLD = 0.05  # eV/A, of FbT (Chanussot et al. 2021)
FORCE_THRESHOLDS = np.arange(10, 401) / 1000  # eV/A, of AFbT: 0.01 to 0.4 (the same), both ends in, in ADwT's steps of 0.001
DISTANCE_THRESHOLDS = np.arange(0.01, 0.5, 0.001)  # A, of ADwT, as in fairchem's Evaluator
PERIODIC = (True, True, True)  # as fairchem takes every system
METRICS: dict[str, tuple[str, Callable[[float], str]]] = {  # heading, and how a value is written
    "energy_mae": ("energy MAE [eV]", digits),
    "energy_within_threshold": ("EwT", "{:.2%}".format),
    "average_distance_within_threshold": ("ADwT", "{:.2%}".format),
    "forces_below_threshold": ("FbT", "{:.2%}".format),
    "average_forces_below_threshold": ("AFbT", "{:.2%}".format),
}


@dataclass(frozen=True)
class System:
    """What the dataset has of a system.

    Attributes:
        atoms: as the relaxation starts, with its own pbc.
        free: (N,) which atoms may move.
        positions: (N, 3) where they end in DFT, in A; None where the dataset does not say.
        energy: of that end, in eV; None where the dataset does not say.
    """

    atoms: Atoms
    free: np.ndarray
    positions: Optional[np.ndarray]
    energy: Optional[float]


@dataclass(frozen=True)
class Relaxed:
    """What a model made of the systems, by their ids.

    Attributes:
        positions: (N, 3) in A.
        energies: in eV, the model's own; None where no trajectories were given.
        forces: (N, 3) in eV/A, the reference's at `positions`, infinite where it failed; None where there is no reference.
    """

    positions: dict[str, np.ndarray]
    energies: Optional[dict[str, float]] = None
    forces: Optional[dict[str, np.ndarray]] = None


@dataclass
class Row:
    """A model's metrics with their 95 % intervals, by the names of `METRICS`; those without reference are not there."""

    model: str
    systems: int
    metrics: dict[str, Interval] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)  # systems of each metric


def largest_distance(
    positions: np.ndarray, reference: np.ndarray, cell: np.ndarray, pbc: Sequence[bool] = PERIODIC
) -> float:
    """Largest |D_i| in A over the atoms, D the difference to the nearest image; see `distances`."""
    return float(distances(positions, reference, cell, pbc).max())


def distances(positions: np.ndarray, reference: np.ndarray, cell: np.ndarray, pbc: Sequence[bool] = PERIODIC) -> np.ndarray:
    """|D_i| in A of each atom, D_i the difference to the nearest image.

    Computed by fairchem's function where the system is periodic in all directions, as that takes every system to be.

    Args:
        positions: (N, 3) in A.
        reference: (N, 3) in A.
        cell: (3, 3) in A, a lattice vector in each row.
        pbc: (3,)

    Returns:
        (N,)
    """
    from fairchem.core.modules.evaluator import min_diff

    if all(pbc):
        return np.linalg.norm(min_diff(positions, reference, cell, list(PERIODIC)), axis=1)
    return find_mic(positions - reference, cell, pbc)[1]


def distance_within_thresholds(
    positions: np.ndarray, reference: np.ndarray, cell: np.ndarray, pbc: Sequence[bool] = PERIODIC
) -> float:
    """ADwT of one system: the share of the thresholds that are above the mean distance of its free atoms from DFT's.

    mean over t of 1[mean_i |D_i| < t], t = 0.01 to 0.5 A in steps of 0.001; computed by fairchem's function.

    Args:
        positions: (F, 3) the free atoms where the model leaves them, in A.
        reference: (F, 3) where DFT does.
        cell: (3, 3) in A, a lattice vector in each row.
        pbc: (3,); where not all are true, by the same equation without fairchem.
    """
    import torch
    from fairchem.core.modules.evaluator import average_distance_within_threshold

    def rows(values: np.ndarray) -> dict[str, torch.Tensor]:
        return {"positions": torch.tensor(values).float(), "natoms": torch.tensor([len(values)])}  # float32 as when relaxing

    if not all(pbc):
        return float((distances(positions, reference, cell, pbc).mean() < DISTANCE_THRESHOLDS).mean())
    box = {"cell": torch.tensor(cell).float()[None], "pbc": torch.tensor(PERIODIC)}
    return float(average_distance_within_threshold(rows(positions), {**rows(reference), **box})["metric"])


def largest_force(forces: np.ndarray, free: np.ndarray) -> float:
    """F = max_i |F_i| over the free atoms, in eV/A; infinite where any is not finite.

    Args:
        forces: (N, 3) in eV/A.
        free: (N,) bool.
    """
    largest = float(np.linalg.norm(forces[free], axis=1).max())
    return largest if math.isfinite(largest) else math.inf


def forces_below_thresholds(largest: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the thresholds that are above each system's largest force: mean over t of 1[F_k < t].

    Its mean over the systems is FbT for the one threshold 0.05 eV/A, and AFbT for `FORCE_THRESHOLDS`.

    Args:
        largest: (K,) F in eV/A.
        thresholds: (T,) t in eV/A.

    Returns:
        (K,)
    """
    return (largest[:, None] < thresholds).mean(axis=1)


Values = dict[str, np.ndarray]  # (K,) of each metric: a figure of each of the K systems that it is the mean over


def measure(
    name: str, relaxed: Relaxed, systems: Mapping[str, System], *, within: Optional[float] = None
) -> tuple[Row, list[str]]:
    """The metrics of a model, and which have no reference, and why.

    Args:
        within: in A; where given, FbT and AFbT count no system whose free atoms' mean distance from DFT's is larger.

    Raises:
        ValueError: `within` is given, and a system has no positions of DFT's.
    """
    values: Values = {}
    notes = []
    for measured, left_out in (energy(relaxed, systems), distance(relaxed, systems), force(relaxed, systems, within)):
        values.update(measured)
        notes += [left_out] if left_out else []
    row = Row(name, len(relaxed.positions))
    row.metrics = {metric: error_interval(measured, np.ones(len(measured))) for metric, measured in values.items()}
    row.counted = {metric: len(measured) for metric, measured in values.items()}
    return row, notes


def energy(relaxed: Relaxed, systems: Mapping[str, System]) -> tuple[Values, str]:
    """|E - E_DFT| in eV of each system that has both, and whether it is below 0.02 eV; or why there is none."""
    references = {sid: energy for sid in relaxed.positions if (energy := systems[sid].energy) is not None}
    if not references:
        return {}, "energy MAE and EwT left out: no y_relaxed in --data"
    if relaxed.energies is None:
        return {}, "energy MAE and EwT left out: no --trajectories"
    errors = np.array([abs(own - references[sid]) for sid, own in relaxed.energies.items() if sid in references])
    if not len(errors):
        return {}, "energy MAE and EwT left out: no system has both energies"
    return {"energy_mae": errors, "energy_within_threshold": (errors < ENERGY_THRESHOLD).astype(float)}, ""


def distance(relaxed: Relaxed, systems: Mapping[str, System]) -> tuple[Values, str]:
    """`distance_within_thresholds` of each system whose relaxed positions are in the dataset; or why there is none."""
    scores = [
        distance_within_thresholds(
            positions[system.free], system.positions[system.free], system.atoms.cell.array, system.atoms.pbc
        )
        for positions, system in ((positions, systems[sid]) for sid, positions in relaxed.positions.items())
        if system.positions is not None
    ]
    return (
        ({"average_distance_within_threshold": np.array(scores)}, "")
        if scores
        else ({}, "ADwT left out: no pos_relaxed in --data")
    )


def force(relaxed: Relaxed, systems: Mapping[str, System], within: Optional[float]) -> tuple[Values, str]:
    """`forces_below_thresholds` of each system with reference forces, of one and of many; or why there is none."""
    if not relaxed.forces:
        return {}, "FbT and AFbT left out: no reference forces, neither --calculator nor --forces"
    largest = np.array([largest_force(forces, systems[sid].free) for sid, forces in relaxed.forces.items()])
    if within is not None:
        is_near = [mean_distance(relaxed.positions[sid], systems[sid], sid) < within for sid in relaxed.forces]
        largest[~np.array(is_near)] = math.inf
    return {
        "forces_below_threshold": forces_below_thresholds(largest, np.array([FORCE_THRESHOLD])),
        "average_forces_below_threshold": forces_below_thresholds(largest, FORCE_THRESHOLDS),
    }, ""


def mean_distance(positions: np.ndarray, system: System, sid: str) -> float:
    """mean_i |D_i| in A over the free atoms of a system, D_i the difference to DFT's end.

    Raises:
        ValueError: the dataset does not say where that is.
    """
    if system.positions is None:
        raise ValueError(f"--within: system {sid} has no pos_relaxed in --data. Leave --within out.")
    return float(distances(positions, system.positions, system.atoms.cell.array, system.atoms.pbc)[system.free].mean())
