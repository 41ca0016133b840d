"""Pairs of a batch of systems."""

from __future__ import annotations

import numpy as np

from fairchem_crack.export.neighbors import SKIN, GraphRule, Pairs
from fairchem_crack.export.systems import complete_cell


class BatchPairs:
    """`Pairs` of each system of a batch; those of a system serve as long as its atoms stay near, wherever it comes from."""

    def __init__(self, rule: GraphRule, skin: float = SKIN) -> None:
        self._rule, self._skin = rule, skin
        self._of_systems: list[Pairs] = []

    def __call__(
        self, positions: np.ndarray, cells: np.ndarray, pbc: np.ndarray, system: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`pairs` (2, P) and `shifts` (P, 3) of `painn.PaiNN.forward`, and the cells (B, 3, 3), complete.

        Args:
            positions: (N, 3), A, finite.
            cells: (B, 3, 3), rows are the vectors, A.
            pbc: (B, 3) bool.
            system: (N,), sorted.
        """
        self._of_systems += [Pairs(self._rule, self._skin) for _ in range(len(cells) - len(self._of_systems))]
        starts = np.searchsorted(system, np.arange(len(cells) + 1))
        complete = np.stack([complete_cell(cell, flags) for cell, flags in zip(cells, pbc)])
        pairs, shifts = [], []
        for index, pairs_of in enumerate(self._of_systems[: len(cells)]):
            atoms = slice(starts[index], starts[index + 1])
            of_system, moved = pairs_of(positions[atoms], complete[index], pbc[index])
            pairs.append(of_system + starts[index])
            shifts.append(moved)
        return np.concatenate(pairs, axis=1), np.concatenate(shifts), complete
