"""Models at molecular dynamics from the same starts: how long they last, how they drift, what they sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
from ase import Atoms

from fairchem_crack.evaluation.stability.drift import Course, constant_energy
from fairchem_crack.evaluation.stability.dynamics import OnFrame, Survival, check_movable, survive
from fairchem_crack.evaluation.stability.limits import FRICTION, LIMITS, TIME_STEP, Limits
from fairchem_crack.evaluation.stability.structure import distance, pair_counts, radial_distribution, surface_of

SAMPLED_FROM = 0.2  # of a run: what is before is still on its way to the temperature
NO_START = "the Langevin run before it ended early"  # the reason why there is no run at constant energy

Tick = Callable[[int], Any]  # called with the number of steps since the last call


def ignore(steps: int) -> None:
    """A `Tick` where nobody watches."""


@dataclass(frozen=True)
class Settings:
    """How long, and how, models are run.

    Attributes:
        ps: of a Langevin run.
        drift_ps: of a run at constant energy; 0 for none.
        every: steps between two frames that are sampled.
        time_step: fs.
        friction: 1/fs, of the thermostat.
        seed: with the number of a start it decides velocities and noise, which are the same for all models.
    """

    ps: float
    drift_ps: float = 0.0
    every: int = 10
    time_step: float = TIME_STEP
    friction: float = FRICTION
    seed: int = 0
    limits: Limits = LIMITS

    @property
    def steps(self) -> int:
        """Of a Langevin run."""
        return round(1e3 * self.ps / self.time_step)

    @property
    def drift_steps(self) -> int:
        """Of a run at constant energy."""
        return round(1e3 * self.drift_ps / self.time_step)


def check_starts(starts: Sequence[Atoms], where: str) -> None:
    """Raise ValueError, by its number from 0, for a start of which no atom can move."""
    for number, start in enumerate(starts):
        try:
            check_movable(start)
        except ValueError as error:
            raise ValueError(f"{where}, system {number}: {error} Leave it out.") from error


def langevin(
    calculator: Any,
    start: Atoms,
    number: int,
    settings: Settings,
    *,
    temperature: float,
    on_frame: Optional[OnFrame] = None,
    tick: Tick = ignore,
) -> Survival:
    """`survive` with a model, from the start of this number.

    Args:
        temperature: K.
        tick: called at each frame, and at the end with all that is left, also of a run that ended early.
    """
    atoms, done = start.copy(), 0
    atoms.calc = calculator

    def pass_on(frame: Atoms, step: int) -> None:
        nonlocal done
        tick(step - done)
        done = step
        if on_frame is not None:
            on_frame(frame, step)

    torch.manual_seed(settings.seed)  # EquiformerV2 and eSCN draw the frames of their edges
    survival = survive(
        atoms,
        temperature=temperature,
        ps=settings.ps,
        rng=np.random.default_rng([settings.seed, number]),
        limits=settings.limits,
        every=settings.every,
        on_frame=pass_on,
        time_step=settings.time_step,
        friction=settings.friction,
    )
    tick(settings.steps - done)
    return survival


class Sample:
    """The frames of a run.

    Attributes:
        counts: (K,) `pair_counts` of each frame, after the first `SAMPLED_FROM` of the run.
        heights: A, of the adsorbate in the same frames; empty without a surface.
        last: the last frame, with its velocities; until there is one, the start.
    """

    def __init__(self, start: Atoms, settings: Settings) -> None:
        self._surface, self._begin = surface_of(start), SAMPLED_FROM * settings.steps
        self.counts: list[np.ndarray] = []
        self.heights: list[float] = []
        self.last = start

    def add(self, frame: Atoms, step: int) -> None:
        """Take a frame; see `OnFrame`."""
        self.last = frame.copy()
        if step > self._begin:
            self.counts.append(pair_counts(frame))
            if self._surface is not None:
                self.heights.append(self._surface.height(frame))

    @property
    def height(self) -> float:
        """A, the adsorbate's mean; NaN without."""
        return float(np.mean(self.heights)) if self.heights else math.nan

    def distribution(self, frames: slice = slice(None)) -> np.ndarray:
        """(K,) `radial_distribution` of these frames."""
        return radial_distribution(np.array(self.counts[frames]))

    def distance_to(self, teachers: Sample) -> float:
        """`distance` of the radial distribution functions; of the teacher to itself, of the two halves of its run."""
        if self is not teachers:
            return distance(self.distribution(), teachers.distribution())
        half = len(self.counts) // 2
        return distance(self.distribution(slice(half)), self.distribution(slice(half, None)))


@dataclass(frozen=True)
class ModelRuns:
    """All runs of a model; each list has an entry for each start.

    Attributes:
        survivals: of the Langevin runs, by temperature.
        samples: of the same runs.
        courses: of the runs at constant energy, each from where the Langevin run at the first temperature ended; None where
            that ended early. Empty if there were none.
    """

    survivals: dict[float, list[Survival]]
    samples: dict[float, list[Sample]]
    courses: list[Optional[Course]]


def run_model(
    calculator: Any,
    starts: Sequence[Atoms],
    temperatures: Sequence[float],
    settings: Settings,
    tick: Tick = ignore,
) -> ModelRuns:
    """Run a model from every start at every temperature (K), and then at constant energy."""
    samples = {temperature: [Sample(start, settings) for start in starts] for temperature in temperatures}
    survivals = {
        temperature: [
            langevin(calculator, start, number, settings, temperature=temperature, on_frame=sample.add, tick=tick)
            for number, (start, sample) in enumerate(zip(starts, of_temperature))
        ]
        for temperature, of_temperature in samples.items()
    }
    courses: list[Optional[Course]] = []
    if settings.drift_steps:
        first = temperatures[0]
        for sample, survival in zip(samples[first], survivals[first]):
            courses.append(_course(calculator, sample, first, settings) if survival.survived else None)
            tick(settings.drift_steps)
    return ModelRuns(survivals, samples, courses)


def _course(calculator: Any, sample: Sample, temperature: float, settings: Settings) -> Course:
    start = sample.last.copy()
    start.calc = calculator
    return constant_energy(
        start, ps=settings.drift_ps, temperature=temperature, limits=settings.limits, time_step=settings.time_step
    )


def figures(runs: ModelRuns, teachers: Optional[ModelRuns] = None) -> dict[str, Any]:
    """What the runs of a model show, in numbers; lists have an entry for each start.

    Returns:
        `langevin`, by temperature: `ps`, `reason` and `detail` of `Survival`; `height` in A and, with a teacher,
        `rdf_distance` to its run. `constant_energy`: `drift` in meV/atom/ps, `fluctuation` in meV/atom, and again `ps`,
        `reason` and `detail`. NaN where there is no number.
    """
    by_temperature = {}
    for temperature, survivals in runs.survivals.items():
        samples = runs.samples[temperature]
        row = by_temperature[f"{temperature:g}"] = {**_columns(survivals), "height": [sample.height for sample in samples]}
        if teachers is not None:
            row["rdf_distance"] = [ours.distance_to(its) for ours, its in zip(samples, teachers.samples[temperature])]
    courses = {
        name: [math.nan if course is None else getattr(course, name) for course in runs.courses]
        for name in ("drift", "fluctuation")
    }
    survivals = [Survival(0.0, NO_START) if course is None else course.survival for course in runs.courses]
    return {"langevin": by_temperature, "constant_energy": {**courses, **_columns(survivals)}}


def _columns(survivals: Sequence[Survival]) -> dict[str, list]:
    return {name: [getattr(survival, name) for survival in survivals] for name in ("ps", "reason", "detail")}
