"""What relaxations and dynamics by students and teacher show: figures from their rows, and a section of the page."""

from __future__ import annotations

import math
from itertools import combinations
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.accuracy.page import markdown
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


def section(content: dict[str, list[dict]]) -> list[str]:
    """The tables of relaxations, sites and dynamics."""
    relaxations, sites, dynamics = (content[name] for name in ("relaxations", "sites", "dynamics"))
    teacher = next(row for row in relaxations if not row["student"])
    count = len(teacher["steps"])
    lines = ["## Relaxations and dynamics side by side", "", RELAXATION.format(starts=count, fmax=FMAX, steps=STEPS), ""]
    cells = []
    for row in relaxations:
        own = [
            title(row),
            f"{row['converged']} of {len(row['steps'])}",
            f"{median(row['steps']):.0f}",
            f"{row['seconds']:.2f}",
        ]
        if row["excess"]:
            own += [f"{median(row['excess']):.3f}", f"{fmean(row['excess']):.3f}", f"{median(row['displacement']):.2f}"]
            own += [f"{sum(value < NEAR for value in row['adsorbate'])} of {len(row['adsorbate'])}"]
            own += [f"{median(row['force']):.2f}"]
        cells.append([*own, *[""] * (9 - len(own))])
    heading = ["model", "converged", "steps", "CPU s", "excess energy, median [eV]", "mean [eV]", "displacement [Å]"]
    lines += [*markdown([*heading, "adsorbate in the same place", "teacher's force there [eV/Å]"], cells), ""]
    lines += verdict(relaxations)
    lines += [SITES.format(distinct=DISTINCT, tied=TIED), ""]
    cells = [
        [
            title(row),
            row["group"],
            str(row["starts"]),
            f"{row['spread']:.2f}",
            f"{row['ordered']:g} of {row['pairs']}",
            f"{row['regret']:.3f}",
        ]
        for row in sites
    ]
    heading = ["model", "surface, adsorbate", "starts", "teacher's energies span [eV]", "pairs ordered as by the teacher"]
    lines += [*markdown([*heading, "cost of the choice [eV]"], cells), ""]
    ps = SETTINGS.ps
    lines += [DYNAMIC.format(temperature=TEMPERATURE, ps=ps, starts=len(dynamics[0]["ps"])), ""]
    cells = [
        [
            title(row),
            f"{row['reason'].count('')} of {len(row['ps'])}",
            f"{min(row['ps']):.2f}",
            listed(row["temperature"], 0),
            listed(row["rdf"], 2),
            f"{row['seconds']:.0f}",
        ]
        for row in dynamics
    ]
    heading = [
        "model",
        f"lasted {ps:g} ps",
        "shortest [ps]",
        "mean temperature [K]",
        "distance of the distribution",
        "CPU s",
    ]
    return [*lines, *markdown(heading, cells), ""]


def verdict(relaxations: list[dict]) -> list[str]:
    """Whether a student's relaxation can be trusted, where it cannot."""
    forces = [median(row["force"]) for row in relaxations if row["student"]]
    if not forces or min(forces) < 10 * FMAX:
        return []
    return [f"{VERDICT.format(fmax=FMAX, low=min(forces), high=max(forces))}", ""]


def listed(values: list[float | None], digits: int) -> str:
    """A value for each start."""
    return ", ".join("none" if value is None else f"{value:.{digits}f}" for value in values)


def title(row: dict) -> str:
    """Of a model."""
    return f"{row['student']} {row['method']}".strip()


RELAXATION = """All models relax the same {starts} starts with LBFGS to {fmax} eV/Å, in at most {steps} steps: O on
Pt(111), and CO on Rh3Mo(111), whose composition is held out, each at random places and turned at random on a rattled slab
that is not strained; and the first systems of val_id and val_ood_cat. Excess energy: the **teacher's** energy of the
student's relaxed structure, less that of its own. It is negative where the student has found a lower minimum from there.
Displacement: mean of the free atoms from where the teacher puts them. CPU time is the median of a relaxation, on one thread
of a machine with other work. One training of each method."""
VERDICT = """**No student of this budget replaces its teacher in a relaxation**: where it has brought its own forces to
{fmax} eV/Å, the teacher's are {low:.1f} to {high:.1f} eV/Å in the median."""
SITES = """Which place is better? Pairs of relaxed starts of a surface that the teacher has more than {distinct} eV apart; a
pair to which the student gives the same energy, within {tied} eV, counts half, as a guess would. Cost of the choice: the
teacher's energy of the structure that the student takes for the best, less that of the teacher's best."""
DYNAMIC = """Langevin dynamics at {temperature:.0f} K, from where the relaxation of the first start of each group ended
({starts} starts), of {ps} ps and 1 fs a step. The distance of a radial distribution function from the teacher's is 0 to 1;
that of the teacher is of the two halves of its own run, which says how much chance there is in so short a run."""
