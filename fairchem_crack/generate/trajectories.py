"""Frames of a model's own relaxations and molecular dynamics, by ASE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.generate.limits import check_forces
from fairchem_crack.generate.moves import free_mask, rattle
from fairchem_crack.generate.records import at
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.teacher.frozen import Teacher

TIMESTEP = 1.0  # fs, of `md`; 2 is much for hydrogen
FRICTION = 0.01  # 1/fs, of `md`
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


class BoundedCalculator(ModelCalculator):
    """The same; raises ThrownOut for forces out of bounds, which ends the trajectory."""

    def __init__(self, model: Teacher, device: torch.device, system: Data, settings: Settings) -> None:
        super().__init__(model, device, system)
        self._settings = settings

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """See ASE's `Calculator`."""
        super().calculate(atoms, properties, system_changes)
        check_forces(self.results["forces"], free_mask(atoms), self._settings)


Trajectory = Callable[[Atoms, int, Settings, np.random.Generator], Iterator[dict[str, float]]]


def relax(atoms: Atoms, frames: int, settings: Settings, rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """Relax from a rattled start; after each `every` steps, and at the end, `atoms` are a frame."""
    drawn = rattle(atoms, settings, rng)
    optimizer = LBFGS(atoms, logfile=None, maxstep=MAX_STEP)  # type: ignore[arg-type]
    for _ in range(frames):
        is_over = optimizer.run(fmax=FMAX, steps=settings.every)
        yield {**drawn, "step": optimizer.nsteps}
        if is_over:
            raise ThrownOut(OVER)


def md(atoms: Atoms, frames: int, settings: Settings, rng: np.random.Generator) -> Iterator[dict[str, float]]:
    """Langevin dynamics, from velocities of the temperature; after each `every` steps `atoms` are a frame."""
    if not free_mask(atoms).any():
        raise ThrownOut("all atoms are fixed")
    MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        timestep=TIMESTEP * units.fs,
        temperature_K=settings.temperature,
        friction=FRICTION / units.fs,
        fixcm=False,  # fixed atoms hold the system
        rng=rng,
        logfile=None,
    )
    for _ in range(frames):
        dynamics.run(settings.every)
        yield {"step": dynamics.nsteps}


BY_NAME: dict[str, Trajectory] = {"relax": relax, "md": md}
