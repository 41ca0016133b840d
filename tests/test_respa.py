"""examples/respa: multiple time steps with a teacher and a student."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

sys.path.append(str(Path(__file__).parents[1] / "examples" / "respa"))
from respa import Respa

from benchmarks import respa as benchmark


def slab() -> Atoms:
    """A slab with a fixed layer, at 500 K."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    MaxwellBoltzmannDistribution(atoms, temperature_K=500, rng=np.random.RandomState(0))
    atoms.calc = EMT()
    return atoms


def respa(atoms: Atoms, *, every: int, step: float = 1.0) -> Respa:
    """With Lennard-Jones as the student of EMT."""
    return Respa(atoms, step * units.fs, student=LennardJones(sigma=2.28, epsilon=0.4, rc=6.0, smooth=True), every=every)


def test_a_correction_in_every_step_is_velocity_verlet():
    ours, expected = slab(), slab()
    respa(ours, every=1).run(20)
    VelocityVerlet(expected, timestep=units.fs).run(20)
    np.testing.assert_allclose(ours.positions, expected.positions, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.get_momenta(), expected.get_momenta(), rtol=0, atol=1e-10)


def test_reversed_velocities_lead_back_to_the_start():
    atoms, start = slab(), slab()
    respa(atoms, every=4).run(10)
    assert abs(atoms.positions - start.positions).max() > 0.05
    atoms.set_momenta(-atoms.get_momenta())
    respa(atoms, every=4).run(10)
    np.testing.assert_allclose(atoms.positions, start.positions, rtol=0, atol=1e-9)


def test_the_error_of_the_energy_is_of_second_order():
    errors = []
    for step in (1.0, 0.5):
        atoms, energies = slab(), []
        dynamics = respa(atoms, every=4, step=step)
        dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_total_energy()))
        dynamics.run(round(40 / step))
        errors.append(np.abs(np.array(energies) - energies[0]).max())
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.2)


def test_the_benchmark_counts_calls_and_measures_the_drift():
    row = benchmark.measure(slab(), EMT(), LennardJones(sigma=2.28, epsilon=0.4, rc=6.0, smooth=True), every=2, steps=20)
    assert row["teacher_calls"] == 11 and row["student_calls"] == 21
    assert abs(row["drift"]) < 5 and row["ended"] == ""
