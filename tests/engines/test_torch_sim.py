"""The exported student in torch-sim: torch-sim's own checks, and batches compared with ASE in sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from torch_sim.models.interface import validate_model_outputs
from torch_sim.testing import CONSISTENCY_SIMSTATES, SIMSTATE_GENERATORS, assert_model_calculator_consistency

from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.export.student import read_student
from fairchem_crack.export.torch_sim import StudentModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(exported) -> StudentModel:
    return StudentModel(exported, dtype=torch.float64)


@pytest.fixture(scope="module")
def calculator(exported) -> StudentCalculator:
    return StudentCalculator(exported)


def test_torch_sim_accepts_the_outputs(model):
    """In float64: an atom of a perfect crystal moves by a lattice vector, and rounding decides between equal distances."""
    validate_model_outputs(model, CPU, torch.float64)


@pytest.mark.parametrize("name", CONSISTENCY_SIMSTATES)
def test_torch_sims_systems_equal_the_calculator(name, model, exported):
    """In float64: torch-sim's limit of 1e-5 eV is for the sum over all atoms, which float32 can miss in large systems."""
    calculator = StudentCalculator(exported)
    calculator.student = read_student(exported, CPU, torch.float64)
    assert_model_calculator_consistency(model, calculator, SIMSTATE_GENERATORS[name](CPU, torch.float64))


def free(systems: list[Atoms]) -> list[Atoms]:
    for atoms in systems:
        atoms.set_constraint()
    return systems


def test_a_batch_equals_ocpcalculator(model, slabs):
    outputs = model(torch_sim.initialize_state(free(slabs), CPU, torch.float64))
    expected = [atoms.info["ocp_energy"] for atoms in slabs]
    np.testing.assert_allclose(outputs["energy"], expected, atol=1e-5, rtol=1e-5)
    forces = np.concatenate([atoms.arrays["ocp_forces"] for atoms in slabs])
    np.testing.assert_allclose(outputs["forces"], forces, atol=2e-5)


def test_batched_dynamics_follow_ase_in_sequence(model, calculator, slabs):
    state = torch_sim.initialize_state(free(slabs), CPU, torch.float64)
    momenta = np.concatenate([atoms.get_momenta() for atoms in slabs])
    run = torch_sim.nve_init(state, model, kT=torch.tensor(0.0, dtype=torch.float64))
    run.momenta = torch.from_numpy(momenta)  # ASE's unit of time is torch-sim's in "metal"
    for _ in range(20):
        run = torch_sim.nve_step(run, model, dt=torch.tensor(units.fs, dtype=torch.float64))
    for atoms, positions in zip(slabs, run.positions.split([len(atoms) for atoms in slabs])):
        atoms.calc = calculator
        VelocityVerlet(atoms, timestep=units.fs).run(20)
        np.testing.assert_allclose(positions, atoms.positions, atol=1e-4)


def test_batched_relaxations_end_where_ase_ends(model, calculator, slabs):
    state = torch_sim.optimize(
        system=free(slabs),
        model=model,
        optimizer=torch_sim.Optimizer.fire,
        convergence_fn=torch_sim.generate_force_convergence_fn(force_tol=0.02, include_cell_forces=False),
        max_steps=300,
    )
    for atoms, energy in zip(slabs, state.energy):
        atoms.calc = calculator
        FIRE(atoms, logfile=None).run(fmax=0.02, steps=300)
        assert float(energy) == pytest.approx(atoms.get_potential_energy(), abs=0.01)
