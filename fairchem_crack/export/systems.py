"""What a student can not compute, refused before it computes something else."""

from __future__ import annotations

import numpy as np

from fairchem_crack.export.student import StudentInfo

SMALLEST_VOLUME = 1e-6  # A^3, of a cell that is one
NAMED = 5  # atoms that a message lists


def check_elements(numbers: np.ndarray, info: StudentInfo) -> None:
    """Raise ValueError for no atoms, or an element that the student does not know."""
    if not len(numbers):
        raise ValueError("The system has no atoms.")
    unknown = sorted(set(np.asarray(numbers).tolist()) - set(info.elements))
    if unknown:
        raise ValueError(
            f"The student knows no atomic number {_listed(unknown)}; it knows {len(info.elements)} elements, "
            f"{_spans(info.elements)}."
        )


def check_positions(positions: np.ndarray) -> None:
    """Raise ValueError for positions that are not finite."""
    if not np.isfinite(positions).all():
        atoms = np.flatnonzero(~np.isfinite(positions).all(axis=1)).tolist()
        raise ValueError(f"Positions must be finite, and those of these atoms are not: {_listed(atoms)}.")


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell (3, 3) in A; along directions that are not periodic, a vector that is 0 is one of 1 A, at right angles.

    Raises:
        ValueError: a periodic direction has no vector, or the cell no volume.
    """
    given = cell = np.array(cell, dtype=np.float64)
    if not np.isfinite(cell).all():
        raise ValueError(f"The cell is not finite: {cell.tolist()}.")
    is_missing = ~cell.any(axis=1)
    if (is_missing & pbc).any():
        directions = ", ".join("abc"[axis] for axis in np.flatnonzero(is_missing & pbc))
        raise ValueError(f"The system is periodic along {directions}, where its cell is 0. Set the cell, or pbc to False.")
    with np.errstate(invalid="ignore"):  # ASE completes parallel vectors by NaN
        if is_missing.any():
            from ase.cell import Cell

            cell = np.array(Cell(cell).complete())
        volume = abs(np.linalg.det(cell))
    if not volume >= SMALLEST_VOLUME:
        raise ValueError(f"The cell has no volume: {given.tolist()}.")
    return cell


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:NAMED])) + (", ..." if len(values) > NAMED else "")


def _spans(numbers: tuple[int, ...]) -> str:
    """For example `1-3, 8`."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends))
