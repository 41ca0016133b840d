"""ASE's molecular dynamics within bounds: a run that leaves them ends, with the time and the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from scipy.stats import chi2

from fairchem_crack.evaluation.stability.limits import FRICTION, LIMITS, TIME_STEP, Limits

RARE = 1e-9  # probability that a thermostat by itself makes a step hotter than the bound

NOT_FINITE = "numbers that are not finite"
TOO_HOT = "a temperature above the limit"
TOO_STRONG = "a force above the limit"
TOO_CLOSE = "two atoms too close"
REASONS = (NOT_FINITE, TOO_HOT, TOO_STRONG, TOO_CLOSE)


class Violation(NamedTuple):
    """A bound that a state is out of: which one of `REASONS`, and the number beside the limit."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Survival:
    """How long a run stayed within its limits.

    Attributes:
        ps: until the last state within them; the whole time where it survived.
        reason: one of `REASONS`, of the state after; None where it survived.
        detail: the number that was out of bounds, its place, and the limit.
    """

    ps: float
    reason: Optional[str] = None
    detail: str = ""

    @property
    def survived(self) -> bool:
        """Whether it never left the limits."""
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.ps:g} ps" if self.survived else f"ended after {self.ps:g} ps: {self.reason} ({self.detail})"


OnFrame = Callable[[Atoms, int], None]  # the moving Atoms, with their calculator's results, and the number of the step


def survive(
    atoms: Atoms,
    *,
    temperature: float,
    ps: float,
    rng: np.random.Generator,
    limits: Limits = LIMITS,
    every: int = 10,
    on_frame: Optional[OnFrame] = None,
    time_step: float = TIME_STEP,
    friction: float = FRICTION,
) -> Survival:
    """Langevin dynamics of a copy of `atoms`, from velocities of the temperature, until `ps` or out of bounds.

    The random numbers are those of `rng` only: with a deterministic calculator, so is the run.

    Args:
        atoms: with a calculator; fixed atoms stay.
        temperature: K.
        every: steps between two frames.
        on_frame: called with each frame within the limits, but for the start. The Atoms move on: copy what is kept.
        time_step: fs.
        friction: 1/fs.

    Raises:
        ValueError: no atom is free, or an argument is no positive number.
    """
    for name, value in {"temperature": temperature, "ps": ps, "time_step": time_step, "friction": friction}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} {value:g}: expected a positive number.")
    check_movable(atoms)
    moving = atoms.copy()
    moving.calc = atoms.calc
    MaxwellBoltzmannDistribution(moving, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        moving,
        timestep=time_step * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,  # fixed atoms hold the system
        rng=rng,
        logfile=None,
    )
    return run_within(dynamics, ps=ps, temperature=temperature, limits=limits, every=every, on_frame=on_frame)


def run_within(
    dynamics: MolecularDynamics,
    *,
    ps: float,
    temperature: float,
    limits: Limits = LIMITS,
    every: int = 1,
    on_frame: Optional[OnFrame] = None,
) -> Survival:
    """Run any of ASE's dynamics until `ps` or out of bounds; every state is looked at, the start too.

    What is handed to the calculator is finite: the state before was within bounds.

    Args:
        temperature: K, about which the free atoms' temperature is expected to fluctuate; see `hottest`.
        every: steps between two frames, at least 1.
        on_frame: see `survive`.
    """
    atoms, step_ps = dynamics.atoms, dynamics.dt / (1e3 * units.fs)
    bound = hottest(temperature, atoms.get_number_of_degrees_of_freedom(), limits)
    for step, _ in enumerate(dynamics.irun(max(1, round(ps / step_ps)))):
        if broken := violation(atoms, limits, max_temperature=bound):
            at_start = "" if step else ", at the start"
            return Survival(max(0, step - 1) * step_ps, broken.reason, broken.detail + at_start)
        if on_frame is not None and step and step % every == 0:
            on_frame(atoms, step)
    return Survival(step * step_ps)


def hottest(temperature: float, degrees: int, limits: Limits) -> float:
    """K, above which a run is out of bounds: the limit, or what the thermostat exceeds with probability `RARE`, if higher.

    At temperature T the kinetic temperature of f degrees of freedom is T chi2_f / f: with few atoms, far from T by chance.

    Args:
        degrees: f, of the free atoms.
    """
    return max(limits.max_temperature, temperature * float(chi2.isf(RARE, degrees)) / degrees)


def violation(atoms: Atoms, limits: Limits, *, max_temperature: float) -> Optional[Violation]:
    """The bound that a state is out of, the gravest of several; None where it is within all.

    Args:
        atoms: with a calculator, and velocities.
        max_temperature: K, in place of that of `limits`.
    """
    values = {
        "forces": atoms.get_forces(apply_constraint=False),
        "energy": atoms.get_potential_energy(),
        "velocities": atoms.get_velocities(),
        "positions": atoms.positions,
    }
    for name, value in values.items():
        if not np.isfinite(value).all():
            return Violation(NOT_FINITE, name)
    norms = np.linalg.norm(atoms.get_forces(), axis=1)  # (N,) eV/A, 0 on fixed atoms
    if norms.max() > limits.max_force:
        atom = _named(atoms, int(norms.argmax()))
        return Violation(TOO_STRONG, f"{norms.max():.3g} eV/A on {atom}, above {limits.max_force:g}")
    if (temperature := atoms.get_temperature()) > max_temperature:
        return Violation(TOO_HOT, f"{temperature:,.0f} K, above {max_temperature:,.0f}")
    return _too_close(atoms, limits.min_distance)


def _too_close(atoms: Atoms, min_distance: float) -> Optional[Violation]:
    if not min_distance:
        return None
    radii = covalent_radii[atoms.numbers]
    first, second, distances = neighbor_list("ijd", atoms, min_distance * radii)
    if not len(distances):
        return None
    ratios = distances / (radii[first] + radii[second])
    closest = int(ratios.argmin())
    pair = " and ".join(_named(atoms, index) for index in sorted((int(first[closest]), int(second[closest]))))
    of_radii = f"{ratios[closest]:.2f} of the sum of their radii, below {min_distance:g}"
    return Violation(TOO_CLOSE, f"{pair} at {distances[closest]:.3g} A, {of_radii}")


def check_movable(atoms: Atoms) -> None:
    """Raise ValueError where no atom can move."""
    if not len(atoms):
        raise ValueError("no atoms: nothing to move.")
    if atoms.get_number_of_degrees_of_freedom() <= 0:
        raise ValueError(f"all {len(atoms)} atoms are fixed: nothing to move.")


def _named(atoms: Atoms, index: int) -> str:
    return f"atom {index} ({atoms.symbols[index]})"
