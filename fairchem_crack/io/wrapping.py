"""Atoms wrapped into the cell, with the same bits on every machine.

fairchem wraps by ASE's `wrap_positions`, which solves linear equations: the last bit depends on the processor and on the
library, and decides on which side an atom on a face of the cell comes out.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def wrapped(positions: np.ndarray, cell: np.ndarray, pbc: Any) -> np.ndarray:
    """(N, 3) positions in the cell, in A and float64, along its periodic directions.

    x - sum_k floor(x . g_k) a_k, with a_k the rows of the cell and g_k . a_l = 1 for k = l, else 0. Only sums and products
    of single numbers: these are rounded in one way.

    Args:
        positions: (N, 3).
        cell: (3, 3), complete: no row is 0.
        pbc: (3,) bool.
    """
    normals = [_cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3]) for axis in range(3)]
    volume = _dot(cell[0], normals[0])
    moved = np.array(positions, dtype=np.float64)
    if volume == 0:
        return moved
    for axis in range(3):
        if pbc[axis]:
            moved -= np.floor(_dot(positions, normals[axis] / volume))[:, None] * cell[axis]
    return moved


def _dot(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return rows[..., 0] * vector[0] + rows[..., 1] * vector[1] + rows[..., 2] * vector[2]


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[[1, 2, 0]] * second[[2, 0, 1]] - first[[2, 0, 1]] * second[[1, 2, 0]]
