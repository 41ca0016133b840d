"""The exported student in OpenMM, by examples/openmm: ASE's energies and trajectories."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from openmm import unit
from openmm_student import EV, NM, student_system

from fairchem_crack.calculator import StudentCalculator


def test_constant_energy_dynamics_follow_ase(exported, slabs):
    slab, calculator = slabs[0], StudentCalculator(exported)
    integrator = openmm.VerletIntegrator(0.001)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(student_system(slab, calculator), integrator, platform)
    context.setPositions(slab.positions / NM)
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) / EV
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer) / (EV * NM)
    assert energy == pytest.approx(slab.info["ocp_energy"], abs=1e-5)
    np.testing.assert_allclose(forces, slab.arrays["ocp_forces"], atol=2e-5)

    slab.calc = calculator
    half_step = 0.5 * units.fs * slab.get_forces() / slab.get_masses()[:, None]  # OpenMM's Verlet leaps over half a step
    velocities = (slab.get_velocities() - half_step) * units.fs * 1000 / NM  # nm/ps
    velocities[slab.constraints[0].index] = 0
    context.setVelocities(velocities)
    integrator.step(20)
    VelocityVerlet(slab, timestep=units.fs).run(20)
    positions = context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer) * NM
    np.testing.assert_allclose(positions, slab.positions, atol=1e-4)
