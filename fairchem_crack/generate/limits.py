"""Which systems are thrown out, and why."""

from __future__ import annotations

from typing import Optional

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import neighbor_list
from fairchem.core.datasets import data_list_collater
from scipy.spatial.distance import pdist
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.generate.moves import ADSORBATE, free_mask
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.boundaries import count_edges, without_volume
from fairchem_crack.teacher.cache import Record
from fairchem_crack.teacher.frozen import Teacher

NOT_FINITE = "numbers that are not finite"
FAILED = "the teacher fails"
TOO_STRONG = "a force above the limit"
FLAT = "periodic, and a cell without volume"
ISOLATED = "no two atoms within the teacher's cutoff"


def check_parent(system: Data, teacher: Optional[Teacher]) -> None:
    """Raise ThrownOut for a system on which models fail: not finite, periodic in a flat cell, or without two neighbors.

    Args:
        teacher: None where it runs in another environment; its cutoff is not known then.
    """
    atoms, batch = to_atoms(system), data_list_collater([system], otf_graph=True)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise ThrownOut(NOT_FINITE)
    periodic = atoms.cell.array[atoms.pbc]
    if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
        raise ThrownOut(FLAT)
    if teacher is not None and teacher.use_pbc and without_volume(batch).any():
        raise ThrownOut(FLAT)
    if teacher is None or teacher.cutoff is None or pdist(atoms.positions).min(initial=np.inf) <= teacher.cutoff:
        return
    if not count_edges(batch, teacher.cutoff, use_pbc=teacher.use_pbc).any():
        raise ThrownOut(ISOLATED)


def check_geometry(atoms: Atoms, settings: Settings) -> None:
    """Raise ThrownOut for positions that are not finite, atoms too close, or an adsorbate that left the surface."""
    if not np.isfinite(atoms.positions).all():
        raise ThrownOut(NOT_FINITE)
    if len(neighbor_list("d", atoms, settings.min_distance * covalent_radii[atoms.numbers])):
        raise ThrownOut("two atoms too close")
    adsorbate = atoms.get_tags() == ADSORBATE
    if settings.max_gap is not None and adsorbate.any() and not adsorbate.all():
        positions = atoms.positions
        distances = get_distances(positions[adsorbate], positions[~adsorbate], cell=atoms.cell, pbc=atoms.pbc)[1]
        if distances.min() > settings.max_gap:
            raise ThrownOut("the adsorbate left the surface")


def check_forces(forces: np.ndarray, free: np.ndarray, settings: Settings) -> None:
    """Raise ThrownOut for forces (N, 3) that are not finite, or too strong on a free atom."""
    if not np.isfinite(forces).all():
        raise ThrownOut(NOT_FINITE)
    if largest_force(forces, free) > settings.max_force:
        raise ThrownOut(TOO_STRONG)


def largest_force(forces: np.ndarray, free: np.ndarray) -> float:
    """eV/A, on a free atom; 0 where there is none."""
    return float(np.linalg.norm(forces[free], axis=1).max(initial=0.0))


def check_outputs(record: Record, parent: Record, atoms: Atoms, settings: Settings) -> None:
    """Raise ThrownOut for teacher outputs that are missing, not finite or out of bounds."""
    check_finite(record)
    check_forces(record.values[keys.FORCES], free_mask(atoms), settings)
    if abs(float(record.values[keys.ENERGY]) - float(parent.values[keys.ENERGY])) > settings.max_energy_change:
        raise ThrownOut("an energy out of range")


def check_finite(record: Record) -> None:
    """Raise ThrownOut for teacher outputs that are missing or not finite."""
    if not record.atoms:  # an empty record
        raise ThrownOut(FAILED)
    if not all(np.isfinite(value).all() for value in record.values.values()):
        raise ThrownOut(NOT_FINITE)
