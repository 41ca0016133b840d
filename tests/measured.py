"""The figures of the benchmarks that pages print, from the JSON and the rows below docs/benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from benchmarks.accuracy import report as accuracy_report
from benchmarks.accuracy.runs import COMPARISON, Run, Workspace, load_comparison
from benchmarks.accuracy.summary import Group, Results
from benchmarks.screening.report import ratio
from fairchem_crack.evaluation.intervals import t_interval

ROOT = Path(__file__).parents[1]


def load(name: str) -> dict:
    return json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())


# Accuracy

ACCURACY = load("accuracy")
GROUPS = accuracy_report.groups_of(ACCURACY)
RESULTS = Results(Workspace(ROOT / "docs/benchmarks/accuracy"))
MAIN = Group("painn", "equiformer_v2", 300, "steps")
IN_TIME = Group("painn", "equiformer_v2", 300, "time")
GEMNET = Group("gemnet_dT", "equiformer_v2", 300, "steps")
ESCN = Group("painn", "escn", 300, "steps")
OOD = "val_ood_both"
OC20 = "crack_n2n_v2v_atoms"  # the recipe of OC20's configs
SIZES = [100, 300, 1000, 3000]
METHODS = load_comparison(COMPARISON)
TUNING = METHODS.tuning
SINGLE = ("n2n", "v2v", "infonce", "teacher_labels", "atom_energies", "hessian")
ANCHORS = ("crack", "crack_symmetric", "crack_teacher_anchor")


def errors(method: str, group: Group = MAIN, split: str = "val_id") -> list[float]:
    """Energy MAE in eV, force MAE in eV/A."""
    metrics = GROUPS[group][method]["splits"][split]
    return [metrics[name].estimate for name in ("energy_mae", "forces_mae")]


def gaps(method: str, group: Group = MAIN, split: str = "val_id", *, ends: bool = False) -> list[float]:
    """Of energy and forces the gap closed in percent, each with the ends of its interval if asked for."""
    metrics = GROUPS[group][method]["splits"][split]
    intervals = [metrics[f"gap_{name}"] for name in ("energy", "forces")]
    values = [[one.estimate, one.low, one.high] if ends else [one.estimate] for one in intervals]
    return [100 * value for part in values for value in part]


def cost(method: str, group: Group = MAIN) -> float:
    """Of a step, in undistilled ones."""
    return GROUPS[group][method]["step_cost"].estimate


def paired(method: str, other: str, group: Group = MAIN, split: str = "val_id") -> list[float]:
    """Method less the other in the errors of energy and forces: mean and half width of the t-interval over shared seeds."""
    shared = sorted(set(RESULTS.seeds(group, method)) & set(RESULTS.seeds(group, other)))
    found = []
    for column in ("energy_mae", "forces_mae"):
        of_method, of_other = (
            [RESULTS.value(group.run(name, seed), split, column) for seed in shared] for name in (method, other)
        )
        interval = t_interval([one - another for one, another in zip(of_method, of_other)])
        found += [interval.estimate, interval.high - interval.estimate]
    return found


def criteria(method: str, *candidates: float) -> list[float]:
    """Of these candidates of PaiNN's tuning, or of all: the error relative to the undistilled student."""
    found = [one for one in ACCURACY["tuning"] if (one["method"], one["student"]) == (method, "painn")]
    by_coefficient = {one["coefficient"]: one["criterion"] for one in found}
    return [by_coefficient[candidate] for candidate in candidates or by_coefficient]


def tuned_steps(student: str) -> int:
    (steps,) = {one["steps"] for one in ACCURACY["tuning"] if one["student"] == student}
    return steps


def of(systems: int) -> Group:
    return Group("painn", "equiformer_v2", systems, "steps")


def taken_off_forces(systems: int) -> float:
    return errors("undistilled", of(systems))[1] - errors(OC20, of(systems))[1]


def steps(method: str, group: Group = MAIN) -> int:
    return GROUPS[group][method]["steps"]


def seeds(method: str, group: Group = MAIN) -> int:
    return len(GROUPS[group][method]["seeds"])


def coefficients(method: str, student: str = "painn") -> dict[str, float]:
    """Of each term of a method, as accuracy.yml has them."""
    terms = METHODS.terms(Run(student, "", method, 0, 300, "steps"))
    return {name: options["coefficient"] for term in terms for name, options in term.items()}


def look_alikes() -> float:
    return METHODS.methods["crack_look_alikes"]["distill"]["relations"]["false_negative_threshold"]


CANDIDATES = {name: len(METHODS.tuning["coefficients"]["painn"][name]) for name in (*SINGLE, "crack")}


# Speed, memory, screening

LOSS = {(row["method"], row["pairs"]): row for row in load("crack_loss")["results"]}
LOSS_ON_GPU = {(row["method"], row["pairs"]): row for row in load("crack_loss_gpu")["results"]}
STEP = load("step")["students"]["painn"]
PRECISION = load("teacher")["precision"]["mean"]
READ_AHEAD = load("read_ahead")
TRUE_SIZE = {row["name"]: row["step"]["seconds"] for row in load("true_size")["results"]}
SCREENING = load("screening")
DEMO = SCREENING["demo"]


def cached_over_undistilled(student: str, *, loaded: bool = False) -> float:
    """Median over the rounds on a GPU; `loaded`: without the time of loading."""
    rows = load("gpu")["parts"]["steps"]["rows"]
    rounds = [row["seconds"] for row in rows if row["what"] == "round" and row["student"] == student]
    cut = {kind: [one[kind] - loaded * one[f"{kind} loading"] for one in rounds] for kind in ("cached", "undistilled")}
    return median(cut["cached"][i] / cut["undistilled"][i] for i in range(len(rounds)))


def online_over_undistilled(teacher: str) -> float:
    """A step with the teacher online over the same without it, of `true_size`."""
    seconds = TRUE_SIZE[teacher]
    return sum(seconds.values()) / (sum(seconds.values()) - seconds["teacher"])


def spearman(name: str) -> list[float]:
    found = DEMO["agreement"][f"{name}, EMT"]
    return [found["spearman"], *found["spearman_interval"]]


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
    return 1000 * median(one["waiting"] for one in READ_AHEAD["rounds"][way])
