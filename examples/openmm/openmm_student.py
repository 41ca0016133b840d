"""Molecular dynamics of a student in OpenMM (8.4 and later): a PythonForce calls the student in every step.

    python examples/openmm/openmm_student.py slab.traj --student student.pt --steps 1000 --temperature 300

`pip install openmm`. Where openmm-ml is installed, `MLPotential("ase", calculator=StudentCalculator(...))` does the same.
"""

from __future__ import annotations

import argparse
from typing import Any

import ase.io
import numpy as np
import openmm
from ase import Atoms
from ase.constraints import FixAtoms
from openmm import unit

from fairchem_crack.calculator import StudentCalculator

EV = 96.48533212331  # kJ/mol
NM = 10.0  # A


def student_system(atoms: Atoms, calculator: Any) -> openmm.System:
    """An OpenMM system with the student's forces; atoms of FixAtoms have mass 0, and so OpenMM does not move them.

    Raises:
        ValueError: another constraint.
    """
    others = [type(constraint).__name__ for constraint in atoms.constraints if not isinstance(constraint, FixAtoms)]
    if others:
        raise ValueError(f"{', '.join(others)}: only FixAtoms is taken over from the structure.")
    evaluated = atoms.copy()
    evaluated.set_constraint()
    evaluated.calc = calculator
    fixed = {int(index) for constraint in atoms.constraints for index in constraint.get_indices()}
    system = openmm.System()
    for index, mass in enumerate(atoms.get_masses()):
        system.addParticle(0.0 if index in fixed else mass)

    def compute(state: openmm.State) -> tuple[float, np.ndarray]:
        evaluated.positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer) * NM
        return evaluated.get_potential_energy() * EV, evaluated.get_forces() * EV * NM

    system.addForce(openmm.PythonForce(compute))
    return system


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("structure", help="a file that ASE reads")
    parser.add_argument("--student", required=True, help="a file of `fairchem-crack export`, or a checkpoint")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--time-step", type=float, default=1.0, help="fs")
    options = parser.parse_args()
    atoms = ase.io.read(options.structure)
    integrator = openmm.LangevinMiddleIntegrator(options.temperature, 1.0, options.time_step / 1000)  # K, 1/ps, ps
    context = openmm.Context(student_system(atoms, StudentCalculator(options.student)), integrator)
    context.setPositions(atoms.positions / NM)
    context.setVelocitiesToTemperature(options.temperature)
    for _ in range(10):
        integrator.step(max(options.steps // 10, 1))
        energy = context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        print(f"{energy / EV:.4f} eV potential")


if __name__ == "__main__":
    main()
