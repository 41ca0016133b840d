"""A run of the accuracy benchmark: its YAML, its training by the stock command, its rows of the CSV."""

from __future__ import annotations

import copy
import csv
import fcntl
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import yaml

from benchmarks import ROOT
from fairchem_crack import keys
from fairchem_crack.io.files import write_text

COMPARISON = Path(__file__).with_name("accuracy.yml")
SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
METRICS = ("energy_mae", "forces_mae", "forces_cosine_similarity", "energy_forces_within_threshold")
ERRORS = ("energy", "forces", "components")
IDENTITY = ("student", "teacher", "method", "seed", "train_systems", "budget")
COLUMNS = (*IDENTITY, "steps", "split", *METRICS, "cpu_seconds", "seconds")
UNDISTILLED, TEACHER = "undistilled", "teacher"
COSTS = "costs.csv"  # see accuracy_costs
VALIDATIONS = 5  # in a training; the best one's weights are evaluated
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # fairchem takes numba's number


@dataclass(frozen=True)
class Run:
    """What sets a training apart. The undistilled has no teacher; the teacher's own evaluation has a teacher and no more."""

    student: str = ""
    teacher: str = ""
    method: str = TEACHER  # or method@coefficient, of its first term
    seed: Optional[int] = None
    train_systems: Optional[int] = None
    budget: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(str(value) for value in asdict(self).values() if value not in ("", None))


@dataclass(frozen=True)
class Comparison:
    """`accuracy.yml`."""

    students: dict[str, str]
    teachers: dict[str, str]
    methods: dict[str, dict]
    validation_systems: int
    jacobian_rows: int
    tuning: dict[str, Any]

    def has(self, method: str, student: str) -> bool:
        """Whether the method exists for the student."""
        return student in self.methods[method].get("students", self.students)

    def terms(self, run: Run) -> list[dict]:
        """What the run's method adds to `loss_functions`."""
        method, _, first = run.method.partition("@")
        terms = copy.deepcopy(self.methods[method].get("terms", []))
        options = [one for term in terms for one in term.values()]
        for one in options:
            if isinstance(one["coefficient"], dict):
                one["coefficient"] = one["coefficient"][run.student]
        factor = float(first) / options[0]["coefficient"] if first else 1
        for one in options:
            one["coefficient"] *= factor
        return terms

    def needs_jacobian(self, run: Run) -> bool:
        """Whether a term of the run reads rows of the teacher's Jacobian."""
        return any(keys.FORCE_JACOBIAN in term for term in self.terms(run))


class Workspace:
    """The directory of a benchmark, and the files in it.

    accuracy.csv         a row for each run and split
    tuning.csv           the same of candidates, on val_id
    costs.csv            seconds of a step of each student, teacher, method and round
    errors.npz           RUN/SPLIT, (3, K) energy, forces, components, see `CheckpointEvaluator.metrics_and_errors`
    data/, caches/       the splits and each teacher's outputs for the training data
    runs/RUN.yml, .log   and, from fairchem, runs/checkpoints/RUN, runs/logs/LOGGER/RUN
    """

    def __init__(self, directory: Path, table: str = "accuracy.csv") -> None:
        self.directory, self.table = directory.resolve(), directory.resolve() / table
        self.errors = self.directory / "errors.npz"
        self.runs = self.directory / "runs"
        self.validation = self.directory / "data" / "validation"

    def training_data(self, systems: int) -> Path:
        """Where `prepare_demo` writes so many systems."""
        return self.directory / "data" / f"train-{systems}"

    def cache(self, run: Run, *, has_jacobian: bool) -> Path:
        """The teacher's cache of a run; one with rows of the Jacobian takes many times as long to write."""
        return self.directory / "caches" / f"{run.teacher}-{run.train_systems}{'-jacobian' * has_jacobian}"

    def config(self, run: Run) -> Path:
        """The run's YAML."""
        return self.runs / f"{run.name}.yml"

    def checkpoint(self, run: Run, name: str) -> Path:
        """A checkpoint of the run."""
        return self.runs / "checkpoints" / run.name / name

    def rows(self) -> list[dict]:
        """The CSV, its numbers as numbers; "" where there is none."""
        if not self.table.exists():
            return []
        with self.table.open(newline="") as file:
            return [{name: _parsed(name, text) for name, text in row.items()} for row in csv.DictReader(file)]

    def append(self, rows: list[dict], errors: Optional[dict[str, np.ndarray]] = None) -> None:
        """Add the rows of a run and the errors of its systems: all or, if killed, no row; processes wait for each other."""
        with (self.directory / ".table.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if errors:
                self._add_errors(errors)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS)
            writer.writeheader()
            writer.writerows([*self.rows(), *rows])
            write_text(self.table, text.getvalue())

    def _add_errors(self, errors: dict[str, np.ndarray]) -> None:
        kept = dict(np.load(self.errors)) if self.errors.exists() else {}
        partial = self.errors.with_suffix(".partial.npz")
        np.savez_compressed(partial, **{**kept, **{name: values.astype(np.float32) for name, values in errors.items()}})
        os.replace(partial, self.errors)


def _parsed(name: str, text: str) -> Any:
    if not text or name in ("student", "teacher", "method", "budget", "split"):
        return text
    return int(text) if name in ("seed", "train_systems", "steps", "round") else float(text)


def run_of(row: dict) -> Run:
    """The run that a row of the CSV is of."""
    return Run(**{name: None if row[name] == "" and name in ("seed", "train_systems") else row[name] for name in IDENTITY})


def finished(rows: list[dict]) -> set[Run]:
    """The runs of the CSV."""
    return {run_of(row) for row in rows}


def schedule(optim: dict, given: dict, *, systems: int, ratio: float) -> dict:
    """The options of `optim` by which a run takes `ratio` times `total_steps`, in whole epochs, at least one.

    Runs on more systems have fewer epochs. `max_epochs`, if it was given, takes the place of `total_steps`.
    """
    batches = math.ceil(systems / optim["batch_size"])
    epochs = max(1, round(ratio * given.get("max_epochs", optim["total_steps"] / batches)))
    steps = epochs * batches
    # The last validation is at most four steps before the end, where the learning rate has come down.
    return {"max_epochs": epochs, "total_steps": steps, "eval_every": max(1, steps // VALIDATIONS)}


def training_config(run: Run, comparison: Comparison, workspace: Workspace, *, given: dict, ratio: float) -> dict:
    """The YAML of a run: the student's own, included, and what its data, method and budget change.

    Args:
        given: options that come last, as in a YAML.
        ratio: of the student's own number of steps.
    """
    from fairchem.core.common.utils import load_config, merge_dicts

    assert run.train_systems is not None
    base_file = str(ROOT / comparison.students[run.student])
    base = merge_dicts(load_config(base_file)[0], given)[0]
    terms = comparison.terms(run)
    config: dict[str, Any] = {
        "includes": [base_file],
        "trainer": "fairchem_crack.CrackDistillTrainer" if terms else "ocp",
        "dataset": {
            "train": {"src": str(workspace.training_data(run.train_systems) / "train")},
            "val": {"src": str(workspace.validation / "val_id")},
        },
        "loss_functions": [*base["loss_functions"], *terms],
        "logger": "tensorboard",
    }
    if terms:
        checkpoint = str(ROOT / comparison.teachers[run.teacher])
        cache = workspace.cache(run, has_jacobian=comparison.needs_jacobian(run))
        teacher = {"checkpoint": checkpoint, "cache": str(cache)}
        own = comparison.methods[run.method.partition("@")[0]].get("distill", {})
        config["task"] = {"distill": merge_dicts({"teacher": teacher}, own)[0]}
    optim = schedule(base["optim"], given.get("optim", {}), systems=run.train_systems, ratio=ratio)
    return merge_dicts(merge_dicts(config, given)[0], {"optim": optim})[0]


def write_config(run: Run, config: dict, workspace: Workspace, *, is_begun: bool) -> None:
    """Write the YAML of a run, unless it was begun with another one.

    Raises:
        ValueError: it was begun with other settings than these.
    """
    file = workspace.config(run)
    if is_begun and file.exists() and _settings(yaml.safe_load(file.read_text())) != _settings(config):
        raise ValueError(
            f"{run.name} was run with other settings than these: compare {file} with accuracy.yml and the options. Choose "
            f"another --output, or remove its rows from {workspace.table} and {workspace.checkpoint(run, '')}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(config, sort_keys=False))


def _settings(config: dict) -> dict:
    """All but the paths, which change when a directory moves."""
    distill = config.get("task", {}).get("distill", {})
    return {
        **{name: value for name, value in config.items() if name not in ("includes", "dataset", "task")},
        "distill": {name: value for name, value in distill.items() if name != "teacher"},
    }


def train(run: Run, workspace: Workspace, *, device: str) -> dict:
    """Train by the stock command, or go on where the last checkpoint was written; what it cost, as columns of the CSV.

    `cpu_seconds` and `seconds` are of the whole process, start and validations included; of one that was interrupted they
    are not known.
    """
    was_interrupted = workspace.checkpoint(run, "checkpoint.pt").exists()
    command = [str(Path(sys.executable).with_name("fairchem")), "--mode", "train"]
    command += ["--config-yml", str(workspace.config(run)), "--seed", str(run.seed)]
    command += ["--run-dir", str(workspace.runs), "--timestamp-id", run.name]
    start = time.perf_counter()
    subprocess.run(command + ["--cpu"] * (device == "cpu"), check=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "steps": yaml.safe_load(workspace.config(run).read_text())["optim"]["total_steps"],
        "cpu_seconds": "" if was_interrupted else used.ru_utime + used.ru_stime,
        "seconds": "" if was_interrupted else seconds,
    }


def work(run: Run, comparison: Comparison, workspace: Workspace, *, splits: list[str], device: str) -> None:
    """Train, if it is no teacher, and evaluate; write the errors of each system, then the rows of the CSV."""
    cost: dict[str, Any] = {}
    checkpoint = ROOT / comparison.teachers.get(run.teacher, "")
    if run.method != TEACHER:
        cost = train(run, workspace, device=device)
        checkpoint = workspace.checkpoint(run, "best_checkpoint.pt")
    from fairchem_crack.evaluation.s2ef.data import FORMATS
    from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator

    evaluator = CheckpointEvaluator(checkpoint, {"format": "lmdb", **FORMATS["lmdb"]}, cpu=device == "cpu")
    rows, errors = [], {}
    for split in splits:
        metrics, of_systems = evaluator.metrics_and_errors(workspace.validation / split)
        errors[f"{run.name}/{split}"] = np.stack([of_systems[name] for name in ERRORS])  # (3, K)
        rows.append({**asdict(run), "split": split, **cost, **{name: metrics[name] for name in METRICS}})
    workspace.append(rows, errors if len(splits) == len(SPLITS) else {})  # a tuning has no intervals


def student_options(student: str) -> dict:
    """The student's own YAML, of those that accuracy.yml names."""
    from fairchem.core.common.utils import load_config

    students = load_comparison(COMPARISON).students
    return load_config(str(ROOT / students[student]))[0]


def load_comparison(file: Path) -> Comparison:
    """Read `accuracy.yml`."""
    try:
        return Comparison(**yaml.safe_load(file.read_text()))
    except TypeError as error:
        raise ValueError(f"{file}: expected the sections {', '.join(Comparison.__annotations__)}; {error}.") from None


def encode(run: Run) -> str:
    """A run as an argument of a command."""
    return json.dumps(asdict(run))


def decode(text: str) -> Run:
    """The run that `encode` wrote."""
    return Run(**json.loads(text))
