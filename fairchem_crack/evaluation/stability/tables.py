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
    models, starts = content["checkpoints"], content["starts"]
    first, *others = langevin_notes(content)
    parts = [
        f"{content['machine']}. {len(starts['atoms'])} starts: {starts['source']}, {span(starts['atoms'])} atoms, of which "
        f"{span(starts['free_atoms'])} are free.\nMedian [min, max] over the starts.",
        models_table(models),
        "\n".join([first, text_table(*langevin_table(content)), *others]),
    ]
    if content["options"]["drift_ps"]:
        parts.append(f"{drift_note(content)}\n{text_table(*drift_table(content))}")
    if ended := list(_ended(models)):
        parts.append("\n".join(ended))
    return "\n\n".join(parts)


def numbers_of(values: Sequence[float | None]) -> list[float]:
    """Those that are numbers: a run that ended early has none, NaN in memory and null in the JSON file."""
    return [value for value in values if value is not None and not math.isnan(value)]


def over_starts(values: Sequence[float | None]) -> str:
    """Median, min and max of the numbers among them."""
    numbers = numbers_of(values)
    return str(cell(Interval(median(numbers), min(numbers), max(numbers)))) if numbers else NO_NUMBER


def langevin_table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: how long each model's dynamics lasted at each temperature, and what they were like."""
    teacher = content["teacher"]
    headings = ["model", "K", "ps", "to the end", "height [A]", *(["RDF distance"] if teacher else [])]
    rows = []
    for name, model in content["checkpoints"].items():
        for temperature, runs in model["langevin"].items():
            whole = sum(reason is None for reason in runs["reason"])
            row = [name, temperature, over_starts(runs["ps"]), f"{whole} of {len(runs['ps'])}", over_starts(runs["height"])]
            rows.append([*row, *([over_starts(runs["rdf_distance"])] if teacher else [])])
    return headings, rows


def langevin_notes(content: dict[str, Any]) -> list[str]:
    """What the numbers of `langevin_table` are: a sentence before it, and those after it."""
    options, limits, teacher = content["options"], content["options"]["limits"], content["teacher"]
    notes = [
        f"Langevin dynamics, {options['ps']:g} ps in steps of {options['time_step_fs']:g} fs, until a run has a temperature "
        f"above {limits['max_temperature']:g} K (more where few atoms get there by chance), a force above "
        f"{limits['max_force']:g} eV/A, or two atoms closer than {limits['min_distance']:g} of the sum of their radii.",
        "Height: of the adsorbate's atoms over the top layer, in the mean.",
    ]
    if teacher:
        notes.append(
            f"RDF distance: 1 - overlap of the radial distribution function with that of {teacher}; its own is between the "
            "two halves of its run, and what is not above it is noise."
        )
    return notes


def _ended(models: dict[str, Any]) -> Iterator[str]:
    for name, model in models.items():
        named = {f"at {temperature} K": runs for temperature, runs in model["langevin"].items()}
        for place, runs in {**named, "at constant energy": model["constant_energy"]}.items():
            for start, run in enumerate(zip(runs["ps"], runs["reason"], runs["detail"])):
                survival = Survival(*run)
                if not survival.survived and survival.reason != NO_START:  # whose reason is that of the run before
                    yield f"{name} {place}, start {start}, {survival}."


def drift_table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the slope of each model's total energy, and the deviation from it."""
    rows = []
    for name, model in content["checkpoints"].items():
        drift, fluctuation = (model["constant_energy"][quantity] for quantity in ("drift", "fluctuation"))
        slopes = numbers_of(drift)
        row = [name, over_starts(slopes), over_starts([abs(slope) for slope in slopes]), over_starts(fluctuation)]
        rows.append([*row, f"{len(slopes)} of {len(drift)}"])
    return ["model", "drift [meV/atom/ps]", "absolute", "fluctuation [meV/atom]", "to the end"], rows


def drift_note(content: dict[str, Any]) -> str:
    """What the numbers of `drift_table` are."""
    options = content["options"]
    return (
        f"Constant energy, {options['drift_ps']:g} ps from where the run at {options['temperatures'][0]:g} K ended: slope "
        "of the total energy, and root mean square about it."
    )
