"""Toy systems for molecular dynamics: atoms on springs, whose forces can go wrong at a known step, and a slab."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

Change = Callable[[np.ndarray], np.ndarray]


class Springs(Calculator):
    """Each atom on a spring to its start; from the `call`-th evaluation on, `change` alters the forces."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012, ASE declares it so

    def __init__(self, start: Atoms, *, stiffness: float = 5.0, call: float = math.inf, change: Change = np.copy) -> None:
        super().__init__()
        self.start, self.stiffness = start.positions.copy(), stiffness  # (N, 3) A; eV/A^2
        self.call, self.change, self.calls = call, change, 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.positions - self.start
        forces = -self.stiffness * away
        self.results = {
            "energy": 0.5 * self.stiffness * (away**2).sum(),
            "forces": self.change(forces) if self.calls >= self.call else forces,
        }
        self.calls += 1


def slab(calculator: Calculator | None = None) -> Atoms:
    """O on Al, 13 atoms, tagged and fixed as in OC20."""
    atoms = fcc111("Al", (2, 2, 3), vacuum=8.0)
    tags = [0 if layer == 3 else 1 for layer in atoms.get_tags()]  # ase.build numbers layers from the top
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.pbc = True
    atoms.set_tags([*tags, 2])
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
    atoms.calc = calculator or EMT()
    return atoms


def springs(start: Atoms, **options) -> Atoms:
    start.calc = Springs(start, **options)
    return start
