"""Accuracy of distilled students: methods x students x seeds by one command, resumable, into one CSV; a page by another.

    python -m benchmarks.accuracy run --students painn --methods undistilled crack --seeds 0 1 2 --output runs/accuracy
    python -m benchmarks.accuracy run ... --train-systems 75 300 1200   # a learning curve, on the same validation splits
    python -m benchmarks.accuracy cost --students painn --methods undistilled crack --output runs/accuracy  # of a step
    python -m benchmarks.accuracy run ... --budget time                 # once their costs are there
    python -m benchmarks.accuracy report runs/accuracy                  # docs/benchmarks/accuracy.{md,json,png}
    python -m benchmarks.accuracy report docs/benchmarks/accuracy       # the same from the published CSV

`run` prepares the demo's data and each teacher's cache once, then trains every missing (student, method, seed, size) by the
stock `fairchem` command, one thread each, and evaluates its best checkpoint on the four validation splits. Seeds are the
outermost loop: stopped at any time, every method has the same seeds but for the last. The same command resumes: a run of the
CSV is not run again, an interrupted one resumes from its checkpoint. accuracy.yml says what the methods are.

Budgets. `steps`: every run takes the student's optim.total_steps, whatever the data. `time`: every method takes as long as
the undistilled student did for these: its number of steps over the cost of a step, as `cost` measured it, in whole epochs
and at least one; the learning rate's schedule is fitted to them. The undistilled student is the same run in both.

`tune` trains each candidate coefficient of accuracy.yml with a seed of its own, evaluates it on val_id alone, and says which
has the least mean of energy and force MAE relative to the undistilled student. Enter it in accuracy.yml by hand.

`cost` times a step of each method, on a CPU its CPU time: all of them in one process, in turn, on the same batches. Give it
a quiet machine.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy.page import tuning_table
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.runs import (
    COMPARISON,
    COSTS,
    ONE_THREAD,
    ROOT,
    SPLITS,
    UNDISTILLED,
    Comparison,
    Run,
    Workspace,
    decode,
    encode,
    finished,
    load_comparison,
    run_of,
    training_config,
    work,
    write_config,
)
from benchmarks.accuracy.summary import choices, step_costs, time_ratio

LOG_TAIL = 15  # lines of a failed run that are shown
POLL = 0.5  # seconds


def wanted_runs(comparison: Comparison, options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, seeds outermost, after the teacher's evaluation.

    Raises:
        ValueError: a student, teacher or method that accuracy.yml does not have.
    """
    for asked, known in (
        (options.students, comparison.students),
        (options.methods, comparison.methods),
        ([options.teacher], comparison.teachers),
    ):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not in {options.comparison}. Known are {', '.join(known)}.")
    runs = [Run(teacher=options.teacher)]
    for seed in options.seeds:
        for systems in options.train_systems:
            for student in options.students:
                for method in options.methods:
                    if not comparison.has(method, student):
                        continue
                    is_alone = method == UNDISTILLED
                    budget = "steps" if is_alone else options.budget
                    runs.append(Run(student, "" if is_alone else options.teacher, method, seed, systems, budget))
    for student in options.students:
        for method in options.methods:
            if not comparison.has(method, student):
                print(f"{method} is left out for {student}: accuracy.yml has it for others.")
    return runs


def tuning_runs(comparison: Comparison, options: argparse.Namespace) -> list[Run]:
    """The undistilled student and every candidate, with the seed of the tuning."""
    options.seeds, options.budget = [comparison.tuning["seed"]], "steps"
    runs = []
    for run in wanted_runs(comparison, options)[1:]:
        if run.method == UNDISTILLED:
            runs.append(run)
        for coefficient in comparison.tuning["coefficients"][run.student].get(run.method, []):
            runs.append(Run(**{**run.__dict__, "method": f"{run.method}@{coefficient:g}"}))
    return runs


def prepare(comparison: Comparison, workspace: Workspace, runs: list[Run], options: argparse.Namespace) -> None:
    """Write the data and the teacher's caches that the runs need, unless they are there."""
    from fairchem_crack.demo.prepare import prepare_demo

    sizes = sorted({run.train_systems for run in runs if run.train_systems})
    prepare_demo(
        workspace.validation, sizes=dict.fromkeys(SPLITS, comparison.validation_systems), seed=0, workers=options.jobs
    )
    for systems in sizes:
        prepare_demo(workspace.training_data(systems), sizes={"train": systems}, seed=0, workers=options.jobs)
    for run in runs:
        if run.teacher and run.train_systems:
            write_cache(run, comparison, workspace, options)


def write_cache(run: Run, comparison: Comparison, workspace: Workspace, options: argparse.Namespace) -> None:
    """Run `fairchem-crack cache-teacher` over the run's training data, unless the cache is there."""
    rows = comparison.jacobian_rows if comparison.needs_jacobian(run) else 0
    cache = workspace.cache(run, has_jacobian=rows > 0)
    if (cache / "header.json").exists():  # written last
        return
    config = {
        "includes": [str(ROOT / comparison.students[run.student])],
        "dataset": {"train": {"src": str(workspace.training_data(run.train_systems) / "train")}},
        "task": {"distill": {"teacher": {"checkpoint": str(ROOT / comparison.teachers[run.teacher]), "cache": str(cache)}}},
    }
    file = cache.with_name(f"{cache.name}.yml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [str(Path(sys.executable).with_name("fairchem-crack")), "cache-teacher", "--vectors"]
    command += ["--jacobian-rows", str(rows)]
    command += ["--config-yml", str(file), *["--cpu"] * (options.device == "cpu")]
    if subprocess.run(command, env={**os.environ, **ONE_THREAD}).returncode != 0:
        raise ValueError(f"{cache}: not written; see above.")


def write_configs(
    runs: list[Run], comparison: Comparison, workspace: Workspace, options: argparse.Namespace, rows: list[dict]
) -> None:
    """Write the YAML of every run; refuse one that was begun with other settings."""
    done, given = finished(rows), nested(options.set)
    costs = step_costs(Workspace(workspace.directory, COSTS).rows())
    for run in runs:
        if not run.student:
            continue
        is_begun = run in done or workspace.checkpoint(run, "checkpoint.pt").exists()
        if is_begun and run.budget == "time":
            continue  # the costs may have been measured anew since
        ratio = time_ratio(costs, run)
        config = training_config(run, comparison, workspace, given=given, ratio=ratio)
        write_config(run, config, workspace, is_begun=is_begun)


def run_all(runs: list[Run], workspace: Workspace, options: argparse.Namespace, *, deadline: float, lock: int) -> list[Run]:
    """Run each in a process of its own, `--jobs` side by side, until the deadline; return those that failed."""
    waiting, failed = list(runs), []
    running: dict[subprocess.Popen, tuple[Run, float]] = {}
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < options.jobs and time.monotonic() < deadline:
                run = waiting.pop(0)
                running[_start(run, workspace, options, lock)] = (run, time.monotonic())
            time.sleep(POLL)
            for process in [one for one in running if one.poll() is not None]:
                run, start = running.pop(process)
                count = f"{len(runs) - len(waiting) - len(running)}/{len(runs)}"
                print(f"[{count}] {run.name}, {time.monotonic() - start:.0f} s: {_outcome(run, workspace)}", flush=True)
                if process.returncode != 0:
                    failed.append(run)
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if waiting:
        print(f"The {options.hours:g} hours are over; {len(waiting)} runs are left. The same command goes on.")
    return failed


def _start(run: Run, workspace: Workspace, options: argparse.Namespace, lock: int) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.accuracy", "work", encode(run), str(workspace.table)]
    command += ["--comparison", str(options.comparison), "--device", options.device, "--splits", *options.splits]
    workspace.runs.mkdir(parents=True, exist_ok=True)
    with (workspace.runs / f"{run.name}.log").open("a") as log:
        # The lock is inherited: while a run is at work, even when its parent was killed, no other may start.
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,
            pass_fds=[lock],
        )


def _outcome(run: Run, workspace: Workspace) -> str:
    """Its errors on the first split; or why there are none."""
    for row in workspace.rows():
        if run_of(row) == run:
            return f"{row['split']} {row['energy_mae']:.3f} eV, {row['forces_mae']:.4f} eV/A"
    log = workspace.runs / f"{run.name}.log"
    tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL:]
    return "\n".join([f"FAILED, {log} ends with", *(f"    {line}" for line in tail)])


def run(options: argparse.Namespace) -> int:
    """Train and evaluate what is missing; the exit status says whether a run failed."""
    start = time.monotonic()
    comparison = load_comparison(options.comparison)
    is_tuning = options.command == "tune"
    workspace = Workspace(options.output, "tuning.csv" if is_tuning else "accuracy.csv")
    runs = (tuning_runs if is_tuning else wanted_runs)(comparison, options)
    workspace.directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(workspace.directory / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{workspace.directory}: another benchmark, or a run it left behind, is at work there.") from None
    rows = workspace.rows()
    write_configs(runs, comparison, workspace, options, rows)
    missing = [run for run in runs if run not in finished(rows)]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {workspace.table}.", flush=True)
    if missing:
        prepare(comparison, workspace, missing, options)
    failed = run_all(missing, workspace, options, deadline=start + 3600 * options.hours, lock=lock)
    os.close(lock)
    if failed:
        print(f"Failed: {', '.join(run.name for run in failed)}.")
    if is_tuning:
        print(tuning_table(choices(workspace.rows())))
    return 1 if failed else 0


def cost(options: argparse.Namespace) -> None:
    """Measure what a step of each method costs."""
    from accuracy_costs import measure_costs

    comparison = load_comparison(options.comparison)
    workspace = Workspace(options.output, COSTS)
    runs = wanted_runs(comparison, options)[1:]
    if UNDISTILLED not in options.methods:
        raise ValueError(f"--methods: `{UNDISTILLED}` is missing, whose step the others are compared with.")
    prepare(comparison, workspace, runs, options)
    measure_costs(runs, comparison, workspace, options)


def nested(settings: list[str]) -> dict[str, Any]:
    """`a.b=1` as a YAML would say it."""
    found: dict[str, Any] = {}
    for setting in settings:
        path, is_given, value = setting.partition("=")
        if not is_given:
            raise ValueError(f"--set {setting}: expected an option of the YAML and its value, optim.max_epochs=1 say.")
        *parents, name = path.split(".")
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = yaml.safe_load(value)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,tune,cost,report}")
    for name, text in (
        ("run", "train and evaluate what is missing"),
        ("tune", "compare candidate coefficients"),
        ("cost", "time a step of each method, side by side"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--students", nargs="+", default=["painn"])
        command.add_argument("--methods", nargs="+", required=True)
        command.add_argument("--teacher", default="equiformer_v2")
        command.add_argument("--train-systems", type=int, nargs="+", default=[300])
        command.add_argument("--output", type=Path, required=True, metavar="DIR")
        command.add_argument("--comparison", type=Path, default=COMPARISON)
        command.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
        if name == "cost":
            command.add_argument("--rounds", type=int, default=30, help="steps of each method (default: 30)")
            command.set_defaults(seeds=[0], budget="steps", jobs=1)
            continue
        command.add_argument("--jobs", type=int, default=1, help="trainings side by side, one thread each (default: 1)")
        command.add_argument("--hours", type=float, default=float("inf"), help="after which no run is begun any more")
        command.add_argument("--set", nargs="+", default=[], metavar="a.b=1", help="options of every run's YAML")
        if name == "run":
            command.add_argument("--seeds", type=int, nargs="+", default=[0])
            command.add_argument("--budget", default="steps", choices=["steps", "time"])
        command.set_defaults(splits=SPLITS if name == "run" else SPLITS[:1])

    report = commands.add_parser("report", help="write the page from the CSV")
    report.add_argument("directory", type=Path)
    report.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="directory of accuracy.{md,json,png}")

    worker = commands.add_parser("work")  # one run, in a process of its own
    worker.add_argument("run", type=decode)
    worker.add_argument("table", type=Path)
    worker.add_argument("--comparison", type=Path)
    worker.add_argument("--device")
    worker.add_argument("--splits", nargs="+")

    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch")
    try:
        if options.command == "work":
            workspace = Workspace(options.table.parent, options.table.name)
            comparison = load_comparison(options.comparison)
            work(options.run, comparison, workspace, splits=options.splits, device=options.device)
        elif options.command == "report":
            write_report(options.directory, options.out)
        elif options.command == "cost":
            cost(options)
        else:
            return run(options)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"accuracy.py {options.command}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
