"""A student as an ASE calculator: a pure forward and neighbor lists that outlive several steps."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from fairchem_crack.export.neighbors import SKIN, Pairs
from fairchem_crack.export.student import RECORD, Student, read_student
from fairchem_crack.export.systems import check_elements, check_positions, complete_cell


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
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012, whose comparison takes a tenth of a step

    def __init__(
        self, path: Union[str, Path], *, device: str = "cpu", skin: float = SKIN, trust: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        if not skin >= 0:
            raise ValueError(f"skin: expected a number of at least 0 A, not {skin}.")
        self.device = torch.device(device)
        self.student = open_student(Path(path), self.device, trust=trust)
        self.pairs = Pairs(self.student.info.rule, skin)
        self._numbers = np.zeros(0, int)

    def calculate(
        self, atoms: Optional[Atoms] = None, properties: Sequence[str] = (), system_changes: Sequence[str] = all_changes
    ) -> None:
        """ASE's entry point: all properties in one forward.

        Raises:
            ValueError: an unknown element, positions that are not finite, or a periodic system without a cell.
        """
        super().calculate(atoms, properties, system_changes)
        system: Any = self.atoms
        numbers, positions, pbc = system.numbers, system.positions, system.pbc
        check_positions(positions)
        if not np.array_equal(numbers, self._numbers):
            check_elements(numbers, self.student.info)
            self._numbers = numbers.copy()
        cell = complete_cell(system.cell.array, pbc)
        pairs, shifts = self.pairs(positions, cell, pbc)
        arrays = (numbers, positions, cell[None], pairs, shifts, np.zeros(len(numbers), int))
        tensors = [torch.from_numpy(array).to(self.device) for array in arrays]
        energy, forces, energies = self.student(*tensors)
        self.results = {
            "energy": energy.item(),
            "free_energy": energy.item(),
            "energies": energies.cpu().numpy(),
            "forces": forces.cpu().numpy().astype(np.float64),
        }


def open_student(path: Path, device: torch.device, *, trust: bool = False) -> Student:
    """A student of an exported file or of a checkpoint, whichever it is."""
    is_exported = zipfile.is_zipfile(path) and any(name.endswith(RECORD) for name in zipfile.ZipFile(path).namelist())
    if is_exported or not path.is_file():
        return read_student(path, device)
    from fairchem_crack.export.checkpoint import scripted

    return scripted(path, device, trust=trust)
