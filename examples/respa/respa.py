"""Multiple time steps (r-RESPA, Tuckerman et al. 1992): the student in every step, the teacher's correction in every n-th.

    python examples/respa/respa.py slab.traj --student student.pt --teacher teacher.pt --every 4

A step of n inner ones: half a kick with n (F_teacher - F_student), n steps of velocity Verlet with the student, the other
half of the kick. For n = 1 this is velocity Verlet with the teacher. What it conserves is the teacher's total energy.
"""

from __future__ import annotations

import argparse
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution


class Respa(MolecularDynamics):
    """Dynamics with the teacher's forces in every n-th step.

    Args:
        atoms: its calculator is the teacher; constraints hold.
        timestep: of an inner step, ASE's units.
        student: a calculator.
        every: n.
    """

    def __init__(self, atoms: Atoms, timestep: float, *, student: Any, every: int, **options: Any) -> None:
        super().__init__(atoms, timestep, **options)
        self.every = every
        self.inner = atoms.copy()
        self.inner.calc = student
        self._masses = atoms.get_masses()[:, None]
        self._correction: Any = None  # teacher's forces minus the student's, at the positions of the last step

    def step(self, forces: Any = None) -> np.ndarray:
        """`every` inner steps; returns the teacher's forces after them."""
        atoms, inner = self.atoms, self.inner
        inner.positions = atoms.positions
        student = inner.get_forces(md=True)
        if self._correction is None:
            self._correction = atoms.get_forces(md=True) - student
        inner.set_momenta(atoms.get_momenta() + self.every * self.dt / 2 * self._correction)
        for _ in range(self.every):
            inner.set_momenta(inner.get_momenta() + self.dt / 2 * student)
            inner.set_positions(inner.positions + self.dt * inner.get_momenta() / self._masses)
            student = inner.get_forces(md=True)
            inner.set_momenta(inner.get_momenta() + self.dt / 2 * student)
        atoms.set_positions(inner.positions)
        forces = atoms.get_forces(md=True)
        self._correction = forces - student
        atoms.set_momenta(inner.get_momenta() + self.every * self.dt / 2 * self._correction)
        return forces


def main() -> None:
    """Run from the command line."""
    from fairchem.core import OCPCalculator

    from fairchem_crack.calculator import StudentCalculator

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("structure", help="a file that ASE reads")
    parser.add_argument("--student", required=True, help="a checkpoint, or a file of `fairchem-crack export`")
    parser.add_argument("--teacher", required=True, help="a checkpoint of fairchem 1.x")
    parser.add_argument("--every", type=int, default=4, help="inner steps for each call of the teacher")
    parser.add_argument("--steps", type=int, default=1000, help="inner steps")
    parser.add_argument("--temperature", type=float, default=500.0, help="K, of the first velocities")
    parser.add_argument("--time-step", type=float, default=1.0, help="fs, of an inner step")
    options = parser.parse_args()
    atoms = ase.io.read(options.structure)
    atoms.calc = OCPCalculator(checkpoint_path=options.teacher, cpu=True)
    MaxwellBoltzmannDistribution(atoms, temperature_K=options.temperature)
    student = StudentCalculator(options.student)
    dynamics = Respa(atoms, options.time_step * units.fs, student=student, every=options.every)
    for _ in range(10):
        dynamics.run(max(options.steps // (10 * options.every), 1))
        print(f"{dynamics.nsteps * options.every} steps: {atoms.get_total_energy():.4f} eV in total")


if __name__ == "__main__":
    main()
