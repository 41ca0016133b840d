"""Where relaxations and dynamics start, and the students that run from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect

from benchmarks.accuracy.plan import Plan, Run
from benchmarks.accuracy.training import Workspace
from benchmarks.foundation.dft import compared
from benchmarks.foundation.simulations import STARTS, read_starts, simulate
from benchmarks.foundation.systems import Surface, draw_split, draw_system
from fairchem_crack.io.files import whole

SITES = 6  # of a surface: the adsorbate at random places, turned at random; the surface is not strained
SURFACES = (  # the first is trained on, the composition of the second is held out
    (Surface("A1", "111", "Pt", "Pt"), "O"),
    (Surface("L1_2", "111", "Rh", "Mo"), "CO"),
)
SPLITS = ("val_id", "val_ood_cat")
FIRST = 2  # systems of each split


def draw_starts() -> Iterator[Atoms]:
    """The starts, in `info` their group."""
    for number, (surface, adsorbate) in enumerate(SURFACES):
        rng = np.random.default_rng([0, number])
        for _ in range(SITES):
            start = draw_system(rng, [surface], (adsorbate,), ("displace", "rattle"))
            start.info["group"] = f"{surface.composition} {surface.facet}, {adsorbate}"
            yield start
    for split in SPLITS:
        for start in draw_split(split, FIRST):
            start.info["group"] = split
            yield start


def write_starts(file: Path) -> None:
    """Write them to an ASE database, unless it is there."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial, connect(partial, type="db") as database:
        for start in draw_starts():
            database.write(start, data=start.info)


def simulate_students(plan: Plan, workspace: Workspace, only: dict[str, list]) -> None:
    """Relaxations and dynamics of the students that are compared with DFT, too."""
    write_starts(workspace.directory / STARTS)
    starts = read_starts(workspace)
    for run, checkpoint in compared(plan, workspace, only):
        model = {"student": run.student, "method": run.method, "seed": run.seed}
        simulate(workspace, starts, calculator_of_student(run, checkpoint), model)


def calculator_of_student(run: Run, checkpoint: Path) -> Any:
    """The fastest that there is: `StudentCalculator` runs PaiNN only."""
    if run.student == "painn":
        from fairchem_crack.calculator import StudentCalculator

        return StudentCalculator(checkpoint)
    from fairchem.core import OCPCalculator

    return OCPCalculator(checkpoint_path=str(checkpoint), cpu=True)
