"""The page of the table `generated`: students trained on structures that the teacher labelled."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

from benchmarks.accuracy.page import DIGITS, gap, markdown, show
from benchmarks.accuracy.plan import EXPERIMENTS, TEACHER, UNDISTILLED, Run, read_plan
from benchmarks.accuracy.summary import GAPS, MEAN, Results, hours, plain
from benchmarks.accuracy.training import SPLITS, Workspace

TABLE = "generated"
RECIPES = {"painn": "labelled_crack_n2n_v2v_atoms", "gemnet_dT": "labelled_crack_n2n_atoms"}  # with which all are compared,
STRUCTURES = "rattle9"  # on these
NAMES = {
    UNDISTILLED: "labels only",
    TEACHER: "teacher",
    "labelled": "teacher's labels, no terms",
    "labelled_n2n_v2v_atoms": "without relations",
    "filled_crack_n2n_v2v_atoms": "`labels: fill`",
    "weighted_crack_n2n_v2v_atoms": "`labels: fill`, `data_label_weight` 9",
    "labelled_crack_n2n_v2v_atoms_300": "recipe with `atom_energies` 300",
    "labelled_fifth_responses_10_300": "`node_embeddings` 1000, no relations, `atom_energies` 300, responses of weight 10",
    **dict.fromkeys(("recipe_atoms_100", "hessian_100_without_vectors_atoms"), "with the Hessian, the data's labels"),
    **dict.fromkeys(RECIPES.values(), "recipe"),
    **dict.fromkeys(("crack_n2n_v2v_atoms", "crack_n2n_atoms"), "recipe, the data's labels"),
}
UNTIMED = {"cpu": "not known: interrupted", "cuda": "made on a GPU"}
INTRO = """# Structures that the teacher labelled

The demo's {parents} training systems, the parents, and structures made of them by `fairchem-crack generate`, labelled by
the demo's EquiformerV2. `benchmarks/accuracy/experiments.yml` says what each method is and how the structures are made.
PaiNN takes `relations` 40, `node_embeddings` 300, `vector_embeddings` 300, `atom_energies` 100; GemNet-dT has no vectors.
On generated structures all labels are the teacher's, those of the parents too (`labels: teacher`); with `fill` the parents
keep the data's. The number of steps is the same for every number of systems, but for whole epochs. Training,
validation and metrics are those of [the accuracy benchmark](accuracy.md). A correction of `displace`, made since, moves
2 % of the displaced systems.

In brackets: the 95 % t-interval of a mean over seeds; of a gap, a 95 % paired bootstrap
interval over seeds and systems. Gap closed: compared with the student that is trained on the parents' labels only, **for as
many steps**. Less recipe: the error less that of the recipe on {structures}, of the same budget and paired over the shared
seeds. CPU: minutes of a training on one thread of a shared machine, start and validations included, the teacher's labels
not; the mean of those that were trained on a CPU.

![errors by the number of structures](generated.png)

Larger markers: two and three times the steps. All other lines are in the tables.
"""


def figures(workspace: Workspace) -> dict[str, Any]:
    """The rows of every line of the page, and what the labels cost.

    Raises:
        ValueError: no row of the teacher.
    """
    results, plan = Results(workspace, TABLE), read_plan(EXPERIMENTS)
    labels = [{**row, "arguments": plan.structures.get(row["structures"], "")} for row in workspace.table("labels").rows()]
    if not any(run.method == TEACHER for run in results.rows):
        raise ValueError(f"{workspace.directory}: no rows of the teacher in {TABLE}.csv; run --only method=teacher.")
    sizes = {row["structures"]: row["systems"] for row in labels}
    lines = dict.fromkeys(replace(run, seed=None) for run in plan.runs(TABLE, {}))
    rows = []
    for line in lines:
        seeds = results.seeds(line)
        for split in (*SPLITS, MEAN) if seeds or line.method == TEACHER else ():
            row = results.figures(line, line.method, split)
            if seeds:
                taken = [results.rows[replace(line, seed=seed)]["val_id"]["cpu_seconds"] for seed in seeds]
                taken = [seconds / 60 for seconds in taken if seconds != ""]
                row["cpu_minutes"] = round(fmean(taken), 2) if taken else None  # not known where all were interrupted
                row["systems"] = sizes[line.structures] if line.structures else line.train_systems
                row |= {f"less_recipe_{name}": difference(results, line, split, GAPS[name]) for name in GAPS}
            rows.append(row)
    return {"rows": rows, "labels": labels, "cost": hours(workspace.table(TABLE).rows())}


def difference(results: Results, line: Run, split: str, column: str) -> list[float | None]:
    """The line less the recipe on the same seeds, of one error; nothing without shared seeds."""
    recipe = replace(line, method=RECIPES[line.student], structures=STRUCTURES)
    if line in (recipe, line.of_method(UNDISTILLED)) or not set(results.seeds(line)) & set(results.seeds(recipe)):
        return []
    return plain(results.paired(line, recipe, split, column))


def table(rows: list[dict]) -> list[str]:
    """A line for each of these rows of one split."""
    lines = []
    for row in rows:
        cells = [row["structures"] or ("parents" if row["seeds"] else ""), NAMES[row["method"]]]
        cells += [str(row.get("systems", "")), str(row["steps"]), str(row["seeds"] or "")]
        cells += [show(row[column], DIGITS[column]) for column in GAPS.values()]
        cells += [gap(row, name) for name in GAPS]
        cells += [show(row.get(f"less_recipe_{name}", []), DIGITS[column]) for name, column in GAPS.items()]
        cells.append(show([row.get("cpu_minutes")], 1))
        lines.append(cells)
    heading = ["structures", "method", "systems", "steps", "seeds", "energy MAE [eV]", "force MAE [eV/Å]"]
    heading += [*(f"gap closed, {name}" for name in GAPS), *(f"less recipe, {name}" for name in GAPS), "CPU"]
    return markdown(heading, lines)


def page(content: dict[str, Any]) -> str:
    """The page of these `figures`, and of nothing else."""
    rows = content["rows"]
    parents = next(row["train_systems"] for row in rows if row["seeds"])
    lines = [INTRO.format(parents=parents, structures=STRUCTURES)]
    for student in dict.fromkeys(row["student"] for row in rows if row["seeds"] and row["teacher"]):
        for split in ("val_id", MEAN):
            shown = [row for row in rows if row["split"] == split and row["student"] in (student, "")]
            lines += [f"## {student}, {split}", "", *table(sorted(shown, key=lambda row: not row["seeds"])), ""]
    labels = [
        [
            row["structures"] or "parents" + f", {row['jacobian_rows']} rows of the Jacobian" * bool(row["jacobian_rows"]),
            f"`{row['arguments']}`" if row["arguments"] else "",
            str(row["systems"]),
            f"{row['cpu_seconds']:.0f}" if row["cpu_seconds"] != "" else UNTIMED[row.get("device") or "cpu"],
        ]
        for row in content["labels"]
    ]
    runs, spent = content["cost"]
    return "\n".join(
        [
            *lines,
            "## What the labels cost",
            "",
            "Once for all students and seeds: CPU seconds of making the structures, running the teacher on them and on the "
            "parents, and writing data and cache.",
            "",
            *markdown(["structures", "`fairchem-crack generate`", "systems", "CPU [s]"], labels),
            "",
            "## Commands",
            "",
            f"CPU time of the {runs} trainings of which it is known: {spent:.1f} hours.",
            "",
            "    cp -r docs/benchmarks/accuracy runs/accuracy",
            "    python -m benchmarks.accuracy run runs/accuracy --table generated",
            "    python -m benchmarks.accuracy report runs/accuracy",
            "",
        ]
    )
