"""The figures of the benchmarks that pages print, from the JSON and the rows below docs/benchmarks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.accuracy.plan import EXPERIMENTS, Run, read_plan
from benchmarks.accuracy.summary import GROUP, MEAN, Results
from benchmarks.accuracy.training import Workspace
from benchmarks.cache.report import by_shape
from benchmarks.screening.report import ratio
from benchmarks.shuffle.report import MEAN as MEAN_OF_SPLITS
from benchmarks.shuffle.report import difference
from fairchem_crack.evaluation.intervals import t_interval

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
    """Of the distilled student the completed runs at constant energy, all runs, drift in meV/atom/ps, force MAE in eV/A."""
    rows = [row for row in load("gradient_forces")["rows"] if (row["student"], row["forces"]) == (student, forces)]
    (row,) = (row for row in rows if row["training"] == "distilled")
    drifts = [abs(drift) for drift in row["drift"] if drift is not None]
    return len(drifts), len(row["drift"]), median(drifts) if drifts else float("nan"), row["forces_mae"]


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
    shared = sorted(set.intersection(*(set(RESULTS.seeds(run)) for run in runs)))
    differences = []
    for column in ("energy_mae", "forces_mae"):
        values = [[RESULTS.value(replace(run, seed=seed), split, column) for seed in shared] for run in runs]
        interval = t_interval([of_method - of_other for of_method, of_other in zip(*values)])
        differences += [interval.estimate, interval.high - interval.estimate]
    return differences


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

    def seeds(self) -> int:
        """How many it has."""
        return self.row()["seeds"]

    def row(self, split: str = "val_id") -> dict:
        """Of the JSON."""
        return GENERATED[(*self, split)]

    def printed(self, label: str) -> str:
        """Its row in docs/generate.md."""
        cells = [label, *(self.row()[name] for name in ("systems", "steps", "seeds"))]
        for split in ("val_id", MEAN):
            cells += ["{:.3f} / {:.4f}".format(*self.errors(split)), " / ".join(f"{gap:.0f} %" for gap in self.gaps(split))]
        return f"| {' | '.join(map(str, cells))} |"


GENERATED = {tuple(row[name] for name in (*Line._fields, "split")): row for row in load("generated")["rows"]}
LABELS = {(row["structures"], row["jacobian_rows"]): row for row in load("generated")["labels"]}
PARENTS = "the 300 systems"
GENERATED_LINES = {
    f"{PARENTS}, labels only": Line("undistilled", ""),
    f"{PARENTS}, recipe": Line("crack_n2n_v2v_atoms", ""),
    "`rattle=9`, the teacher's labels only": Line("labelled"),
    "`rattle=9`, recipe": Line(),
    "`rattle=9`, recipe without relations": Line("labelled_n2n_v2v_atoms"),
    "`rattle=3`, recipe": Line(structures="rattle3"),
    "`rattle=30`, recipe": Line(structures="rattle30"),
    "nine of `rattle=30` by `--select`, recipe": Line(structures="select9of30"),
    "nine of `rattle=30` by `--select-random`, recipe": Line(structures="random9of30"),
    "`relax=9`, recipe": Line(structures="relax9"),
    "`md=9`, recipe": Line(structures="md9"),
    "`displace+rattle=9`, recipe": Line(structures="displace9"),
    "mixed, the teacher's labels only": Line("labelled", "mixed9"),
    "mixed, recipe": Line(structures="mixed9"),
    f"{PARENTS}, labels only, twice the steps": Line("undistilled", "", "double"),
    "`rattle=9`, recipe, twice the steps": Line(budget="double"),
    "mixed, recipe, twice the steps": Line(structures="mixed9", budget="double"),
    "mixed, recipe with `atom_energies` 300, twice the steps": Line("labelled_crack_n2n_v2v_atoms_300", "mixed9", "double"),
    f"GemNet-dT: {PARENTS}, labels only": Line("undistilled", "", student="gemnet_dT"),
    f"GemNet-dT: {PARENTS}, recipe": Line("crack_n2n_atoms", "", student="gemnet_dT"),
    "GemNet-dT: `rattle=9`, the teacher's labels only": Line("labelled", student="gemnet_dT"),
    "GemNet-dT: `rattle=9`, recipe": Line("labelled_crack_n2n_atoms", student="gemnet_dT"),
}
GENERATED_ROWS = [line.printed(label) for label, line in GENERATED_LINES.items()]


# Speed, memory, screening

LOSS = {(row["method"], row["pairs"]): row for row in load("crack_loss")["results"]}
LOSS_ON_GPU = {(row["method"], row["pairs"]): row for row in load("crack_loss_gpu")["results"]}
STEP = load("step")["students"]["painn"]
PRECISION = load("teacher")["precision"]["mean"]
READ_AHEAD = load("read_ahead")
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
