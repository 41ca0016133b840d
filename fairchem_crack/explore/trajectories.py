"""What a student does from a start: frames of its dynamics and of its relaxation, and how they ended."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from fairchem_crack.evaluation.stability.dynamics import survive
from fairchem_crack.explore.settings import Settings
from fairchem_crack.generate.limits import check_geometry
from fairchem_crack.generate.moves import free_mask
from fairchem_crack.generate.records import COPY, at
from fairchem_crack.generate.settings import ThrownOut
from fairchem_crack.generate.trajectories import OVER, ModelCalculator, relax
from fairchem_crack.generate.unit import Candidate
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.teacher.frozen import Teacher

MD, RELAX = "md", "relax"  # in the place of a strategy
LAST = (0, 1, 2, 4, 8, 16)  # steps before the last one within the limits: more frames of a trajectory that leaves them


@dataclass(frozen=True)
class Ending:
    """How the dynamics from a start ended.

    Attributes:
        ps: until then; None where no atom can move.
        reason: why it ended; None where it lasted.
        detail: the number that was out of bounds.
    """

    ps: Optional[float]
    reason: Optional[str] = None
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """What a student did from a start.

    Attributes:
        thrown_out: frames by strategy and reason.
    """

    ending: Ending
    candidates: list[Candidate] = field(default_factory=list)
    thrown_out: Counter[tuple[str, str]] = field(default_factory=Counter)


class Frames:
    """The positions of a trajectory: every k-th, and of one that fails more of its last ones."""

    def __init__(self, every: int) -> None:
        self._every, self._recent = every, deque[tuple[int, np.ndarray]](maxlen=LAST[-1] + 1)
        self._kept: dict[int, np.ndarray] = {}
        self._before_failure: set[int] = set()

    def take(self, atoms: Atoms, step: int) -> None:
        """See a step."""
        self._recent.append((step, atoms.positions.copy()))
        if step % self._every == 0:
            self._kept[step] = self._recent[-1][1]

    def keep_last(self) -> None:
        """Keep the last step that was taken, too."""
        self._kept.update(list(self._recent)[-1:])

    def fail(self) -> None:
        """The trajectory has failed after the last step that was taken."""
        for back in LAST[: sum(back < len(self._recent) for back in LAST)]:
            step, positions = self._recent[-1 - back]
            self._kept[step] = positions
            self._before_failure.add(step)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Step, positions (N, 3) in A, and whether a failure followed."""
        for step in sorted(self._kept):
            yield step, self._kept[step], step in self._before_failure


def run_from(start: Data, student: Teacher, device: torch.device, settings: Settings, number: int) -> Run:
    """The student's dynamics and relaxation from a start, in round `number`; the frames within the limits of geometry.

    It depends on the start, the student, the settings and the round only.
    """
    atoms, thrown_out = to_atoms(start), Counter[tuple[str, str]]()
    if not free_mask(atoms).any():
        reason = "all atoms are fixed"
        return Run(Ending(None, reason), [], Counter({(MD, reason): 1}))
    random = np.random.SeedSequence((settings.seed, number, start.parent)).spawn(2)
    ending, of_md = _dynamics(atoms, start, student, device, settings, np.random.default_rng(random[0]))
    of_relax = _relaxation(atoms, start, student, device, settings, np.random.default_rng(random[1]))
    candidates: list[Candidate] = []
    for strategy, frames in ((MD, of_md), (RELAX, of_relax)):
        for step, positions, before_failure in frames:
            atoms.positions = positions
            made = {"strategy": strategy, "round": number, "step": step, "before_failure": before_failure}
            candidate = Candidate(at(start, atoms), made)
            try:
                check_geometry(atoms, settings.of_frames)
            except ThrownOut as thrown:
                thrown_out[strategy, thrown.reason] += 1
            else:
                candidates.append(candidate)
    for position, candidate in enumerate(candidates):
        candidate.system[COPY] = position + 1
    return Run(ending, candidates, thrown_out)


def _dynamics(
    atoms: Atoms, start: Data, student: Teacher, device: torch.device, settings: Settings, rng: np.random.Generator
) -> tuple[Ending, Frames]:
    frames, moving = Frames(settings.every), atoms.copy()
    moving.calc = ModelCalculator(student, device, start)
    survival = survive(
        moving,
        temperature=settings.temperature,
        ps=settings.ps,
        rng=rng,
        limits=settings.limits,
        every=1,
        on_frame=frames.take,
    )
    if not survival.survived:
        frames.fail()
    return Ending(survival.ps, survival.reason, survival.detail), frames


def _relaxation(
    atoms: Atoms, start: Data, student: Teacher, device: torch.device, settings: Settings, rng: np.random.Generator
) -> Frames:
    frames, moving = Frames(settings.every), atoms.copy()
    moving.calc = ModelCalculator(student, device, start)
    try:
        for step in relax(moving, settings.relax_steps, settings.of_frames, rng):
            frames.take(moving, int(step["step"]))
    except ThrownOut as ended:
        if ended.reason == OVER:
            frames.keep_last()
        else:
            frames.fail()
    return frames
