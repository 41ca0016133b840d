"""Changes of a system's geometry: its atoms rattled, its adsorbate elsewhere, its cell strained.

A move changes Atoms in place, and returns the numbers that it has drawn. Fixed atoms stay where they are, but for `strain`.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import wrap_positions
from scipy.spatial.transform import Rotation

from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.io.atoms import ADSORBATE, free_mask

TOUCH = (0.9, 1.15)  # of the sum of covalent radii: the distance at which an adsorbate is put on a surface

Move = Callable[[Atoms, Settings, np.random.Generator], dict[str, float]]


def rattle(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> dict[str, float]:
    """Move every free atom by normal random numbers, of a standard deviation sigma (A) drawn once."""
    free = free_mask(atoms)
    if not free.any():
        raise ThrownOut("all atoms are fixed")
    sigma = rng.uniform(*settings.sigma)
    atoms.positions[free] += rng.normal(scale=sigma, size=(free.sum(), 3))
    return {"sigma": sigma}


def displace(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> dict[str, float]:
    """Turn the adsorbate at random, and put it on a random place of the surface, as close as covalent radii allow.

    The surface spans the cell's first two vectors. What is below the adsorbate's new place, along their normal, decides
    its height.
    """
    adsorbate = atoms.get_tags() == ADSORBATE
    if not adsorbate.any():
        raise ThrownOut("no adsorbate: no atom has tag 2")
    if adsorbate.all():
        raise ThrownOut("no surface: all atoms have tag 2")
    if not free_mask(atoms)[adsorbate].all():
        raise ThrownOut("the adsorbate is fixed")
    if not atoms.pbc[:2].all():
        raise ThrownOut("the surface is not periodic along the cell's first two vectors")
    first, second = atoms.cell[:2]
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal)
    surface = atoms.positions[~adsorbate]
    molecule = _whole_molecule(atoms, np.flatnonzero(adsorbate))
    if (molecule.mean(0) - surface.mean(0)) @ normal < 0:
        normal = -normal
    centre = molecule.mean(0)
    molecule = Rotation.random(random_state=rng).apply(molecule - centre) + centre
    molecule += rng.uniform() * first + rng.uniform() * second
    touch = covalent_radii[atoms.numbers[adsorbate]][:, None] + covalent_radii[atoms.numbers[~adsorbate]]
    factor = rng.uniform(*TOUCH)
    molecule += _lift(molecule, surface, atoms.cell[:2], normal, factor * touch) * normal
    atoms.positions[adsorbate] = wrap_positions(molecule, atoms.cell, pbc=(True, True, False))
    return {"touch": factor}


def _whole_molecule(atoms: Atoms, members: np.ndarray) -> np.ndarray:
    """(A, 3) positions of a molecule that the cell's faces may cut, as one piece."""
    start = members[0]
    return atoms.positions[start] + atoms.get_distances(start, members, mic=True, vector=True)


def _lift(molecule: np.ndarray, surface: np.ndarray, lateral: np.ndarray, normal: np.ndarray, touch: np.ndarray) -> float:
    """A, how far along the normal (A, 3) atoms must go to be at least `touch` (A, S) above the (S, 3) atoms, and touch one.

    h = max over a, s of (r_s - r_a) . n + sqrt(touch^2 - d^2), d their distance across the normal, over the pairs with
    d < touch, periodic images among them; the top atom's height where there is none.

    Args:
        lateral: (2, 3) the cell's vectors along the surface.
    """
    first, second = lateral
    inverse = np.stack([np.cross(second, normal), np.cross(normal, first)]).T / (np.cross(first, second) @ normal)  # (3, 2)
    away = surface - molecule[:, None]  # (A, S, 3)
    away = away - np.round(away @ inverse) @ lateral
    reach = np.ceil(0.5 + touch.max() * np.linalg.norm(inverse, axis=0)).astype(int)  # images, in either direction
    shifts = np.stack(np.meshgrid(*(np.arange(-each, each + 1) for each in reach)), axis=-1).reshape(-1, 2) @ lateral
    away = away[:, :, None] + shifts  # (A, S, I, 3)
    along = away @ normal
    room = touch[..., None] ** 2 - ((away**2).sum(-1) - along**2)
    contacts = (along + np.sqrt(np.clip(room, 0, None)))[room > 0]
    return float(contacts.max() if contacts.size else along.max())


def strain(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> dict[str, float]:
    """Strain the cell's periodic directions by a random symmetric tensor, and all atoms with it, the fixed ones too."""
    if not atoms.pbc.any():
        raise ThrownOut("not periodic: no cell to strain")
    entries = rng.normal(scale=settings.strain, size=(3, 3))
    periodic = np.linalg.qr(atoms.cell.array[atoms.pbc].T)[0]  # (3, d) orthonormal columns that span them
    projector = periodic @ periodic.T
    tensor = projector @ (entries + entries.T) / 2 @ projector
    deformation = np.eye(3) + tensor
    atoms.set_cell(atoms.cell.array @ deformation)
    atoms.positions = atoms.positions @ deformation
    return {"strain": float(np.linalg.norm(tensor))}


BY_NAME: dict[str, Move] = {"rattle": rattle, "displace": displace, "strain": strain}
