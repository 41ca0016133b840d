"""Export a checkpoint and keep OCPCalculator's results for the engines' tests, which run without fairchem.

python tests/engines/prepare.py CHECKPOINT build/engines
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from fairchem_crack.commands.cli import main as command
from fairchem_crack.evaluation.speed.runs import Model


def slab(metal: str, size: tuple[int, int, int], seed: int) -> Atoms:
    """A rattled slab with an oxygen atom, its lowest layer fixed, with velocities of 300 K."""
    atoms = fcc111(metal, size, vacuum=7.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.pbc = True
    atoms.rattle(0.05, seed=seed)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == size[2]))
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.RandomState(seed))
    return atoms


def main(checkpoint: Path, place: Path) -> None:
    """Write `student.pt`, `student-metatomic.pt` and `reference.extxyz`."""
    place.mkdir(parents=True, exist_ok=True)
    of_checkpoint = ["--checkpoint", str(checkpoint)]
    command(["export", *of_checkpoint, "--output", str(place / "student.pt")])
    command(["export", *of_checkpoint, "--output", str(place / "student-metatomic.pt"), "--format", "metatomic"])
    calculator = Model(checkpoint, cpu=True).calculator
    systems = [slab("Cu", (2, 2, 3), 0), slab("Pt", (3, 2, 3), 1), slab("Cu", (4, 4, 4), 2)]
    for atoms in systems:
        free = atoms.copy()
        free.set_constraint()
        free.calc = calculator
        atoms.info["ocp_energy"], atoms.arrays["ocp_forces"] = free.get_potential_energy(), free.get_forces()
    ase.io.write(
        place / "reference.extxyz", systems, columns=["symbols", "positions", "momenta", "move_mask", "tags", "ocp_forces"]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
