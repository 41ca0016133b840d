"""What `fairchem-crack explore` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from fairchem_crack.evaluation.stability.limits import Limits
from fairchem_crack.generate import settings as generate
from fairchem_crack.io.arguments import check_at_least, check_positive

POSITIVE = ("temperature", "ps", "max_temperature", "stable_ps", "max_forces_mae")  # `limits`, `of_frames` check others
COUNTS = ("rounds", "steps", "starts", "every", "select", "stable_starts")
AT_LEAST = {**dict.fromkeys(COUNTS, 1), "relax_steps": 0, "seed": 0}
OF_THE_END = ("rounds", "stable_ps", "stable_starts", "max_forces_mae")  # decide when rounds end, and nothing of a round


@dataclass(frozen=True)
class Settings:
    """What decides the trajectories of a student, the frames that are kept of them, and how it is trained on them.

    Attributes:
        rounds: trainings.
        steps: of each training; whole epochs are taken.
        starts: systems of dataset.train from which trajectories begin, evenly spaced.
        temperature: K.
        ps: of each dynamics.
        every: steps between two frames.
        relax_steps: of each relaxation, from the rattled start; 0 for none.
        sigma: A, the range from which the standard deviation of that rattling is drawn.
        max_temperature: K, at which dynamics end.
        max_force: eV/A, on a free atom: the student's, at which a trajectory ends; the teacher's, above which a frame is
            thrown out.
        min_distance: of two atoms, in sums of their covalent radii; likewise.
        max_energy_change: eV, between the teacher's energies of a frame and of its start.
        max_gap: A, between the adsorbate and the atom nearest to it; None for no limit.
        select: how many frames of a round are labelled, those that add most; None for all.
        stable_ps: a start is stable when its dynamics last so long; None: no matter for the end.
        stable_starts: how many starts have to be stable; None for all.
        max_forces_mae: eV/A, of the student on the frames of a round; None: no matter for the end.
        seed: with the round and the start it decides a trajectory.

    Raises:
        ValueError: one of them is out of bounds; the message begins with its option.
    """

    rounds: int
    steps: int
    starts: int = 20
    temperature: float = 500.0
    ps: float = 2.0
    every: int = 20
    relax_steps: int = 50
    sigma: tuple[float, float] = (0.02, 0.12)
    max_temperature: float = 2000.0
    max_force: float = 50.0
    min_distance: float = 0.6
    max_energy_change: float = 20.0
    max_gap: Optional[float] = None
    select: Optional[int] = None
    stable_ps: Optional[float] = None
    stable_starts: Optional[int] = None
    max_forces_mae: Optional[float] = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, AT_LEAST)
        check_positive(self, POSITIVE)
        if self.stable_ps is not None and self.stable_ps > self.ps:
            raise ValueError(f"--stable-ps {self.stable_ps:g}: the dynamics last --ps {self.ps:g} only.")
        if self.stable_starts is not None and self.stable_ps is None:
            raise ValueError(f"--stable-starts {self.stable_starts}: give --stable-ps, for how long they have to be stable.")
        if self.stable_starts is not None and self.stable_starts > self.starts:
            raise ValueError(f"--stable-starts {self.stable_starts}: there are --starts {self.starts} only.")
        _ = self.limits, self.of_frames

    @property
    def limits(self) -> Limits:
        """Beyond which dynamics end."""
        return Limits(self.max_temperature, self.max_force, self.min_distance)

    @property
    def of_frames(self) -> generate.Settings:
        """By which frames are thrown out, and relaxations begin."""
        return generate.Settings(
            {},
            sigma=self.sigma,
            every=1,
            min_distance=self.min_distance,
            max_force=self.max_force,
            max_energy_change=self.max_energy_change,
            max_gap=self.max_gap,
        )

    @property
    def ends_early(self) -> bool:
        """Whether anything but the number of rounds can end them."""
        return self.stable_ps is not None or self.max_forces_mae is not None
