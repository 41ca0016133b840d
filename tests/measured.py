"""The figures of the benchmarks that pages print, from the JSON and the rows below docs/benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from benchmarks.accuracy.plan import EXPERIMENTS, UNDISTILLED, Run, read_plan
from benchmarks.accuracy.summary import GAPS, GROUP, MEAN, Results
from benchmarks.accuracy.training import Workspace
from benchmarks.cache.report import by_shape
from benchmarks.denormals import ratios
from benchmarks.screening.report import ratio
from benchmarks.shuffle.report import MEAN as MEAN_OF_SPLITS
from benchmarks.shuffle.report import difference

ROOT = Path(__file__).parents[1]


def load(name: str) -> dict:
    return json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())


# Engines


def engine_speed(atoms: int) -> float:
    """Steps per second of StudentCalculator over those of OCPCalculator."""
    rows = load("engines")["rows"]
    return median(
        next(row for row in rows if row["engine"] == "ase, checkpoint" and row["system"] == f"{atoms} atoms")["speed"]
    )


def conserving(student: str, forces: str) -> tuple[int, int, float, float]:
    """Distilled, all seeds: completed runs at constant energy, all runs, drift in meV/atom/ps, force MAE in eV/A."""
    line = (student, forces, "distilled")
    rows = [row for row in load("gradient_forces")["rows"] if (row["student"], row["forces"], row["training"]) == line]
    slopes = [drift for row in rows for drift in row["drift"]]
    drifts = [abs(drift) for drift in slopes if drift is not None]
    return len(drifts), len(slopes), median(drifts) if drifts else float("nan"), mean(row["forces_mae"] for row in rows)


def respa(student: str, every: int) -> dict:
    """Of multiple time steps: cost of a step in ms, drift in meV/atom/ps, and how many runs ended early."""
    rows = load("respa")["rows"]
    runs = next(row["runs"] for row in rows if (row["student"], row["every"]) == (student, every))
    drifts = [abs(run["drift"]) for run in runs if not run["ended"]]
    return {
        "cost": median(run["milliseconds"] for run in runs),
        "drift": median(drifts) if drifts else None,
        "ended": len(runs) - len(drifts),
    }


# Accuracy

ACCURACY = load("accuracy")
FIGURES = {(Run(**{name: row[name] for name in GROUP}), row["method"], row["split"]): row for row in ACCURACY["rows"]}
RESULTS = Results(Workspace(ROOT / "docs/benchmarks/accuracy"))
MAIN = Run("painn", "equiformer_v2", train_systems=300, budget="steps")  # a group: of all methods and seeds
IN_TIME = replace(MAIN, budget="time")
GEMNET = replace(MAIN, student="gemnet_dT")
ESCN = replace(MAIN, teacher="escn")
OOD = "val_ood_both"
OC20 = "crack_n2n_v2v_atoms"  # the recipe of OC20's configs
SIZES = [100, 300, 1000, 3000]
PLAN = read_plan(EXPERIMENTS)
TUNING = PLAN.tables["tuning"]["grids"][0]  # of PaiNN
SINGLE = ("n2n", "v2v", "infonce", "teacher_labels", "atom_energies", "hessian")
ANCHORS = ("crack", "crack_symmetric", "crack_teacher_anchor")


def errors(method: str, group: Run = MAIN, split: str = "val_id") -> list[float]:
    """Energy MAE in eV, force MAE in eV/A."""
    row = FIGURES[group, method, split]
    return [row[name][0] for name in ("energy_mae", "forces_mae")]


def gaps(method: str, group: Run = MAIN, split: str = "val_id", *, ends: bool = False) -> list[float]:
    """Of energy and forces the gap closed in percent, each with the ends of its interval if requested."""
    row = FIGURES[group, method, split]
    intervals = [row[f"gap_{name}"] for name in ("energy", "forces")]
    return [100 * value for interval in intervals for value in (interval if ends else interval[:1])]


def cost(method: str, group: Run = MAIN) -> float:
    """Of a step, in undistilled ones."""
    return FIGURES[group, method, "val_id"]["step_cost"][0]


def paired(method: str, other: str, group: Run = MAIN, split: str = "val_id") -> list[float]:
    """Method less the other in the errors of energy and forces: mean and half width of the t-interval over shared seeds."""
    runs = [group.of_method(name) for name in (method, other)]
    intervals = [RESULTS.paired(*runs, split, column) for column in GAPS.values()]
    return [value for interval in intervals for value in (interval.estimate, interval.high - interval.estimate)]


def criteria(method: str, *candidates: float) -> list[float]:
    """Of these candidates of PaiNN's tuning, or of all: the error relative to the undistilled student."""
    own = [row for row in ACCURACY["tuning"] if (row["method"], row["student"]) == (method, "painn")]
    by_coefficient = {row["coefficient"]: row["criterion"] for row in own}
    return [by_coefficient[candidate] for candidate in candidates or by_coefficient]


def tuned_steps(student: str) -> int:
    (steps,) = {row["steps"] for row in ACCURACY["tuning"] if row["student"] == student}
    return steps


def of(systems: int) -> Run:
    return replace(MAIN, train_systems=systems)


def taken_off_forces(systems: int) -> float:
    return errors("undistilled", of(systems))[1] - errors(OC20, of(systems))[1]


def steps(method: str, group: Run = MAIN) -> int:
    return FIGURES[group, method, "val_id"]["steps"]


def seeds(method: str, group: Run = MAIN) -> int:
    return FIGURES[group, method, "val_id"]["seeds"]


def coefficients(method: str, student: str = "painn") -> dict[str, float]:
    """Of each term of a method, as experiments.yml has them."""
    terms = PLAN.terms(Run(student, "", method, 0, 300, "steps"))
    return {name: options["coefficient"] for term in terms for name, options in term.items()}


def amounts(method: str) -> list[float]:
    """PaiNN's coefficient of each term of a method and, where it has one, its `every`."""
    terms = (options for term in PLAN.terms(Run("painn", "", method, 0, 300, "steps")) for options in term.values())
    return [options[name] for options in terms for name in ("coefficient", "every") if name in options]


def look_alikes() -> float:
    return PLAN.methods["crack_look_alikes"]["distill"]["relations"]["false_negative_threshold"]


CANDIDATES = {name: len(TUNING["coefficients"][name]) for name in (*SINGLE, "crack")}


# Structures that the teacher labelled


class Line(NamedTuple):
    """Runs of docs/benchmarks/generated.json that are equal but for the seed."""

    method: str = "labelled_crack_n2n_v2v_atoms"
    structures: str = "rattle9"
    budget: str = "steps"
    student: str = "painn"

    def errors(self, split: str = "val_id") -> list[float]:
        """Energy MAE in eV, force MAE in eV/A."""
        return [self.row(split)[name][0] for name in ("energy_mae", "forces_mae")]

    def gaps(self, split: str = "val_id") -> list[float]:
        """Of energy and forces the gap closed in percent, to the undistilled student of as many steps; empty for that."""
        intervals = [self.row(split).get(f"gap_{name}", [None]) for name in ("energy", "forces")]
        return [100 * interval[0] for interval in intervals if interval[0] is not None]

    def gap_intervals(self, split: str = "val_id") -> list[float]:
        """Estimate and ends of both gaps, in percent."""
        return [100 * end for name in ("energy", "forces") for end in self.row(split)[f"gap_{name}"]]

    def less_recipe(self, split: str = "val_id") -> list[float]:
        """Its errors less those of the recipe on nine rattled copies, with the same seeds."""
        return [self.row(split)[f"less_recipe_{name}"][0] for name in ("energy", "forces")]

    def row(self, split: str = "val_id") -> dict:
        """Of the JSON."""
        return GENERATED[(*self, split)]

    def printed(self, label: str) -> str:
        """Its row in docs/generate.md."""
        cells = [label, *(self.row()[name] for name in ("systems", "steps", "seeds"))]
        for split in ("val_id", MEAN):
            cells += ["{:.3f} / {:.4f}".format(*self.errors(split)), " / ".join(f"{gap:.0f} %" for gap in self.gaps(split))]
        return f"| {' | '.join(map(str, cells))} |"


def changed(line: Line, other: Line, split: str = "val_id") -> list[float]:
    """Errors of a line less those of another with the same seeds, energy and forces: mean and ends of the t-interval."""
    runs = [Run(of.student, "equiformer_v2", of.method, None, 300, of.budget, of.structures) for of in (line, other)]
    return [end for column in GAPS.values() for end in astuple(ON_GENERATED.paired(*runs, split, column))]


ON_GENERATED = Results(Workspace(ROOT / "docs/benchmarks/accuracy"), "generated")
GENERATED = {tuple(row[name] for name in (*Line._fields, "split")): row for row in load("generated")["rows"]}
SEEDS_OF_LINES = {row["seeds"] for row in GENERATED.values() if row["student"]}
LABELS = {(row["structures"], row["jacobian_rows"]): row for row in load("generated")["labels"]}
_BUDGETS = {"steps": "", "double": ", twice the steps", "triple": ", three times the steps"}
_STRUCTURES = {
    "rattle9": "`rattle=9`",
    "rattle1": "`rattle=1`",
    "rattle3": "`rattle=3`",
    "rattle30": "`rattle=30`",
    "select9of30": "nine of `rattle=30` by `--select`",
    "random9of30": "nine of `rattle=30` by `--select-random`",
    "relax9": "`relax=9`",
    "md9": "`md=9`",
    "displace9": "`displace+rattle=9`",
    "mixed9": "mixed",
    "mixed9_responses": "mixed, made anew",
}
_TRAININGS = {
    "undistilled": "labels only",
    "labelled": "the teacher's labels only",
    "recipe_atoms_100": "recipe with the Hessian",
    "hessian_100_without_vectors_atoms": "recipe with the Hessian",
    "labelled_n2n_v2v_atoms": "recipe without relations",
    "filled_crack_n2n_v2v_atoms": "recipe, `labels: fill`",
    "weighted_crack_n2n_v2v_atoms": "recipe, `labels: fill`, `data_label_weight` 9",
    "labelled_crack_n2n_v2v_atoms_300": "recipe with `atom_energies` 300",
    "labelled_fifth_responses_10_300": "with responses, without relations, `atom_energies` 300",
}


def _label(line: Line) -> str:
    student = "GemNet-dT: " if line.student == "gemnet_dT" else ""
    structures = _STRUCTURES.get(line.structures, "the 300 systems")
    return f"{student}{structures}, {_TRAININGS.get(line.method, 'recipe')}{_BUDGETS[line.budget]}"


GENERATED_ROWS = [line.printed(_label(line)) for line in dict.fromkeys(Line(*key[:-1]) for key in GENERATED) if line.budget]


# When relations help

SCREENED = {(row["question"], row["student"], row["method"]): row for row in load("relations")["rows"]}
TRIED, TRIED_OF_GEMNET = (
    {(row["method"], row["budget"]): row for row in load("relations")["rows"] if row["question"] == question}
    for question in ("recipe", "recipe_gemnet_dT")
)
STEP_OF_TRIED = {method: row["step_cost"][0] for (method, _), row in TRIED.items() if "step_cost" in row}
DERIVATIVES = "fifth_responses_40"
EMBEDDED = {row["method"]: row for row in load("relations")["embeddings"] if row["train_systems"] == 300}


def mean_errors(row: dict) -> list[float]:
    """Energy MAE in eV, force MAE in eV/A."""
    return [row[name][0] for name in GAPS.values()]


def screened(method: str, question: str = "weights", student: str = "painn") -> list[float]:
    """The `mean_errors` on val_id."""
    return mean_errors(SCREENED[question, student, method])


CONFIRMED = {method: row for (asked, _, method), row in SCREENED.items() if asked == "confirmed"}
OF_SIZES = {
    (row["method"], row["train_systems"], row["budget"]): row
    for row in load("relations")["rows"]
    if row["question"] == "systems"
}


def smaller(row: dict) -> list[float]:
    """How much smaller than the reference's the errors of energy and forces are, in percent: estimates and ends."""
    return [100 * end for name in GAPS for end in row[f"less_{name}"]]


def larger(row: dict) -> list[float]:
    """How much larger they are."""
    return [-100 * row[f"less_{name}"][end] for name in GAPS for end in (0, 2, 1)]


def best_screened(method: str, question: str) -> list[float]:
    """`screened` of that coefficient of the method with the smallest energy MAE."""
    candidates = [name for asked, _, name in SCREENED if asked == question and name.startswith(f"{method}@")]
    return min(screened(name, question) for name in candidates)


def best_of_candidates() -> dict[tuple[str, str], str]:
    """Of the paper in small: by start and term, the candidate with the smallest mean of both errors, with seed 0.

    It has three seeds; each term has four candidates, one more where the best of these was at the end.
    """
    results = Results(Workspace(ROOT / "docs/benchmarks/accuracy"), "relations")
    rows = {
        run.method: of_splits["val_id"]
        for run, of_splits in results.rows.items()
        if (run.student, run.seed) == ("equiformer_v2_1", 0)
    }
    chosen = {}
    for start in ("paper", "init"):
        for term in ("n2n_l0", "n2n", "crack", "infonce", "crack_n2n"):
            endings = ("", "_tuned", "_l0_tuned") if term == "crack_n2n" else ("",)
            names = [name for name in rows if name.partition("@")[0] in {f"{start}_{term}{ending}" for ending in endings}]
            assert len(names) == 4 + (term == "n2n"), names
            best = min(names, key=lambda name: mean(rows[name][e] / rows[UNDISTILLED][e] for e in GAPS.values()))
            assert SCREENED["paper_tuned", "equiformer_v2_1", best]["seeds"] == 3
            chosen[start, term] = best
    return chosen


def missed(method: str) -> list[float]:
    """What the best affine map from PaiNN's embedding leaves of the teacher's variance, between and within systems."""
    return [EMBEDDED[method][f"{part}_fitted"] for part in ("system", "within")]


# Students of SevenNet-0

FOUNDATION = load("foundation")
RESULTS_OF_SEVENNET = Results(Workspace(ROOT / "docs/benchmarks/foundation"), "foundation")


def gap_of_sevennet(student: str, method: str, split: str = "val_id") -> list[float]:
    """Of the students on most systems: the gap closed in energy and forces, in percent."""
    row = of_sevennet(student, method, 1800, split)
    return [100 * row[f"gap_{name}"][0] for name in GAPS]


def of_sevennet(student: str, method: str, systems: int, split: str) -> dict:
    """The row of these students."""
    sought = {"student": student, "method": method, "train_systems": systems, "split": split}
    (row,) = (row for row in FOUNDATION["rows"] if sought.items() <= row.items())
    return row


def gap_intervals_of_sevennet(student: str, method: str, split: str) -> list[list[float]]:
    """The same, each with the ends of its interval."""
    row = of_sevennet(student, method, 1800, split)
    return [[100 * end for end in row[f"gap_{name}"]] for name in GAPS]


def largest_of_sevennet(methods: Sequence[str], split: str, part: int) -> str:
    """Of these methods of PaiNN, all with five seeds, that which closes most of the gap in energy (0) or forces (1)."""
    assert {of_sevennet("painn", method, 1800, split)["seeds"] for method in methods} == {5}
    return max(methods, key=lambda method: gap_of_sevennet("painn", method, split)[part])


def less_than_n2n(split: str, quantity: str) -> float:
    """How much smaller PaiNN's errors are with relations than with node embeddings: the lower end of its interval."""
    relations, n2n = (Run("painn", "sevennet", method, None, 1800, "steps") for method in ("relations", "n2n"))
    return RESULTS_OF_SEVENNET.less(relations, n2n, split, quantity).low


def gaps_of_potential(teacher: str, student: str, method: str, split: str = "val_id") -> list[float]:
    """As `gap_of_sevennet`, of the students of another foundation potential."""
    row = _of_potential(teacher, student, method, split)
    return [100 * row[f"gap_{name}"][0] for name in GAPS]


def gaps_of_chgnet(student: str) -> list[float]:
    """`gaps_of_potential` of the recipe that `init` writes for CHGNet, which has no vectors."""
    return gaps_of_potential("chgnet", student, "all_without_vectors")


def seeds_of_potential(teacher: str, student: str, method: str) -> int:
    return _of_potential(teacher, student, method, "val_id")["seeds"]


def _of_potential(teacher: str, student: str, method: str, split: str) -> dict:
    sought = {"student": student, "method": method, "split": split}
    (row,) = (row for row in load(f"foundation_{teacher}")["rows"] if sought.items() <= row.items())
    return row


SCALES = ("4", "13", "40", "120")  # coefficients of the recipe's relations, the second last its own


def scaled_recipe() -> list[list[float]]:
    """By teacher, the mean of both errors of PaiNN relative to the undistilled student's, with the recipe times `SCALES`."""
    of_ours = {row["method"]: row for (asked, _, _), row in SCREENED.items() if asked == "scale"}
    named = {of.partition("@")[2] or "40": row for of, row in of_ours.items() if of != UNDISTILLED}
    columns = GAPS.values()
    ours = [mean(named[scale][name][0] / of_ours[UNDISTILLED][name][0] for name in columns) for scale in SCALES]
    tables = {"foundation": "all", "foundation_nequix": "all", "foundation_chgnet": "all_without_vectors"}
    tuned = (
        {f"{row['coefficient']:g}": row["criterion"] for row in load(page)["tuning"] if row["method"] == method}
        for page, method in tables.items()
    )
    return [ours, *([candidates[scale] for scale in SCALES] for candidates in tuned)]


def relaxed_by_students(column: str) -> list[float]:
    """Of the medians of the students of SevenNet-0, the lowest and the highest; `seconds` are medians already."""
    values = [row[column] for row in FOUNDATION["relaxations"] if row["student"]]
    medians = [median(value) if isinstance(value, list) else value for value in values]
    return [min(medians), max(medians)]


# Speed, memory, screening

LOSS = {(row["method"], row["pairs"]): row for row in load("crack_loss")["results"]}
LOSS_ON_GPU = {(row["method"], row["pairs"]): row for row in load("crack_loss_gpu")["results"]}
STEP = load("step")["students"]["painn"]
PRECISION = load("teacher")["precision"]["mean"]
READ_AHEAD = load("read_ahead")
DENORMALS = {part: ratios(seconds)[1] for part, seconds in load("denormals")["students"]["painn"].items()}
TRUE_SIZE = {row["name"]: row["step"]["seconds"] for row in load("true_size")["results"]}
SCREENING = load("screening")
CACHE = load("cache")
LARGE_CACHE, LONG_CACHE = (rows[-1] for rows in by_shape(CACHE).values())  # of realistic records; of most
DEMO = SCREENING["demo"]
SHUFFLE = load("shuffle")


def cached_over_undistilled(student: str, *, loaded: bool = False) -> float:
    """Median over the rounds on a GPU; `loaded`: without the time of loading."""
    rows = load("gpu")["parts"]["steps"]["rows"]
    rounds = [row["seconds"] for row in rows if row["what"] == "round" and row["student"] == student]
    cut = {kind: [row[kind] - loaded * row[f"{kind} loading"] for row in rounds] for kind in ("cached", "undistilled")}
    return median(cut["cached"][i] / cut["undistilled"][i] for i in range(len(rounds)))


def online_over_undistilled(teacher: str) -> float:
    """A step with the teacher online over the same without it, of `true_size`."""
    seconds = TRUE_SIZE[teacher]
    return sum(seconds.values()) / (sum(seconds.values()) - seconds["teacher"])


def spearman(name: str) -> list[float]:
    agreement = DEMO["agreement"][f"{name}, EMT"]
    return [agreement["spearman"], *agreement["spearman_interval"]]


def drift(name: str) -> list[float]:
    return spread([abs(run["drift"]) for run in DEMO["dynamics"][name]])


def spread(values: list[float]) -> list[float]:
    return [median(values), min(values), max(values)]


def throughput(teacher: str) -> list[float]:
    times = SCREENING["true_size"]["forwards"]
    return spread(ratio(times[teacher]["seconds"], times["painn_h512"]["seconds"]))


def is_within(name: str, value: float) -> bool:
    """Whether all rounds of the step benchmark agree with a ratio."""
    low, high = STEP[f"{name}_spread"]
    return low <= value <= high


def relaxations_per_hour(name: str) -> float:
    return 3600 * DEMO["starts"] / sum(DEMO["relaxed"][name]["seconds"])


def waiting(way: str) -> float:
    """Milliseconds of a step."""
    return 1000 * median(row["waiting"] for row in READ_AHEAD["rounds"][way])


def layout(number: int) -> list[float]:
    """Of a layout of records: bytes read over bytes of the records, page faults, ms a record."""
    row = CACHE["layouts"][number]
    return [row["bytes"] / row["record_bytes"], row["faults"], row["ms"]]


def disk(number: int) -> float:
    """Bytes on disk of a record in a layout."""
    return CACHE["layouts"][number]["disk_bytes"]


def cold(source: str) -> list[float]:
    """Bytes read over a record's, in uniform order and in blocks."""
    rows = {row["order"]: row for row in SHUFFLE["cost"]["rows"] if row["source"] == source}
    return [rows[order]["bytes"] / rows[order]["record_bytes"] for order in ("uniform", "in blocks")]


def shuffled(order: str) -> list[float]:
    """An order's errors less those of the uniform one: energy and forces, mean and half width of the interval."""
    intervals = [difference(SHUFFLE, order, MEAN_OF_SPLITS, metric) for metric in ("energy_mae", "forces_mae")]
    return [value for interval in intervals for value in (interval.estimate, interval.high - interval.estimate)]


EXPLORED = load("explore")
EXPLORED_TEACHER = EXPLORED["stability"]["teacher"]


def explored(number: int) -> list[float]:
    """The row of a round of docs/explore.md."""
    content = EXPLORED["rounds"][number]
    ps, reasons = ([start[name] for start in content["starts"]] for name in ("ps", "reason"))
    errors = [content["errors"][name] for name in ("energy_mae", "forces_mae")]
    return [median(ps), min(ps), max(ps), reasons.count(None), len(ps), content["teacher_labels"], *errors]


def at_500_k(model: str) -> dict:
    """Its Langevin runs."""
    return EXPLORED["stability"]["checkpoints"][model]["langevin"]["500"]


def lasted(model: str) -> int:
    """From how many starts its dynamics last."""
    return at_500_k(model)["reason"].count(None)


def absolute_drift(model: str) -> float:
    """In the median over the runs that lasted, meV/atom/ps."""
    drift = EXPLORED["stability"]["checkpoints"][model]["constant_energy"]["drift"]
    return median(abs(slope) for slope in drift if slope is not None)
