"""The pairs of atoms along which fairchem's PaiNN passes messages, from neighbor lists that outlive several steps.

fairchem 1.10 takes, of each atom, the `max_neighbors` nearest ones within the cutoff, in float32, of wrapped positions. Of
these edges it keeps those to an atom from one of a smaller index (from an image of itself: with an earlier cell), and adds
their reverse. Distances are computed and sorted here as there, so that the same neighbors come out where the limit
cuts, even between equally distant ones, which an atom's own images are in any structure with a small cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from vesin import NeighborList

SAME_ATOM = np.float32(1e-4)  # A^2, below which fairchem drops an edge
SKIN = 0.5  # A


@dataclass(frozen=True)
class GraphRule:
    """Which pairs a student sees.

    Attributes:
        cutoff: A.
        max_neighbors: of an atom; 0 for any number.
    """

    cutoff: float
    max_neighbors: int


@dataclass(frozen=True)
class Candidates:
    """Edges that can come within the cutoff while no atom moves by more than half the skin, sorted by their atoms.

    Attributes:
        cell: (3, 3), A.
        pbc: (3,) bool.
        positions: (N, 3), A, as they were.
        turns: (N, 3), the cell's vectors by which each atom was out of the cell.
        atom: (M,) of each candidate the atom whose neighbor it is, `neighbor` that one.
        cells: (M, 3), the cell's vectors by which the neighbor is moved, of wrapped positions.
        offsets: (M, 3) float32, the same in A.
        is_half: (M,) bool, of the direction that is kept.
    """

    cell: np.ndarray
    pbc: np.ndarray
    positions: np.ndarray
    turns: np.ndarray
    atom: np.ndarray
    neighbor: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray
    is_half: np.ndarray


class Pairs:
    """Pairs of one system that moves: candidates are searched again once an atom has moved by half the skin.

    Attributes:
        searches: how often they were.

    Args:
        skin: A; 0 searches in every step.
    """

    def __init__(self, rule: GraphRule, skin: float = SKIN) -> None:
        self.rule, self.skin, self.searches = rule, skin, 0
        self._candidates: Optional[Candidates] = None

    def __call__(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`pairs` (2, P) and `shifts` (P, 3) of `painn.PaiNN.forward`, for positions in or out of the cell.

        Args:
            positions: (N, 3), A, finite.
            cell: (3, 3), rows are the vectors, A; complete: no row is 0.
            pbc: (3,) bool.
        """
        candidates = self._candidates
        if candidates is None or not self._serve(candidates, positions, cell, pbc):
            candidates = self._candidates = search(self.rule, self.skin, positions, cell, pbc)
            self.searches += 1
        kept = np.flatnonzero(nearest(self.rule, candidates, positions) & candidates.is_half)
        pairs = np.stack([candidates.atom[kept], candidates.neighbor[kept]])
        return pairs, candidates.cells[kept] + candidates.turns[pairs[0]] - candidates.turns[pairs[1]]

    def _serve(self, candidates: Candidates, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if positions.shape != candidates.positions.shape or not self.skin:
            return False
        if not (np.array_equal(cell, candidates.cell) and np.array_equal(pbc, candidates.pbc)):
            return False
        moved = positions - candidates.positions
        return bool(np.einsum("ij,ij->i", moved, moved).max(initial=0.0) < (self.skin / 2) ** 2)


def search(rule: GraphRule, skin: float, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Candidates:
    """The candidates at these positions."""
    turns = np.floor(np.linalg.solve(cell.T, positions.T).T) * np.asarray(pbc)  # as ASE wraps, for fairchem
    wrapped = positions - turns @ cell
    lists = NeighborList(cutoff=rule.cutoff + skin, full_list=True, n_threads=1)
    atom, neighbor, cells = lists.compute(wrapped, cell, pbc, "ijS")
    atom, neighbor = atom.astype(np.int64), neighbor.astype(np.int64)
    order = np.lexsort((*cells.T[::-1], neighbor, atom))  # fairchem's, which decides between equal distances
    atom, neighbor, cells = atom[order], neighbor[order], cells[order]
    a, b, c = cells.T
    is_earlier = (a < 0) | ((a == 0) & ((b < 0) | ((b == 0) & (c < 0))))
    return Candidates(
        cell=np.array(cell),
        pbc=np.array(pbc),
        positions=np.array(positions),
        turns=turns.astype(np.int64),
        atom=atom,
        neighbor=neighbor,
        cells=cells.astype(np.int64),
        offsets=_offsets(cells, cell),
        is_half=(neighbor < atom) | ((neighbor == atom) & is_earlier),
    )


def _offsets(cells: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(M, 3) float32, A: the sums in fairchem's order and precision."""
    rows = cell.astype(np.float32)
    a, b, c = cells.astype(np.float32).T
    return a[:, None] * rows[0] + b[:, None] * rows[1] + c[:, None] * rows[2]


def nearest(rule: GraphRule, candidates: Candidates, positions: np.ndarray) -> np.ndarray:
    """(M,) bool: candidates within the cutoff, of each atom the `max_neighbors` nearest."""
    wrapped = (positions - candidates.turns @ candidates.cell).astype(np.float32)
    vectors = wrapped[candidates.atom] - (wrapped[candidates.neighbor] + candidates.offsets)
    squares = vectors * vectors
    squared = squares[:, 0] + squares[:, 1] + squares[:, 2]
    is_near = (squared <= np.float32(rule.cutoff * rule.cutoff)) & (squared > SAME_ATOM)
    limit, near = rule.max_neighbors, np.flatnonzero(is_near)
    counts = np.bincount(candidates.atom[near], minlength=len(positions))
    if 0 < limit < counts.max(initial=0):
        is_near[near] = _among_nearest(limit, candidates.atom[near], squared[near], counts)
    return is_near


def _among_nearest(limit: int, atom: np.ndarray, squared: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(M,) bool, of the neighbors of `atom` (M,), sorted, the nearest `limit`; `counts` (N,) says how many there are."""
    column = np.arange(len(atom)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), counts.max()), np.inf, np.float32)
    table[atom, column] = squared
    last = np.partition(table, limit - 1, axis=1)[:, limit - 1]  # (N,) the largest distance kept; inf for all
    kept = squared <= last[atom]
    if (np.bincount(atom[kept], minlength=len(counts)) > limit).any():  # several at the largest distance
        chosen = np.zeros(table.shape, bool)
        order = torch.sort(torch.from_numpy(table), dim=1).indices  # as fairchem: it decides between equal ones
        np.put_along_axis(chosen, order[:, :limit].numpy(), True, axis=1)
        kept = chosen[atom, column]
    return kept
