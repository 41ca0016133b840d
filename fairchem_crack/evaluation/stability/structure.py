"""What a trajectory samples: its radial distribution function, and the height of its adsorbate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from fairchem_crack.io.atoms import ADSORBATE, SURFACE, free_mask

REACH = 6.0  # A, the longest distance of a pair that is looked at
WIDTH = 0.1  # A, of a bin: half the width of a peak of the demo's slabs at 300 K
LAYER = 1.0  # A, below the highest atom of the surface: the layers of metals are 1.8 to 2.4 A apart
EDGES = np.linspace(0, REACH, round(REACH / WIDTH) + 1)  # (K + 1,) of K bins


def pair_counts(atoms: Atoms) -> np.ndarray:
    """(K,) pairs of each distance, periodic images as their own atoms; each pair of a free atom with any, seen from both.

    Pairs of two fixed atoms never change.
    """
    free = free_mask(atoms)
    first, second, distance = neighbor_list("ijd", atoms, REACH)
    return np.histogram(distance[free[first] | free[second]], EDGES)[0]


def radial_distribution(counts: np.ndarray) -> np.ndarray:
    """(K,) normalised radial distribution function: g_k ~ n_k / (shell volume), sum_k g_k = 1; NaN without pairs.

    Slabs and molecules have no density of their own to divide by, so only its form is kept.

    Args:
        counts: (F, K) `pair_counts` of F frames.
    """
    density = counts.reshape(-1, len(EDGES) - 1).sum(axis=0) / np.diff(EDGES**3)
    total = density.sum()
    return density / total if total else np.full(len(density), np.nan)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """1 - overlap of two normalised radial distribution functions, 1 - sum_k min(p_k, q_k): 0 if equal, 1 if disjoint.

    Half the integral of their absolute difference; NaN where either has no pairs.

    Args:
        ours: (K,) of `radial_distribution`.
        theirs: (K,)
    """
    return float(np.abs(ours - theirs).sum() / 2)


@dataclass(frozen=True)
class Surface:
    """Where the adsorbate's height is measured from.

    Attributes:
        normal: (3,) unit vector, across the first two vectors of the cell, towards the adsorbate.
        layer: (N,) bool, the surface's top layer, at the start.
        adsorbate: (N,) bool.
    """

    normal: np.ndarray
    layer: np.ndarray
    adsorbate: np.ndarray

    def height(self, atoms: Atoms) -> float:
        """A, of the adsorbate's mean over that of the top layer."""
        heights = atoms.positions @ self.normal
        return float(heights[self.adsorbate].mean() - heights[self.layer].mean())


def surface_of(start: Atoms) -> Optional[Surface]:
    """The surface below an adsorbate, by OC20's tags; None without either, or not periodic along the surface."""
    surface, adsorbate = start.get_tags() == SURFACE, start.get_tags() == ADSORBATE
    normal = np.cross(*start.cell[:2])
    area = float(np.linalg.norm(normal))
    if not (surface.any() and adsorbate.any() and start.pbc[:2].all() and area):
        return None
    heights = start.positions @ normal / area
    side = 1.0 if heights[adsorbate].mean() > heights[surface].mean() else -1.0
    layer = surface & (side * heights > (side * heights)[surface].max() - LAYER)
    return Surface(side * normal / area, layer, adsorbate)
