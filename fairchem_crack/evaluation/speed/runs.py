"""One checkpoint at work: batched forwards, single points, molecular dynamics, relaxations; and how long each takes."""

from __future__ import annotations

import inspect
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from fairchem.core import OCPCalculator
from fairchem.core.common.relaxation.ml_relaxation import ml_relax
from fairchem.core.common.relaxation.optimizable import OptimizableBatch
from fairchem.core.datasets import data_list_collater
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack.adapters import architecture
from fairchem_crack.evaluation import time_and_memory
from fairchem_crack.evaluation.time_and_memory import elapsed, now
from fairchem_crack.io.boundaries import OwnBoundaries
from fairchem_crack.io.checkpoints import model_config, read_checkpoint, reading_safely
from fairchem_crack.io.progress import progress_of

# fairchem's batched relaxation does not run with ase >= 3.26, whose `Optimizable` requires more methods
RELAXES_IN_BATCHES = not inspect.isabstract(OptimizableBatch)
LBFGS = {"maxstep": 0.04, "memory": 50, "damping": 1.0, "alpha": 70.0}  # of fairchem's configs/oc20 for IS2RE
TEMPERATURE = 300.0  # K, of the velocities that molecular dynamics begin with
SINGLE_POINTS = 5  # of which a latency is the median
NUDGE = 1e-4  # A, by which atoms move between single points: ASE's calculators keep the last result


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log, in which fairchem describes each model at length, and each step of a relaxation."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Model:
    """A checkpoint in fairchem's own OCPCalculator, as its users run it.

    Attributes:
        architecture: fairchem's name of the model, or of a hydra's backbone.
        parameters: how many numbers it has.
        progress: of its training.

    Args:
        checkpoint: any fairchem checkpoint, ours or not.
        cpu: run on the CPU even where there is a GPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable fairchem checkpoint.
    """

    def __init__(self, checkpoint: Path, *, cpu: bool) -> None:
        if not checkpoint.is_file():
            raise FileNotFoundError(f"{checkpoint}: no such file (looked in {Path.cwd()}).")
        content = read_checkpoint(checkpoint)
        model_config(content, checkpoint)  # says what is wrong with a file
        self.checkpoint, self.progress = checkpoint, progress_of(content)
        with quiet(), reading_safely(content["config"]):
            self.calculator = OCPCalculator(checkpoint_path=str(checkpoint), cpu=cpu, seed=0)
        self.trainer = self.calculator.trainer
        OwnBoundaries(self.trainer._unwrapped_model)
        self.device = torch.device(self.trainer.device)
        self.architecture = architecture(self.trainer._unwrapped_model)
        self.parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())

    def batch(self, systems: list[Atoms]) -> Batch:
        """The systems as fairchem's batch, without edges; `sid` counts them from 0."""
        convert = self.calculator.a2g.convert
        return data_list_collater([convert(system, sid=sid) for sid, system in enumerate(systems)], otf_graph=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`energy` (B, 1) in eV and `forces` (N, 3) in eV/A, edges found on the fly."""
        return self.trainer.predict(batch, per_image=False, disable_tqdm=True)


def forward_seconds(model: Model, batch: Batch) -> float:
    """Seconds of a forward of a batch that is on the host, without its conversion from `Atoms`."""
    return elapsed(model.forward, model.device, batch.clone())  # a forward moves its batch to the device


def warm_up(model: Model, batch: Batch) -> int | None:
    """See `time_and_memory.warm_up`."""
    return time_and_memory.warm_up(lambda: model.forward(batch.clone()), model.device)


def single_point_seconds(model: Model, system: Atoms, seed: int) -> float:
    """Seconds of `get_forces()` of one system through OCPCalculator, with all that ASE and fairchem do around the model."""
    atoms = system.copy()
    atoms.calc = model.calculator
    random = np.random.default_rng(seed)
    seconds = []
    for _ in range(SINGLE_POINTS):
        atoms.positions += random.normal(scale=NUDGE, size=(len(atoms), 3))
        seconds.append(elapsed(atoms.get_forces, model.device))
    return statistics.median(seconds)


@dataclass(frozen=True)
class Dynamics:
    """Some steps of molecular dynamics: seconds of a step, and the last one's temperature in K."""

    seconds_per_step: float
    temperature: float


def run_dynamics(model: Model, system: Atoms, *, steps: int, time_step: float, seed: int) -> Dynamics:
    """ASE's VelocityVerlet from 300 K, after one step that is not timed.

    Args:
        time_step: fs.
    """
    atoms = system.copy()
    atoms.calc = model.calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.RandomState(seed))
    dynamics = VelocityVerlet(atoms, timestep=time_step * units.fs)
    dynamics.run(1)
    return Dynamics(elapsed(dynamics.run, model.device, steps) / steps, atoms.get_temperature())


def ns_per_day(seconds_per_step: float, time_step: float) -> float:
    """Simulated ns in a day of 86 400 s; `time_step` in fs."""
    return 86_400 / seconds_per_step * time_step * 1e-6


@dataclass(frozen=True)
class Relaxations:
    """Relaxations of B systems.

    Attributes:
        seconds: of all together, `cpu_seconds` those of the process.
        steps: (B,) moves of each system until its largest force was below `fmax`, or as many as were allowed.
        converged: (B,) whether it was.
        energy: (B,) eV, of the last geometry.
        positions: of each system (N, 3), A, the last ones, which fairchem wraps into the cell.
    """

    seconds: float
    cpu_seconds: float
    steps: np.ndarray
    converged: np.ndarray
    energy: np.ndarray
    positions: list[np.ndarray]


def relax(model: Model, systems: list[Atoms], *, fmax: float, most_steps: int) -> Relaxations:
    """Relax systems in one batch with fairchem's LBFGS, or one by one with ASE's FIRE where that does not run.

    Args:
        fmax: eV/A, of the atoms that are not fixed.
    """
    run = _relax_batch if RELAXES_IN_BATCHES else _relax_one_by_one
    cpu, start = time.process_time(), now(model.device)
    with quiet():
        steps, converged, energy, positions = run(model, systems, fmax, most_steps)
    return Relaxations(now(model.device) - start, time.process_time() - cpu, steps, converged, energy, positions)


def _relax_batch(model: Model, systems: list[Atoms], fmax: float, most_steps: int) -> tuple:
    counter = _StepCounter(model, len(systems), fmax)
    batch = ml_relax(model.batch(systems), counter, steps=most_steps, fmax=fmax, relax_opt=dict(LBFGS))
    order = torch.argsort(batch.sid.cpu()).tolist()  # another order where memory required smaller batches
    positions = torch.split(batch.pos.cpu(), batch.natoms.tolist())
    return (
        np.minimum(counter.steps.numpy(), most_steps),  # the last forward moves nothing
        ~counter.active.numpy(),
        batch.energy.view(-1).cpu().double().numpy()[order],
        [positions[index].double().numpy() for index in order],
    )


class _StepCounter:
    """Takes the place of the trainer in fairchem's relaxation; counts the forwards of each system before it is converged."""

    def __init__(self, model: Model, systems: int, fmax: float) -> None:
        self._model, self._fmax = model, fmax
        self.device = model.trainer.device
        self.steps = torch.zeros(systems, dtype=torch.long)
        self.active = torch.ones(systems, dtype=torch.bool)  # as fairchem does: once converged, always converged

    def predict(self, batch: Batch, **options: Any) -> dict[str, Tensor]:
        outputs = self._model.trainer.predict(batch, **options)
        norms = outputs["forces"].norm(dim=1) * (batch.fixed == 0)  # (N,) eV/A
        largest = norms.new_zeros(len(batch.natoms)).scatter_reduce(0, batch.batch, norms, "amax")
        sid = batch.sid.cpu()
        self.active[sid] &= (largest >= self._fmax).cpu()
        self.steps[sid] += self.active[sid]
        return outputs


def _relax_one_by_one(model: Model, systems: list[Atoms], fmax: float, most_steps: int) -> tuple:
    steps, converged, energy, positions = [], [], [], []
    for system in systems:
        atoms = system.copy()
        atoms.calc = model.calculator
        optimizer = FIRE(atoms, logfile=None)
        converged.append(bool(optimizer.run(fmax=fmax, steps=most_steps)))
        steps.append(optimizer.nsteps)
        energy.append(atoms.get_potential_energy())
        positions.append(atoms.positions.copy())
    return np.array(steps), np.array(converged), np.array(energy), positions
