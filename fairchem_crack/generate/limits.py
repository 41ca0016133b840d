"""Which systems are thrown out, and why."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import neighbor_list

from fairchem_crack import keys
from fairchem_crack.generate.moves import ADSORBATE, free_mask
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.teacher.cache import Record

NOT_FINITE = "numbers that are not finite"
FAILED = "the teacher fails"
TOO_STRONG = "a force above the limit"


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
