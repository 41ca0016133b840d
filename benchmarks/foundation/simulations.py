"""Relaxations and molecular dynamics by students and teacher from the same starts, side by side.

    python -m benchmarks.foundation simulate runs/foundation --only seed=0                            # the students, here
    python -m benchmarks.foundation.simulations runs/foundation sevenn.calculator:SevenNetCalculator  # the teacher, there

The first command writes the starts, too. The teacher, in its own environment, also evaluates where the students' relaxations
ended: run it last. One thread; seconds are those of CPU. Rows and arrays that are there are not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.geometry import find_mic
from ase.optimize import LBFGS

from benchmarks.accuracy.plan import TEACHER
from benchmarks.accuracy.table import Table
from benchmarks.accuracy.training import Workspace
from fairchem_crack.evaluation.stability.measure import Sample, Settings, langevin
from fairchem_crack.io.atoms import free_mask
from fairchem_crack.io.calculators import calculator_of, energy_and_forces

RELAXATIONS, MINIMA, DYNAMICS = "relaxations", "minima", "dynamics"  # tables; minima: the teacher's view of the students'
STARTS = "candidates/starts.db"
FMAX, STEPS = 0.05, 100  # eV/A; a relaxation ends after so many steps at the latest
TEMPERATURE = 300.0  # K
SETTINGS = Settings(ps=0.3)
MODEL = ("student", "method", "seed")  # whose a row is
TEACHERS = dict(zip(MODEL, ("", TEACHER, "")))


def read_starts(workspace: Workspace) -> list[Atoms]:
    """The starts; in `info` the group of each: the sites of one surface, or a split.

    Raises:
        FileNotFoundError: they are not written yet.
    """
    file = workspace.directory / STARTS
    if not file.is_file():
        raise FileNotFoundError(f"{file}: does not exist. `python -m benchmarks.foundation simulate` writes it.")
    starts = []
    for row in connect(file).select():
        starts.append(row.toatoms())
        starts[-1].info["group"] = row.data["group"]
    return starts


def simulate(workspace: Workspace, starts: Sequence[Atoms], calculator: Any, model: dict[str, Any]) -> None:
    """Append the rows of a model: a relaxation of every start, and dynamics from where the first of each group ended.

    Args:
        model: the columns of `MODEL`.
    """
    relaxations, dynamics = workspace.table(RELAXATIONS), workspace.table(DYNAMICS)
    groups = [start.info["group"] for start in starts]
    rows = [{**model, "start": number, "group": group} for number, group in enumerate(groups)]
    for start, row in zip(starts, rows):
        if name(row) not in names(relaxations):
            outcome, ends = relax(start, calculator)
            relaxations.append([{**row, **outcome}], {name(row): ends})
    for start, row in zip(starts, rows):
        if groups.index(row["group"]) == row["start"] and name(row) not in names(dynamics):
            relaxed = start.copy()
            relaxed.positions = np.load(relaxations.errors)[name(row)]
            outcome, distribution = move(relaxed, row["start"], calculator)
            dynamics.append([{**row, **outcome}], {name(row): distribution})


def name(row: dict[str, Any]) -> str:
    """Of the array of a model and a start."""
    return "-".join(str(row[column]) for column in (*MODEL, "start"))


def names(table: Table) -> set[str]:
    """Of all rows."""
    return {name(row) for row in table.rows()}


def relax(start: Atoms, calculator: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Energy (eV) at the end, steps, convergence and time of a relaxation; (N, 3) where it ended, A."""
    atoms = start.copy()
    atoms.calc = calculator
    began, optimizer = time.process_time(), LBFGS(atoms, logfile=None)
    converged = bool(optimizer.run(fmax=FMAX, steps=STEPS))
    row = {"energy": float(atoms.get_potential_energy()), "steps": optimizer.nsteps, "converged": int(converged)}
    return {**row, "seconds": time.process_time() - began}, atoms.positions


def move(start: Atoms, number: int, calculator: Any) -> tuple[dict[str, Any], np.ndarray]:
    """How long Langevin dynamics last and their mean temperature; the (K,) `radial_distribution` that they sample.

    `halves` is the distance between the distributions of the two halves of the run.
    """
    sample, temperatures = Sample(start, SETTINGS), []

    def take(frame: Atoms, step: int) -> None:
        sample.add(frame, step)
        temperatures.append(frame.get_temperature())

    began = time.process_time()
    survival = langevin(calculator, start, number, SETTINGS, temperature=TEMPERATURE, on_frame=take)
    sampled = temperatures[len(temperatures) - len(sample.counts) :]  # as `Sample`, without the first part
    row = {"ps": survival.ps, "reason": survival.reason or "", "temperature": float(np.mean(sampled)) if sampled else ""}
    row |= {"halves": sample.distance_to(sample), "seconds": time.process_time() - began}
    return row, sample.distribution()


def judge(workspace: Workspace, starts: Sequence[Atoms], calculator: Any) -> None:
    """Append the teacher's view of where each student's relaxations ended.

    energy: eV, the teacher's; force: eV/A, its largest on a free atom; displacement and adsorbate: A, mean distance of the
    free atoms, and of the adsorbate's, from where the teacher's own relaxation ended.
    """
    relaxations, minima = workspace.table(RELAXATIONS), workspace.table(MINIMA)
    ends, judged = np.load(relaxations.errors), names(minima)
    for row in relaxations.rows():
        own = name({**row, **TEACHERS})
        if not row["student"] or name(row) in judged or own not in ends:
            continue
        start, positions = starts[row["start"]], ends[name(row)].astype(float)
        atoms, free = start.copy(), free_mask(start)
        atoms.positions = positions
        energy, forces = energy_and_forces(calculator, atoms)
        apart = positions - ends[own]
        distances = find_mic(apart, start.cell, start.pbc)[1]  # (N,)
        minima.append(
            [
                {
                    **{column: row[column] for column in (*MODEL, "start", "group")},
                    "energy": float(energy),
                    "force": float(np.linalg.norm(forces[free], axis=1).max()),
                    "displacement": float(distances[free].mean()),
                    "adsorbate": float(distances[start.get_tags() == 2].mean()),
                }
            ]
        )


def main(arguments: list[str] | None = None) -> None:
    """Append the rows of the teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("calculator", help="an ASE calculator, as package.module:function")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    workspace, calculator = Workspace(options.directory.resolve()), calculator_of(options.calculator)
    starts = read_starts(workspace)
    simulate(workspace, starts, calculator, TEACHERS)
    judge(workspace, starts, calculator)


if __name__ == "__main__":
    main()
