"""Frames of a model's own relaxations and molecular dynamics, by ASE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Callable

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import LBFGS
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.evaluation.stability.dynamics import survive
from fairchem_crack.evaluation.stability.limits import NO_LIMITS, TIME_STEP
from fairchem_crack.generate.limits import check_forces
from fairchem_crack.generate.moves import free_mask, rattle
from fairchem_crack.generate.records import at
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.teacher.frozen import Teacher

FMAX = 0.02  # eV/A, where `relax` ends
MAX_STEP = 0.1  # A, of an atom in a step of `relax`
OVER = "the relaxation was over before"


class ModelCalculator(Calculator):
    """Energy and forces of a model, frozen as a teacher is, for the system of a record whose atoms move."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012, ASE declares it so

    def __init__(self, model: Teacher, device: torch.device, system: Data) -> None:
        super().__init__()
        self._model, self._device, self._system = model, device, system

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """See ASE's `Calculator`."""
        super().calculate(atoms, properties, system_changes)
        batch = data_list_collater([at(self._system, atoms)], otf_graph=True).to(self._device)
        outputs = self._model(batch, (keys.ENERGY, keys.FORCES))
        forces = outputs[keys.FORCES].cpu().numpy().astype(float)
        self.results = {"energy": float(outputs[keys.ENERGY]), "forces": forces}


Trajectory = Callable[[Atoms, int, Settings, np.random.Generator], Iterator[dict[str, float]]]


def relax(atoms: Atoms, frames: int, settings: Settings, rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """Relax from a rattled start; after each `every` steps, and at the end, `atoms` are a frame.

    Raises ThrownOut for a step whose forces are out of bounds.
    """
    drawn = rattle(atoms, settings, rng)
    optimizer = LBFGS(atoms, logfile=None, maxstep=MAX_STEP)  # type: ignore[arg-type]

    def checked(is_over: bool) -> bool:
        check_forces(atoms.get_forces(apply_constraint=False), free_mask(atoms), settings)
        return is_over

    for _ in range(frames):
        *_, is_over = map(checked, optimizer.irun(fmax=FMAX, steps=settings.every))
        yield {**drawn, "step": optimizer.nsteps}
        if is_over:
            raise ThrownOut(OVER)


def md(atoms: Atoms, frames: int, settings: Settings, rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """Langevin dynamics, from velocities of the temperature; after each `every` steps `atoms` are a frame.

    Raises ThrownOut, after the frames before, for forces out of bounds.
    """
    if not free_mask(atoms).any():
        raise ThrownOut("all atoms are fixed")
    taken: list[tuple[int, np.ndarray]] = []
    survival = survive(
        atoms,
        temperature=settings.temperature,
        ps=frames * settings.every * TIME_STEP / 1e3,
        rng=rng,
        limits=replace(NO_LIMITS, max_force=settings.max_force),
        every=settings.every,
        on_frame=lambda moving, step: taken.append((step, moving.positions.copy())),
    )
    for step, positions in taken:
        atoms.positions = positions
        yield {"step": step}
    if survival.reason is not None:
        raise ThrownOut(survival.reason)


BY_NAME: dict[str, Trajectory] = {"relax": relax, "md": md}
