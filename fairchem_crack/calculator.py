"""A student as an ASE calculator: a pure forward and neighbor lists that outlive several steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from fairchem_crack.export.neighbors import SKIN, Pairs
from fairchem_crack.export.student import Student, is_exported, read_student
from fairchem_crack.export.systems import check_elements, check_positions, complete_cell
from fairchem_crack.io.denormals import without_denormals


class StudentCalculator(Calculator):
    """Energies in eV and forces in eV/A of a PaiNN student, as fairchem's OCPCalculator has them, in less time.

    Args:
        path: a fairchem checkpoint, which needs fairchem, or a file of `fairchem-crack export`, which needs torch only.
        device: for example "cpu" or "cuda".
        skin: A; neighbors are searched again once an atom has moved by half of it. 0 searches in every step.
        trust: read a checkpoint even if that can run code.

    Raises:
        ValueError: the file is neither, or of a model without a pure forward.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces"]  # noqa: RUF012, as ASE declares it

    def __init__(
        self, path: Union[str, Path], *, device: str = "cpu", skin: float = SKIN, trust: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 0 <= skin < math.inf:
            raise ValueError(f"skin: expected a number of at least 0 A, not {skin}.")
        self._again = partial(type(self), Path(path).resolve(), device=device, skin=skin, trust=trust, **options)
        self.device = torch.device(device)
        self.student = open_student(Path(path), self.device, trust=trust)
        self.pairs = Pairs(self.student.info.rule, skin)
        self._system: Optional[_System] = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles read the file again: torch does not pickle a program."""
        return self._again, ()

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What differs from the last step, compared bit by bit: ASE's comparison takes a tenth of a step."""
        last: Any = self.atoms
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        pairs = [(name, last.arrays[name], atoms.arrays[name]) for name in ("positions", "numbers")]
        pairs += [("cell", last.cell.array, atoms.cell.array), ("pbc", last.pbc, atoms.pbc)]
        return [name for name, before, now in pairs if (before != now).any()]

    def calculate(
        self, atoms: Optional[Atoms] = None, properties: Sequence[str] = (), system_changes: Sequence[str] = all_changes
    ) -> None:
        """ASE's entry point: all properties in one forward.

        Raises:
            ValueError: an unknown element, positions that are not finite, or a periodic system without a cell.
        """
        given: Any = self.atoms if atoms is None else atoms
        self.results, system, self._system = {}, self._system, None  # nothing is left where these atoms are refused
        positions = given.positions
        check_positions(positions)
        if system is None or list(system_changes) != ["positions"]:
            system = _System.of(given, self.student, self.device)
        system.atoms.positions[:] = positions
        self.atoms = system.atoms
        pairs, shifts = (torch.from_numpy(array).to(self.device) for array in self.pairs(positions, system.cell, given.pbc))
        moved = torch.from_numpy(positions).to(self.device)
        with without_denormals():
            energy, forces, energies = self.student(system.numbers, moved, system.cells, pairs, shifts, system.index)
        self._system = system
        self.results = {
            "energy": energy.item(),
            "free_energy": energy.item(),
            "energies": energies.cpu().numpy(),
            "forces": forces.double().cpu().numpy(),
        }


@dataclass(frozen=True)
class _System:
    """What stays between steps in which only positions change: a copy of the atoms, and tensors for the forward."""

    atoms: Atoms
    cell: np.ndarray
    numbers: Tensor
    cells: Tensor
    index: Tensor

    @classmethod
    def of(cls, atoms: Atoms, student: Student, device: torch.device) -> _System:
        check_elements(atoms.numbers, student.info)
        cell, copy = complete_cell(atoms.cell.array, atoms.pbc), atoms.copy()
        arrays = (copy.numbers, cell[None], np.zeros(len(copy), int))
        return cls(copy, cell, *(torch.from_numpy(array).to(device) for array in arrays))


def open_student(path: Path, device: torch.device, *, trust: bool = False) -> Student:
    """A student of an exported file or of a checkpoint, whichever it is."""
    if is_exported(path) or not path.is_file():
        return read_student(path, device)
    try:
        from fairchem_crack.export.checkpoint import scripted
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is no exported student, and a checkpoint needs fairchem ({error}): `fairchem-crack export` writes a "
            "file that does not."
        ) from error
    return scripted(path, device, trust=trust)
