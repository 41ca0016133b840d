"""Molecular dynamics at constant energy: how fast the total energy leaves its start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from fairchem_crack.evaluation.stability.dynamics import Survival, run_within
from fairchem_crack.evaluation.stability.limits import LIMITS, TIME_STEP, Limits


@dataclass(frozen=True)
class Course:
    """A run at constant energy, of S steps.

    Attributes:
        energy: (S + 1,) meV/atom, total energy over the number of atoms after each step, from the start's.
        drift: meV/atom/ps, slope of the least-squares line through `energy`; NaN where the run left its limits.
        fluctuation: meV/atom, root mean square of `energy` about the line; NaN where the run left its limits.
        temperature: K, the highest.
        survival: how long it stayed within its limits.
    """

    energy: np.ndarray
    drift: float
    fluctuation: float
    temperature: float
    survival: Survival


def constant_energy(
    start: Atoms, *, ps: float, temperature: float, limits: Limits = LIMITS, time_step: float = TIME_STEP
) -> Course:
    """Velocity Verlet of a copy of `start`, from its positions and velocities, until `ps` or out of bounds.

    Args:
        start: with a calculator, and velocities.
        temperature: K, from which the velocities come; see `hottest`.
        time_step: fs.
    """
    atoms = start.copy()
    atoms.calc = start.calc
    energies: list[float] = []  # eV
    temperatures: list[float] = []

    def record() -> None:
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())

    dynamics = VelocityVerlet(atoms, timestep=time_step * units.fs, logfile=None)
    dynamics.attach(record)  # at the start, too
    survival = run_within(dynamics, ps=ps, temperature=temperature, limits=limits)
    course = 1e3 * (np.array(energies) - energies[0]) / len(atoms)
    drift, fluctuation = line(course, 1e-3 * time_step) if survival.survived else (math.nan, math.nan)
    return Course(course, drift, fluctuation, float(np.max(temperatures)), survival)


def line(course: np.ndarray, step: float) -> tuple[float, float]:
    """Slope of the least-squares line through equally spaced values, and their root mean square distance from it."""
    at = step * np.arange(len(course))
    slope, start = np.polyfit(at, course, 1)
    return float(slope), float(np.sqrt(np.mean((course - slope * at - start) ** 2)))
