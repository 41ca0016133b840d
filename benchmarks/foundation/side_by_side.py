"""What relaxations and dynamics by students and teacher show: figures from their rows, and a section of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.accuracy.page import markdown, show
from benchmarks.accuracy.summary import DECIMALS
from benchmarks.accuracy.training import Workspace
from benchmarks.foundation.simulations import (
    DYNAMICS,
    FMAX,
    MINIMA,
    MODEL,
    RELAXATIONS,
    SETTINGS,
    STEPS,
    TEACHERS,
    TEMPERATURE,
    name,
)
from fairchem_crack.evaluation.stability.structure import distance

DISTINCT = 0.05  # eV: minima of the teacher that are closer are the same place, or rounding of a relaxation
TIED = 0.005  # eV: what a student gives the same energy; such a pair counts half
NEAR = 0.5  # A: an adsorbate closer than this to where the teacher puts it has gone to the same place


def figures(workspace: Workspace) -> dict[str, list[dict]]:
    """Of each model: its relaxations, with the teacher's view of where they ended; its sites; its dynamics.

    From the starts of which there are rows of the teacher, too.
    """
    relaxations, dynamics = (shared(workspace.table(table).rows()) for table in (RELAXATIONS, DYNAMICS))
    views = {name(row): row for row in workspace.table(MINIMA).rows()}
    teachers = {row["start"]: row for row in relaxations if not row["student"]}
    relaxations = [row for row in relaxations if not row["student"] or name(row) in views]
    models = list(dict.fromkeys(itemgetter(*MODEL)(row) for row in relaxations))
    of_model = {model: [row for row in relaxations if itemgetter(*MODEL)(row) == model] for model in models}
    return {
        "relaxations": [
            {**dict(zip(MODEL, model)), **outcome(rows, [views[name(row)] for row in rows if model[0]], teachers)}
            for model, rows in of_model.items()
        ],
        "sites": [
            {**dict(zip(MODEL, model)), "group": group, **preferences(own, views, teachers)}
            for model, rows in of_model.items()
            if model[0]
            for group in dict.fromkeys(row["group"] for row in rows)
            if len(own := [row for row in rows if row["group"] == group]) > 2
        ],
        "dynamics": sampled(workspace, dynamics),
    }


def shared(rows: list[dict]) -> list[dict]:
    """Those of starts from which the teacher ran, its own first."""
    of_teacher = {row["start"] for row in rows if not row["student"]}
    return sorted((row for row in rows if row["start"] in of_teacher), key=lambda row: row["student"] != "")


def outcome(rows: list[dict], views: list[dict], teachers: dict[int, dict]) -> dict[str, Any]:
    """Of the relaxations of a model; lists have an entry for each start, but those of the teacher's views of itself none.

    excess: eV, the teacher's energy where the model ended, less that of the teacher's own minimum from the same start.
    """
    excess = [view["energy"] - teachers[view["start"]]["energy"] for view in views]
    return {
        "steps": [row["steps"] for row in rows],
        "converged": sum(row["converged"] for row in rows),
        "seconds": rounded(median(row["seconds"] for row in rows)),
        "excess": [rounded(value) for value in excess],
        **{column: [rounded(view[column]) for view in views] for column in ("displacement", "adsorbate", "force")},
    }


def preferences(rows: list[dict], views: dict[str, dict], teachers: dict[int, dict]) -> dict[str, Any]:
    """Whether a student orders the relaxed starts of a surface as the teacher does, and what its choice costs.

    pairs: those whose energies the teacher has further apart than `DISTINCT`; ordered: of these, in the teacher's order, a
    half for a tie of the student's. regret: eV, the teacher's energy of the structure that is lowest for the student, less
    that of the teacher's lowest.
    """
    own, ordered, pairs = {row["start"]: row["energy"] for row in rows}, 0.0, 0
    for first, second in combinations(own, 2):
        truth, guess = teachers[first]["energy"] - teachers[second]["energy"], own[first] - own[second]
        if abs(truth) > DISTINCT:
            pairs += 1
            ordered += 0.5 if abs(guess) < TIED else float(truth * guess > 0)
    best = min(rows, key=itemgetter("energy"))
    lowest = min(teachers[start]["energy"] for start in own)
    spread = max(teachers[start]["energy"] for start in own) - lowest
    return {
        "starts": len(own),
        "pairs": pairs,
        "ordered": ordered,
        "regret": rounded(views[name(best)]["energy"] - lowest),
        "spread": rounded(spread),
    }


def sampled(workspace: Workspace, rows: list[dict]) -> list[dict]:
    """Of each model's dynamics, a list entry for each start; rdf: distance from the teacher's, or of its two halves."""
    table = workspace.table(DYNAMICS)
    arrays = dict(np.load(table.errors)) if rows else {}
    kinds: dict[tuple, list[dict]] = {}
    for row in rows:
        kinds.setdefault(itemgetter(*MODEL)(row), []).append(row)
    return [
        {
            **dict(zip(MODEL, model)),
            "ps": [row["ps"] for row in own],
            "reason": [row["reason"] for row in own],
            "temperature": [rounded(row["temperature"]) if row["temperature"] != "" else None for row in own],
            "rdf": [
                finite(distance(arrays[name(row)], arrays[name({**row, **TEACHERS})]) if model[0] else row["halves"])
                for row in own
            ],
            "seconds": rounded(sum(row["seconds"] for row in own)),
        }
        for model, own in kinds.items()
    ]


def finite(value: float) -> float | None:
    """A rounded number; None where a run ended before there was one."""
    return rounded(value) if math.isfinite(value) else None


def rounded(value: float) -> float:
    """As figures are kept."""
    return round(float(value), DECIMALS)


SHOWN: tuple[tuple[Callable[[list[float]], float], str, int], ...] = (  # of a relaxation's lists, as they are shown
    (median, "excess", 3),
    (fmean, "excess", 3),
    (median, "displacement", 2),
)


def section(content: dict[str, list[dict]]) -> list[str]:
    """The tables of relaxations, sites and dynamics: a line for each method, over its trainings."""
    relaxations, sites, dynamics = (pooled(content[name]) for name in ("relaxations", "sites", "dynamics"))
    starts, of_dynamics = len(relaxations[0][0]["steps"]), len(dynamics[0][0]["ps"])
    return [
        *("## Relaxations and dynamics side by side", ""),
        *(RELAXATION.format(starts=starts, fmax=FMAX, steps=STEPS), ""),
        *(*relaxations_table(relaxations), "", *verdict(content["relaxations"])),
        *(SITES.format(distinct=DISTINCT, tied=TIED), "", *sites_table(sites), ""),
        *(DYNAMIC.format(temperature=TEMPERATURE, ps=SETTINGS.ps, starts=of_dynamics), "", *dynamics_table(dynamics), ""),
    ]


def relaxations_table(methods: list[list[dict]]) -> list[str]:
    """How far relaxations got, and where the teacher sees them end."""
    cells = []
    for rows in methods:
        converged, steps = sum(row["converged"] for row in rows), [step for row in rows for step in row["steps"]]
        own = [*titles(rows), f"{converged} of {len(steps)}", f"{median(steps):.0f}"]
        own.append(over([row["seconds"] for row in rows], 2))
        if rows[0]["excess"]:
            near = [value < NEAR for row in rows for value in row["adsorbate"]]
            own += [over([mean(row[name]) for row in rows], digits) for mean, name, digits in SHOWN]
            own += [f"{sum(near)} of {len(near)}", over([median(row["force"]) for row in rows], 2)]
        cells.append(own)
    width = max(map(len, cells))
    heading = ["model", "trainings", "converged", "steps", "CPU s", "excess energy, median [eV]", "mean [eV]"]
    heading += ["displacement [Å]", "adsorbate in the same place", "teacher's force there [eV/Å]"]
    return markdown(heading, [[*own, *[""] * (width - len(own))] for own in cells])


def sites_table(methods: list[list[dict]]) -> list[str]:
    """Whether students order the relaxed starts of a surface as the teacher does."""
    cells = []
    for rows in methods:
        ordered, pairs = (sum(row[name] for row in rows) for name in ("ordered", "pairs"))
        span, regret = rows[0]["spread"], over([row["regret"] for row in rows], 3)
        own = [rows[0]["group"], str(rows[0]["starts"]), f"{span:.2f}", f"{ordered:g} of {pairs}", regret]
        cells.append([*titles(rows), *own])
    heading = ["model", "trainings", "surface, adsorbate", "starts", "teacher's energies span [eV]"]
    return markdown([*heading, "pairs ordered as by the teacher", "cost of the choice [eV]"], cells)


def dynamics_table(methods: list[list[dict]]) -> list[str]:
    """How long dynamics last, and what they sample."""
    cells = []
    for rows in methods:
        lasted, shortest = [not reason for row in rows for reason in row["reason"]], min(min(row["ps"]) for row in rows)
        own = [*titles(rows), f"{sum(lasted)} of {len(lasted)}", f"{shortest:.2f}"]
        own += [by_start([row[name] for row in rows], digits) for name, digits in (("temperature", 0), ("rdf", 2))]
        cells.append([*own, over([row["seconds"] for row in rows], 0)])
    heading = ["model", "trainings", f"lasted {SETTINGS.ps:g} ps", "shortest [ps]", "mean temperature [K]"]
    return markdown([*heading, "distance of the distribution", "CPU s"], cells)


def pooled(rows: list[dict]) -> list[list[dict]]:
    """The rows of the trainings of each method (and group of starts), which stand in one line."""
    kinds: dict[tuple, list[dict]] = {}
    for row in rows:
        kinds.setdefault((row["student"], row["method"], row.get("group")), []).append(row)
    return list(kinds.values())


def over(values: list[float], digits: int) -> str:
    """The mean over the trainings, in brackets the lowest and the highest."""
    ends = [min(values), max(values)] * (len(values) > 1)
    return show([fmean(values), *ends], digits)


def by_start(values: list[list[float | None]], digits: int) -> str:
    """The mean over the trainings, for each start, of those that got there."""
    reached = ([value for value in of_start if value is not None] for of_start in zip(*values))
    return ", ".join(f"{fmean(of_start):.{digits}f}" if of_start else "none" for of_start in reached)


def verdict(relaxations: list[dict]) -> list[str]:
    """Whether a student's relaxation can be trusted, where it cannot."""
    forces = [median(row["force"]) for row in relaxations if row["student"]]
    if not forces or min(forces) < 10 * FMAX:
        return []
    return [f"{VERDICT.format(fmax=FMAX, low=min(forces), high=max(forces))}", ""]


def titles(rows: list[dict]) -> list[str]:
    """The model, and of how many trainings."""
    first = rows[0]
    return [f"{first['student']} {first['method']}".strip(), str(len(rows)) if first["student"] else ""]


RELAXATION = """All models relax the same {starts} starts with LBFGS to {fmax} eV/Å, in at most {steps} steps: O on
Pt(111), and CO on Rh3Mo(111), whose composition is held out, each at random places and turned at random on a rattled slab
that is not strained; and the first systems of val_id and val_ood_cat. Excess energy: the **teacher's** energy of the
student's relaxed structure, less that of its own. It is negative where the student has found a lower minimum from there.
Displacement: mean of the free atoms from where the teacher puts them. CPU time is the median of a relaxation, on one thread
of a machine with other work. Over the trainings of a method: the mean, in brackets the lowest and the highest."""
VERDICT = """**No student of this budget replaces its teacher in a relaxation**: where it has brought its own forces to
{fmax} eV/Å, the teacher's are {low:.1f} to {high:.1f} eV/Å in the median."""
SITES = """Which place is better? Pairs of relaxed starts of a surface that the teacher has more than {distinct} eV apart; a
pair to which the student gives the same energy, within {tied} eV, counts half, as a guess would. Cost of the choice: the
teacher's energy of the structure that the student takes for the best, less that of the teacher's best."""
DYNAMIC = """Langevin dynamics at {temperature:.0f} K, from where the relaxation of the first start of each group ended
({starts} starts), of {ps} ps and 1 fs a step. The distance of a radial distribution function from the teacher's is 0 to 1;
that of the teacher is of the two halves of its own run, which says how much chance there is in so short a run."""
