"""The exported student in LAMMPS, by examples/lammps: ASE's energies, forces and trajectories."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.constraints import FixBondLength
from ase.md.verlet import VelocityVerlet
from lammps_student import LammpsRun

from fairchem_crack.calculator import StudentCalculator


@pytest.fixture(scope="module")
def calculator(exported) -> StudentCalculator:
    return StudentCalculator(exported)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_first_step_equals_ocpcalculator(index, calculator, slabs):
    run = LammpsRun(slabs[index], calculator)
    run.run(0)
    assert run.energy == pytest.approx(slabs[index].info["ocp_energy"], abs=1e-5)
    forces = np.array(run.lammps.gather_atoms("f", 1, 3)).reshape(-1, 3) @ run._rotation
    np.testing.assert_allclose(forces, slabs[index].arrays["ocp_forces"], atol=2e-5)


def test_nve_follows_ase_with_fixed_atoms(calculator, slabs):
    slab = slabs[0]
    fixed = slab.constraints[0].index
    run = LammpsRun(slab, calculator, time_step=1.0)
    run.run(50)
    start = slab.positions.copy()
    slab.calc = calculator
    VelocityVerlet(slab, timestep=units.fs).run(50)
    there = run.state()
    apart = there.positions - slab.positions
    apart -= np.round(apart @ np.linalg.inv(slab.cell.array)) @ slab.cell.array  # LAMMPS wraps
    np.testing.assert_allclose(apart, 0, atol=1e-4)
    np.testing.assert_allclose(there.positions[fixed], start[fixed], atol=1e-9)
    np.testing.assert_allclose(there.get_momenta().sum(0), slab.get_momenta().sum(0), atol=1e-3)
    assert run.total_energy == pytest.approx(slab.get_total_energy(), abs=1e-4)


def test_atoms_out_of_a_cell_that_is_not_periodic_are_kept(calculator, slabs):
    slab = slabs[0]
    slab.pbc = (True, True, False)
    slab.positions[:, 2] -= 9.0
    run = LammpsRun(slab, calculator)
    run.run(0)
    assert run.energy == pytest.approx(calculator.get_potential_energy(slab), abs=1e-5)


def test_an_error_of_the_student_is_that_of_the_run(calculator, slabs):
    run = LammpsRun(slabs[0], calculator)
    run._evaluated.numbers[0] = 92
    with pytest.raises(ValueError, match="no atomic number 92"):
        run.run(5)


def test_what_lammps_would_leave_out_is_refused(calculator, slabs):
    slabs[0].set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="FixBondLengths: only FixAtoms is taken over"):
        LammpsRun(slabs[0], calculator)


def test_nvt_holds_the_temperature(calculator, slabs):
    run = LammpsRun(slabs[2], calculator, ensemble="nvt", temperature=300.0, time_step=2.0)
    temperatures = []
    for _ in range(30):
        run.run(5)
        moving = np.setdiff1d(np.arange(len(slabs[2])), slabs[2].constraints[0].index)
        kinetic = (run.state().get_momenta()[moving] ** 2 / slabs[2].get_masses()[moving, None]).sum() / 2
        temperatures.append(kinetic / (1.5 * len(moving) * units.kB))
    assert 200 < np.mean(temperatures[10:]) < 400
