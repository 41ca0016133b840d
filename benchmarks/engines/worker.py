"""One environment's side of the benchmark: answers each line of standard input, a task, with a line of JSON.

    {"engine": "ase", "systems": "build/engines/systems-14.traj", "steps": 50}

An answer has the CPU's `seconds` for the steps, after some that are not timed, and `energy` (eV) and `forces` (eV/A) of the
first system.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

ROOT = Path(__file__).parents[2]
WARM_UP = 3
Prepared = tuple[Callable[[int], Any], float, np.ndarray]
CALCULATORS: dict[tuple, Any] = {}  # a process makes each once


def prepare(engine: str, systems: list[Atoms], files: dict[str, str]) -> Prepared:
    """What runs a number of steps of all systems, and energy and forces of the first one."""
    if engine == "torch-sim":
        return of_torch_sim(systems, files["student"])
    calculator = calculator_of(engine, files)
    first = systems[0].copy()
    first.calc = calculator
    energy, forces = first.get_potential_energy(), first.get_forces()
    if engine == "lammps":
        return of_lammps(systems[0], calculator), energy, forces
    if engine == "openmm":
        return of_openmm(systems[0], calculator), energy, forces
    dynamics = []
    for atoms in systems:
        atoms.calc = calculator
        dynamics.append(VelocityVerlet(atoms, timestep=units.fs))
    return lambda steps: [each.run(steps) for each in dynamics], energy, forces


def calculator_of(engine: str, files: dict[str, str]) -> Any:
    """OCPCalculator, or the student's: of the checkpoint, or of the exported file."""
    key = "ocp" if engine == "ocp" else "checkpoint" if engine == "ase, checkpoint" else "student"
    if key not in CALCULATORS:
        if key == "ocp":
            from fairchem_crack.evaluation.speed.runs import Model

            CALCULATORS[key] = Model(Path(files["checkpoint"]), cpu=True).calculator
        else:
            from fairchem_crack.calculator import StudentCalculator

            CALCULATORS[key] = StudentCalculator(files[key])
    return CALCULATORS[key]


def of_lammps(atoms: Atoms, calculator: Any) -> Callable[[int], Any]:
    """examples/lammps."""
    sys.path.append(str(ROOT / "examples/lammps"))
    from lammps_student import LammpsRun

    return LammpsRun(atoms, calculator).run


def of_openmm(atoms: Atoms, calculator: Any) -> Callable[[int], Any]:
    """examples/openmm."""
    sys.path.append(str(ROOT / "examples/openmm"))
    import openmm
    from openmm_student import student_system

    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(student_system(atoms, calculator), integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10)
    return lambda steps, _=context: integrator.step(steps)


def of_torch_sim(systems: list[Atoms], student: str) -> Prepared:
    """All systems as one batch."""
    import torch_sim

    from fairchem_crack.export.torch_sim import StudentModel

    model = StudentModel(student, dtype=torch.float64)
    state = torch_sim.initialize_state(systems, torch.device("cpu"), torch.float64)
    run = torch_sim.nve_init(state, model, kT=torch.tensor(300 * units.kB, dtype=torch.float64))
    outputs, step = model(state), torch.tensor(units.fs, dtype=torch.float64)

    def steps_of(steps: int) -> None:
        nonlocal run
        for _ in range(steps):
            run = torch_sim.nve_step(run, model, dt=step)

    return steps_of, float(outputs["energy"][0]), outputs["forces"][: len(systems[0])].numpy()


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task."""
    run, energy, forces = prepare(task["engine"], ase.io.read(task["systems"], ":"), task["files"])
    run(WARM_UP)
    start = time.process_time()
    run(task["steps"])
    return {"seconds": time.process_time() - start, "energy": float(energy), "forces": np.asarray(forces).tolist()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print("ANSWER" + json.dumps(answer(json.loads(line))), flush=True)
