"""The page of the table `relations`: when relations help, question by question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.accuracy.page import DIGITS, gap, markdown, show
from benchmarks.accuracy.plan import EXPERIMENTS, SAME_TIME, UNDISTILLED, Run, expand, read_plan
from benchmarks.accuracy.summary import DECIMALS, GAPS, Results, costs_of, hours, mean_costs, plain
from benchmarks.accuracy.training import Workspace

TABLE, SPLIT = "relations", "val_id"
CHOICE = "choice"  # ends the names of budgets of the runs by which a recipe was chosen
COSTED = ("recipe", "recipe_gemnet_dT")  # the sections that say what a step costs
PARTS = {"system": "system", "within": "within", "system_fitted": "system, fitted", "within_fitted": "within, fitted"}
VARIED = ("student", "train_systems")  # columns where a section has several


class Question(NamedTuple):
    """A section of the page; its methods are those of the grids of experiments.yml that have its name.

    Attributes:
        reference: the method with which the others are compared; `{start}` is what the other's name begins with.
        references: of methods that are compared with another one.
    """

    title: str
    text: str
    reference: str
    references: Mapping[str, str] = MappingProxyType({})


DEMO = "labelled_crack_n2n_v2v_atoms_300"  # the demo's recipe
STARTS = ("paper", "init")
OF_PAPER = {
    f"{start}_{terms}{atoms}": f"{start}_n2n{atoms}"
    for start, atoms in product(STARTS, ("", "_atoms"))
    for terms in ("n2n_l0", "crack", "infonce", "crack_n2n")
} | {"init": "init_n2n", "init_atoms": "init_n2n_atoms"}
QUESTIONS = {
    "weights": Question(
        "The published weights",
        "The published coefficients are 10 for CRACK and about 2 for l = 0 of n2n, and every step has atom energies, too "
        "(`_atoms`, `_atoms_oc20`: with the weight that a teacher of five or of 77.8 average atoms gives them).",
        "n2n",
        {f"crack_{of}": f"n2n_{of}" for of in ("published", "published_atoms", "published_atoms_oc20", "atoms_published")},
    ),
    "paper": Question(
        "The paper in small",
        "EquiformerV2 of one or two blocks from one of six, from scratch (`paper_`) or from the teacher's first blocks "
        "(`init_`), at the published weights, and for two blocks n2n at others (`@`). Two blocks have one seed; their rows "
        "of `init_` with `_atoms` are of an earlier version, which measured where the projections start before it copied "
        "the blocks, and counted the gradients of frozen parts in the clipped norm.",
        "paper_n2n",
        OF_PAPER,
    ),
    "paper_tuned": Question(
        "The paper in small, each at its best",
        "One block. Four candidates of each method, the published one among them, and of n2n of all degrees a fifth, since "
        "its best of four was at the end; `_tuned`: relations 80 with n2n 10000, `_l0_tuned`: with n2n of l = 0. The best "
        "of each, by the mean of both errors relative to the undistilled student's, with seed 0, has three seeds. All are "
        "compared with the best n2n of l = 0 from the same start, relations with n2n of all degrees with the best of these.",
        "{start}_n2n_l0@10000",
        {f"{start}_crack_n2n{of}": f"{start}_n2n@100000" for start in STARTS for of in ("", "_tuned", "_tuned@640")},
    ),
    "unseen": Question(
        "What relations do not see",
        "A shift common to the atoms of a system cancels in every relation. `crack_systems_` adds the systems' mean "
        "embedding to CRACK, `crack_atoms_100` the atom energies.",
        "n2n_watched",
        {"crack_atoms_100": "n2n_atoms_100"},
    ),
    "contrast": Question(
        "Contrast or regression",
        "The same pairs: compared by their cosine, without unit length, with the teacher's own similarities as targets, and "
        "by distances of the student's own embedding (`rkd`).",
        "crack",
    ),
    "hard": Question(
        "Hard negatives and weights",
        "Negatives of the same two elements and distance (`crack_alike`); adsorbate atoms with the weight 3, those below "
        "the surface with 0.2 (`_adsorbate`).",
        "crack",
        {f"n2n_adsorbate@{coefficient}": "n2n" for coefficient in (30, 100, 300, 1000, 3000, 10000)},
    ),
    "confirmed": Question(
        "The same in three times the steps",
        "What the screening above found, with five seeds: the published weights, what relations do not see, contrast or "
        "regression, and weights by tag, each method at the best of its candidates.",
        "n2n",
        {
            "crack_published": "n2n_published",
            "crack_atoms_100": "n2n_atoms_100",
            "crack_systems_100": "crack",
            "crack_adsorbate": "crack",
            "relations_cosine@10000": "crack",
            "crack_soft_targets@320": "crack",
        },
    ),
    "systems": Question(
        "The numbers of systems and steps",
        "One pass over 100 to 3000 systems with labels, and 380, 1140 and 3420 steps, which are rounded to whole passes; "
        "`labelled`: on nine generated structures of each of 300 systems, with the teacher's labels.",
        "n2n",
        dict.fromkeys(("labelled", "labelled_crack", "labelled_n2n"), "labelled_n2n"),
    ),
    "generated": Question(
        "On structures that the teacher labelled",
        "Nine generated structures of each system (mixed9), all labels the teacher's (`labelled`): terms one by one, all of "
        "them, and all but one; and, with seed 100, the demo's recipe (`_300`: of `atom_energies`), the same without "
        "relations, with relations that keep their lengths, and with responses, which were chosen so for the [table with "
        "five seeds](generated.md).",
        "labelled_crack_n2n_v2v_atoms",
        dict.fromkeys(
            (
                *(DEMO, "labelled_n2n_v2v_atoms_300", "labelled_lengths_n2n_v2v_atoms_300"),
                *(f"labelled_fifth_responses_{of}" for of in ("40", "40_300", "10_300")),
            ),
            DEMO,
        ),
    ),
    "recipe": Question(
        "Recipes",
        "All terms together, on the 300 systems: OC20's recipe (`crack_n2n_v2v_atoms`), changes of it, such as relations "
        "that keep their lengths (`lengths`), and terms of derivatives: the Hessian, the gradient of the energy and the "
        "responses of embeddings and forces, in every step or in a third to a tenth of the steps. Chosen with seed 100, "
        "which nothing else uses: in 380 steps and, where derivatives (seed 0) and lengths (seeds 0 to 2) were seen to help "
        "more in 1140 steps, in these. Rows with the Hessian or responses, but `fifth_responses_40` and the seeds 0 to 2 of "
        "`fourth_responses_30`, are of an earlier version, in whose differences the teacher's neighbors could change. Step: "
        "CPU time over that of undistilled steps, of 60 in a row on the same batches; in brackets of either half. When the "
        "[accuracy benchmark](accuracy.md) was measured, it was 1.14 for OC20's recipe and 2.35 for the Hessian in every "
        "step. Undistilled, OC20's recipe and that with the Hessian have in 1140 steps the rows of the table `generated`: "
        "the same trainings.",
        "crack_n2n_v2v_atoms",
    ),
    "scale": Question(
        "The weights of a recipe",
        "OC20's recipe (`crack_n2n_v2v_atoms`, relations 40), all its coefficients times 0.1, 0.33 and 3 (`@`: of the "
        "relations). The same with the teachers [SevenNet-0](foundation.md#coefficients), "
        "[Nequix](foundation_nequix.md#coefficients) and [CHGNet](foundation_chgnet.md#coefficients).",
        "crack_n2n_v2v_atoms",
    ),
    "recipe_gemnet_dT": Question(
        "Recipes of GemNet-dT",
        "Its recipe (`crack_n2n_atoms`), and with the responses of embeddings and forces in a fifth of the steps. Step: as "
        "above.",
        "crack_n2n_atoms",
    ),
}
INTRO = """# When relations help

A screening on the demo's data, evaluated on val_id; steps and seeds as the tables say. What each method is, is in
`benchmarks/accuracy/experiments.yml`; method@40 has the coefficient 40. Training, metrics and the gap closed are those of
[the accuracy benchmark](accuracy.md). Less than reference: (reference - method) / reference of an error, on the same seeds.
In brackets 95 % intervals: of a mean by t over seeds; of a gap or a difference by a paired bootstrap over seeds and systems,
or by t over seeds where the errors of systems were not kept, on a GPU. With one seed they are of the systems only, or there
is none. Candidates of a coefficient are chosen and evaluated on the same split: the best of six is a little too good.
What is not here was not run.
"""
OF_EMBEDDINGS = """Mean square error of the student's node embedding on val_id, in units of the teacher's variance, in two
parts: common to the atoms of a system, and within systems. First as projected; then fitted, after the best affine map from
the student's embedding to the teacher's, which is fitted on half of the systems and evaluated on the other half.
"""


def figures(workspace: Workspace) -> dict[str, Any]:
    """The rows of every section, the errors of embeddings, and what the trainings took."""
    results, grids = Results(workspace, TABLE), read_plan(EXPERIMENTS).tables[TABLE]["grids"]
    costs = mean_costs(workspace.table(costs_of(TABLE)).rows())
    rows = []
    for section, question in QUESTIONS.items():
        runs = (run for grid in grids if grid.get("question") == section for run in expand(grid))
        for line in dict.fromkeys(replace(run, seed=None) for run in runs):
            if results.seeds(line):
                row = {"question": section, **results.figures(line, line.method, SPLIT)}
                row.pop("step_cost", None)  # of another table, measured before
                reference_of = question.references.get(line.method, question.reference)
                method = reference_of.format(start=line.method.partition("_")[0])
                reference = replace(line, method=method, budget=SAME_TIME.get(line.budget, line.budget))
                if line.method not in (UNDISTILLED, reference.method):
                    row["reference"] = reference.method
                    row |= {f"less_{name}": plain(results.less(line, reference, SPLIT, name)) for name in GAPS}
                if section in COSTED and (cost := costs.get((line.student, line.teacher, line.method))):
                    row["step_cost"] = cost
                rows.append(row)
    return {"rows": rows, "embeddings": embeddings(workspace), "cost": hours(workspace.table(TABLE).rows())}


def embeddings(workspace: Workspace) -> list[dict[str, Any]]:
    """The mean of each part over the seeds, of every method."""
    lines: dict[Run, list[dict]] = {}
    for row in workspace.table("embeddings").rows():
        lines.setdefault(replace(Run.of(row), seed=None), []).append(row)
    return [
        {
            **{name: value for name, value in asdict(line).items() if name != "seed"},
            "seeds": len(rows),
            **{part: round(fmean(row[part] for row in rows), DECIMALS) for part in PARTS if rows[0][part] != ""},
        }
        for line, rows in lines.items()
    ]


def table(rows: list[dict]) -> list[str]:
    """A line for each of these rows."""
    varied = [*(name for name in VARIED if len({row[name] for row in rows}) > 1), "steps"]
    has_costs = any("step_cost" in row for row in rows)
    lines = []
    for row in rows:
        shown = {**row, "steps": f"{row['steps']}{', to choose' * row['budget'].endswith(CHOICE)}"}
        cells = [*(str(shown[name]) for name in varied), row["method"], str(row["seeds"])]
        cells += [show(row[column], DIGITS[column]) for column in GAPS.values()] + [gap(row, name) for name in GAPS]
        cells.append(row.get("reference", ""))
        cells += [show(row.get(f"less_{name}", []), 0, factor=100, end="%") for name in GAPS]
        cells += [show(row.get("step_cost", []), 2)] * has_costs
        lines.append(cells)
    heading = [*varied, "method", "seeds", "energy MAE [eV]", "force MAE [eV/Å]", *(f"gap closed, {name}" for name in GAPS)]
    heading += ["reference", *(f"less than reference, {name}" for name in GAPS), *["step"] * has_costs]
    return markdown(heading, lines)


def embeddings_table(rows: list[dict]) -> list[str]:
    """The parts of the error of the embeddings that PaiNN has without generated structures."""
    chosen = [row for row in rows if (row["student"], row["structures"], row["train_systems"]) == ("painn", "", 300)]
    parts = ([show([row[part]], 3) if part in row else "" for part in PARTS] for row in chosen)
    lines = [[row["method"], str(row["seeds"]), *cells] for row, cells in zip(chosen, parts)]
    return markdown(["method", "seeds", *PARTS.values()], lines)


def page(content: dict[str, Any]) -> str:
    """The page of these `figures`, and of nothing else."""
    lines = [INTRO]
    for name, question in QUESTIONS.items():
        rows = [row for row in content["rows"] if row["question"] == name]
        if sum("less_energy" in row for row in rows) < 2:
            continue
        lines += [f"## {question.title}", "", question.text, "", *table(rows), ""]
    if content["embeddings"]:
        lines += ["## The embeddings", "", OF_EMBEDDINGS, *embeddings_table(content["embeddings"]), ""]
    runs, spent = content["cost"]
    lines += [
        "## Commands",
        "",
        f"CPU time of the {runs} trainings of which it is known: {spent:.1f} hours.",
        "",
        "    cp -r docs/benchmarks/accuracy runs/accuracy",
        "    python -m benchmarks.accuracy run runs/accuracy --table relations",
        "    python -m benchmarks.accuracy embeddings runs/accuracy",
        "    python -m benchmarks.accuracy report runs/accuracy",
        "",
    ]
    return "\n".join(lines)
