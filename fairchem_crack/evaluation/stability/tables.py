"""What `fairchem-crack stability` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.speed.tables import models_table
from fairchem_crack.evaluation.stability.dynamics import Survival
from fairchem_crack.evaluation.stability.measure import NO_START
from fairchem_crack.evaluation.tables import NO_NUMBER, cell, span, text_table


def report(content: dict[str, Any]) -> str:
    """The tables: medians, in brackets min and max over the starts; and a line for each run that ended early."""
    options, models, starts = content["options"], content["checkpoints"], content["starts"]
    parts = [
        f"{content['machine']}. {len(starts['atoms'])} starts: {starts['source']}, {span(starts['atoms'])} atoms, of which "
        f"{span(starts['free_atoms'])} are free.\nMedian [min, max] over the starts.",
        models_table(models),
        _langevin(models, options, content["teacher"]),
    ]
    if options["drift_ps"]:
        parts.append(_drift(models, options))
    if ended := list(_ended(models)):
        parts.append("\n".join(ended))
    return "\n\n".join(parts)


def over_starts(values: Sequence[float]) -> str:
    """Median, min and max of the numbers among them."""
    numbers = [value for value in values if not math.isnan(value)]
    return str(cell(Interval(median(numbers), min(numbers), max(numbers)))) if numbers else NO_NUMBER


def _langevin(models: dict[str, Any], options: dict[str, Any], teacher: str | None) -> str:
    headings = ["model", "K", "ps", "to the end", "height [A]", *(["RDF distance"] if teacher else [])]
    rows = []
    for name, model in models.items():
        for temperature, runs in model["langevin"].items():
            whole = sum(reason is None for reason in runs["reason"])
            row = [name, temperature, over_starts(runs["ps"]), f"{whole} of {len(runs['ps'])}", over_starts(runs["height"])]
            rows.append([*row, *([over_starts(runs["rdf_distance"])] if teacher else [])])
    limits = options["limits"]
    lines = [
        f"Langevin dynamics, {options['ps']:g} ps in steps of {options['time_step_fs']:g} fs, until a run has a temperature "
        f"above {limits['max_temperature']:g} K (more where few atoms get there by chance), a force above "
        f"{limits['max_force']:g} eV/A, or two atoms closer than {limits['min_distance']:g} of the sum of their radii.",
        text_table(headings, rows),
        "Height: of the adsorbate's atoms over the top layer, in the mean.",
    ]
    if teacher:
        lines.append(
            f"RDF distance: 1 - overlap of the radial distribution function with that of {teacher}; its own is between the "
            "two halves of its run, and what is not above it is noise."
        )
    return "\n".join(lines)


def _ended(models: dict[str, Any]) -> Iterator[str]:
    for name, model in models.items():
        named = {f"at {temperature} K": runs for temperature, runs in model["langevin"].items()}
        for place, runs in {**named, "at constant energy": model["constant_energy"]}.items():
            for start, run in enumerate(zip(runs["ps"], runs["reason"], runs["detail"])):
                survival = Survival(*run)
                if not survival.survived and survival.reason != NO_START:  # whose reason is that of the run before
                    yield f"{name} {place}, start {start}, {survival}."


def _drift(models: dict[str, Any], options: dict[str, Any]) -> str:
    rows = []
    for name, model in models.items():
        drift, fluctuation = (model["constant_energy"][quantity] for quantity in ("drift", "fluctuation"))
        whole = sum(not math.isnan(value) for value in drift)
        absolute = [abs(value) for value in drift]
        rows.append([name, over_starts(drift), over_starts(absolute), over_starts(fluctuation), f"{whole} of {len(drift)}"])
    title = (
        f"Constant energy, {options['drift_ps']:g} ps from where the run at {options['temperatures'][0]:g} K ended: slope "
        "of the total energy, and root mean square about it."
    )
    headings = ["model", "drift [meV/atom/ps]", "absolute", "fluctuation [meV/atom]", "to the end"]
    return f"{title}\n{text_table(headings, rows)}"
