"""Teacher and students against DFT: along relaxations of real catalysts, none of them trained on.

    python -m benchmarks.foundation dft runs/foundation relaxations.extxyz

The file has frames with DFT's energies and forces and the fixed atoms, those of a relaxation together, by `sid` in the info.
The first time, the command writes the chosen frames for the teacher to label; then it evaluates. Only figures are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import read

from benchmarks.accuracy.plan import UNDISTILLED, Plan, Run
from benchmarks.accuracy.training import Workspace
from benchmarks.foundation import BEST, NAME
from benchmarks.foundation.systems import ADSORBATES, VOLUMES
from fairchem_crack import keys
from fairchem_crack.io.calculators import energy_and_forces
from fairchem_crack.io.files import whole
from fairchem_crack.teacher.cache import HEADER, TeacherCache
from fairchem_crack.teacher.label.systems import Systems, fixed_atoms

FRAMES = 20  # of a relaxation, evenly spaced, the first and the last among them
KNOWN = {*VOLUMES, *Atoms("".join(ADSORBATES)).get_chemical_symbols()}
TABLE = "dft"


def chosen_frames(file: Path) -> dict[str, list[Atoms]]:
    """By `sid`, frames of the relaxations whose elements the students have seen.

    Raises:
        ValueError: there is none.
    """
    relaxations = {sid: list(frames) for sid, frames in groupby(read(file, ":"), key=lambda atoms: str(atoms.info["sid"]))}
    chosen = {
        sid: [frames[index] for index in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
        for sid, frames in relaxations.items()
        if KNOWN.issuperset(frames[0].get_chemical_symbols())
    }
    if not chosen:
        raise ValueError(f"{file}: no relaxation has only {', '.join(sorted(KNOWN))}.")
    return chosen


def evaluate_dft(plan: Plan, workspace: Workspace, file: Path) -> None:
    """Append the rows of the teacher, of others that labelled the frames, and of the students whose checkpoints are there.

    Raises:
        ValueError: no relaxation can be used, or the teacher has not labelled the frames yet.
    """
    relaxations = chosen_frames(file)
    (teacher,), frames = plan.teachers, [frame for frames in relaxations.values() for frame in frames]
    candidates, directory = workspace.directory / "candidates/dft.db", workspace.directory / "caches" / f"{teacher}-dft"
    if not (directory / HEADER).exists():
        candidates.parent.mkdir(parents=True, exist_ok=True)
        with whole(candidates) as partial, connect(partial, type="db") as database:
            for frame in frames:
                database.write(frame)
        raise ValueError(
            f"{candidates} is written. Label it in the teacher's environment, and run this command again: python -m "
            f"fairchem_crack.teacher.label --teacher {plan.teachers[teacher]} --data {candidates} --output {directory}"
        )
    table = workspace.table(TABLE)
    done = {(row["student"], row["method"], row["seed"]) for row in table.rows()}
    for labelled in (directory, *sorted(set(directory.parent.glob("*-dft")) - {directory})):  # of other teachers, too
        name = labelled.name.removesuffix("-dft")
        if ("", name, "") not in done:
            table.append(rows_of(relaxations, cached_predictions(candidates, labelled), student="", method=name, seed=""))
    from fairchem.core import OCPCalculator

    for run, checkpoint in compared(plan, workspace, {}):
        if (run.student, run.method, run.seed) in done:
            continue
        calculator = OCPCalculator(checkpoint_path=str(checkpoint), cpu=True)
        predictions = [(float(energy), forces) for energy, forces in (energy_and_forces(calculator, one) for one in frames)]
        table.append(rows_of(relaxations, predictions, student=run.student, method=run.method, seed=run.seed))


def cached_predictions(candidates: Path, directory: Path) -> list[tuple[float, np.ndarray]]:
    """A teacher's energies (eV) and forces (N, 3) of the frames, from its cache."""
    cache = TeacherCache(directory)
    records = [cache.get(system.digest) for system in Systems([candidates])]
    if None in records:
        raise ValueError(
            f"{directory}: it was made of other frames than those of {candidates}; remove and label them again."
        )
    return [(float(record.values[keys.ENERGY]), record.values[keys.FORCES]) for record in records if record]


def compared(plan: Plan, workspace: Workspace, only: dict[str, list]) -> Iterator[tuple[Run, Path]]:
    """The runs of `is_compared` that are trained, and their checkpoints, where these are there.

    Args:
        only: see `Plan.runs`.
    """
    trained = set(map(Run.of, workspace.table(NAME).rows()))  # a checkpoint may be of a training that was cut off
    for run in plan.runs(NAME, only):
        checkpoint = workspace.checkpoint(run, "best_checkpoint.pt")
        if run in trained and checkpoint.exists() and is_compared(run, plan):
            yield run, checkpoint


def is_compared(run: Run, plan: Plan) -> bool:
    """Whether a run is a student of most systems, without terms or by the best method."""
    largest = max(other.train_systems or 0 for other in plan.runs(NAME, {}))
    return run.train_systems == largest and run.method in (UNDISTILLED, BEST)


def rows_of(
    relaxations: dict[str, list[Atoms]], predictions: list[tuple[float, np.ndarray]], **varied: Any
) -> list[dict[str, Any]]:
    """A row for each relaxation.

    energy_mae: of E(frame) - E(last frame), in eV; forces_mae: of the components on free atoms, in eV/A; energy_size and
    forces_size: the mean absolute values of DFT's own, which is the error of no prediction at all.
    """
    rows, start = [], 0
    for sid, frames in relaxations.items():
        own = predictions[start : start + len(frames)]
        start += len(frames)
        energies = np.array([(energy, frame.get_potential_energy()) for (energy, _), frame in zip(own, frames)])  # (F, 2)
        relative = (energies - energies[-1])[:-1]
        free = ~fixed_atoms(frames[0])
        forces = np.array(
            [(of_model[free], of_dft(frame)[free]) for (_, of_model), frame in zip(own, frames)]
        )  # (F, 2, N, 3)
        row = {**varied, "relaxation": sid, "system": frames[0].get_chemical_formula("metal"), "frames": len(frames)}
        row |= {"energy_mae": mean_size(relative[:, 0] - relative[:, 1]), "energy_size": mean_size(relative[:, 1])}
        row |= {"forces_mae": mean_size(forces[:, 0] - forces[:, 1]), "forces_size": mean_size(forces[:, 1])}
        rows.append(row)
    return rows


def of_dft(frame: Atoms) -> np.ndarray:
    """(N, 3) DFT's forces, also on fixed atoms, eV/A."""
    return frame.get_forces(apply_constraint=False)


def mean_size(values: np.ndarray) -> float:
    """The mean of the absolute values."""
    return float(np.abs(values).mean())
