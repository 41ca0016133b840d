"""The command: options, table, files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Optional

import numpy as np
from ase.calculators.calculator import Calculator

from fairchem_crack.evaluation.relaxations.metrics import METRICS, Relaxed, Row, System, measure
from fairchem_crack.evaluation.relaxations.options import parser
from fairchem_crack.evaluation.relaxations.reading import (
    check_ids,
    listed,
    read_arrays,
    read_energies,
    read_forces,
    read_systems,
    reference_forces,
    write_structures,
)
from fairchem_crack.evaluation.tables import NO_NUMBER, cell, text_table
from fairchem_crack.io.arguments import named_values
from fairchem_crack.io.calculators import calculator_of
from fairchem_crack.io.files import csv_text, write_json, write_text


def evaluate_relaxations(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack evaluate-relaxations`."""
    options = parser().parse_args(arguments)
    logging.disable(logging.WARNING)
    try:
        files = {
            option: named_values(getattr(options, option), f"--{option}")
            for option in ("positions", "trajectories", "forces")
        }
        for option in ("trajectories", "forces"):
            for name in files[option].keys() - files["positions"].keys():
                raise ValueError(
                    f"--{option} {name}=...: no --positions {name}=...; given are {', '.join(files['positions'])}."
                )
        if options.calculator and files["forces"]:
            raise ValueError("--calculator and --forces: give one of the two; both are the reference forces.")
        calculator = None if options.calculator is None else calculator_of(options.calculator)
        systems = read_systems(options.data, named_values(options.key_mapping, "--key-mapping"))
        rows: list[Row] = []
        notes: dict[str, list[str]] = {}  # the models that each is about
        for name, file in files["positions"].items():
            relaxed, notes_of_model = _relaxed(name, Path(file), files, systems, calculator)
            if options.structures is not None:
                write_structures(options.structures / f"{name}.extxyz", relaxed.positions, systems)
            row, left_out = measure(name, relaxed, systems, within=options.within)
            rows.append(row)
            for note in notes_of_model + left_out:
                notes.setdefault(note, []).append(name)
        explained = [f"{', '.join(about)}: {note}." for note, about in notes.items()]
        if not any(row.metrics for row in rows) and options.structures is None:
            raise ValueError("nothing to measure. " + " ".join(explained))
        print(table(rows, explained))
        if options.output is not None:
            _write(options.output, rows, explained)
    finally:
        logging.disable(logging.NOTSET)


def _relaxed(
    name: str, file: Path, files: dict[str, dict[str, str]], systems: dict[str, System], calculator: Optional[Calculator]
) -> tuple[Relaxed, list[str]]:
    """All that is known of a model, and what a reader of its metrics should know."""
    positions, notes = read_arrays(file, "pos"), []
    check_ids(file, positions, systems)
    if missing := [sid for sid in systems if sid not in positions]:
        notes.append(
            f"no relaxed positions of {listed(missing, len(systems))}; the metrics are of the others. A run that was "
            "interrupted and resumed leaves out those of before: remove the trajectories and run it again"
        )
    energies = forces = None
    if name in files["trajectories"]:
        energies = read_energies(Path(files["trajectories"][name]), positions)
        if missing := [sid for sid in positions if sid not in energies]:
            notes.append(
                f"no energy of {listed(missing, len(positions))}: converged from the start, the trajectory is empty"
            )
        if failed := [sid for sid, values in energies.items() if not math.isfinite(values)]:
            notes.append(f"energy not finite of {listed(failed, len(positions))}, and so no energy MAE")
    if calculator is not None:
        forces = reference_forces(calculator, positions, systems)
    elif name in files["forces"]:
        forces = read_forces(Path(files["forces"][name]), positions, systems)
        if missing := [sid for sid in positions if sid not in forces]:
            notes.append(f"no reference forces of {listed(missing, len(positions))}; FbT and AFbT are of the others")
    if failed := [sid for sid, values in (forces or {}).items() if not np.isfinite(values).all()]:
        notes.append(f"reference forces not finite of {listed(failed, len(positions))}: not below any threshold")
    return Relaxed(positions, energies, forces), notes


def table(rows: Sequence[Row], notes: Iterable[str]) -> str:
    """A line for each model with the metrics that any has, each with its interval, and the notes."""
    shown = [metric for metric in METRICS if any(metric in row.metrics for row in rows)]
    lines = [
        [
            row.model,
            row.systems,
            *(cell(row.metrics[metric], METRICS[metric][1]) if metric in row.metrics else NO_NUMBER for metric in shown),
        ]
        for row in rows
    ]
    explained = ["In brackets 95 % intervals over the systems."] if shown else []
    headings = ["model", "systems", *(METRICS[metric][0] for metric in shown)]
    return "\n".join([text_table(headings, lines), *explained, *(f"- {note}" for note in notes)])


def as_csv(rows: Sequence[Row]) -> str:
    """One line of each model: every metric, the ends of its interval, and the number of its systems."""
    columns = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high", "_systems")]
    lines = []
    for row in rows:
        line: dict[str, object] = {"model": row.model, "systems": row.systems}
        for metric, interval in row.metrics.items():
            line.update({metric: interval.estimate, f"{metric}_low": interval.low, f"{metric}_high": interval.high})
            line[f"{metric}_systems"] = row.counted[metric]
        lines.append(line)
    return csv_text(["model", "systems", *columns], lines)


def _write(output: Path, rows: Sequence[Row], notes: Sequence[str]) -> None:
    write_json(output.with_name(f"{output.name}.json"), {"rows": [asdict(row) for row in rows], "notes": notes})
    write_text(output.with_name(f"{output.name}.csv"), as_csv(rows))
    print(f"\nWritten: {output}.json, {output}.csv")
