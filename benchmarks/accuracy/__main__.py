"""Errors of distilled students: students x methods x teachers x sizes of the data x seeds, as experiments.yml says.

    python -m benchmarks.accuracy run runs/accuracy                            # what is missing of all
    python -m benchmarks.accuracy run runs/accuracy --only method=crack,n2n seed=0,1
    python -m benchmarks.accuracy run runs/accuracy --table tuning             # coefficients; enter the best by hand
    python -m benchmarks.accuracy cost runs/accuracy                           # of a step; on a quiet machine
    python -m benchmarks.accuracy run runs/accuracy --table generated          # on structures that the teacher labelled
    python -m benchmarks.accuracy run runs/accuracy --table relations          # when relations help
    python -m benchmarks.accuracy embeddings runs/accuracy                     # errors of the embeddings of that table
    python -m benchmarks.accuracy report runs/accuracy                         # docs/benchmarks/{accuracy,generated,...}.*
    python -m benchmarks.accuracy report docs/benchmarks/accuracy              # the same from the published rows

The rows in the directory's CSVs are the only record of what is done. A run trains its student by the stock `fairchem`
command on one thread, evaluates its best checkpoint and appends its rows. Start the command as often as there are cores:
a process takes the runs that no other has. With --device cuda several processes share a GPU well only under CUDA's MPS
(`nvidia-cuda-mps-control -d`): students so small are launches of kernels and little else. After a kill, also by
`timeout 3h`, the same command resumes at the last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.accuracy.embeddings import measure_embeddings
from benchmarks.accuracy.page import write_report
from benchmarks.accuracy.plan import EXPERIMENTS, Plan, Run, read_plan
from benchmarks.accuracy.table import locked
from benchmarks.accuracy.training import Workspace, work

LOG_TAIL = 15  # lines of a failed run that are shown


def run_missing(plan: Plan, workspace: Workspace, options: argparse.Namespace, work: Callable[..., dict]) -> int:
    """Do the runs without rows that no other process is at; the exit status says whether one of them failed.

    Args:
        work: trains a run, and appends its rows.
    """
    runs, table, failed = plan.runs(options.table, options.only), workspace.table(options.table), []
    for number, run in enumerate(runs, start=1):
        with locked(workspace.file(run, "lock"), wait=False) as lock:
            if lock is None or run in map(Run.of, table.rows()):
                continue
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            try:
                row = work(run, plan, workspace, options.table, device=options.device, lock=lock)
            except Exception as error:  # the other runs can do without this one
                failed.append(run)
                print("\n".join([f"    FAILED: {error}", *_log_tail(workspace.file(run, "log"))]), flush=True)
            else:
                print(f"    {row['split']} {row['energy_mae']:.3f} eV, {row['forces_mae']:.4f} eV/A", flush=True)
    done = set(map(Run.of, table.rows()))
    print(f"{sum(run in done for run in runs)} of {len(runs)} runs are in {table.file}.")
    if failed:
        print(f"Failed: {', '.join(run.name for run in failed)}.")
    return 1 if failed else 0


def _log_tail(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [f"    {line}" for line in [f"{log} ends with", *lines[-LOG_TAIL:]]]


def fields(settings: list[str]) -> dict[str, list[Any]]:
    """`seed=0,1` as {"seed": [0, 1]}.

    Raises:
        ValueError: there is no value.
    """
    parts = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
    if "" in parts.values():
        raise ValueError(f"--only {' '.join(settings)}: expected NAME=VALUE, for example method=crack seed=0,1.")
    return {name: [yaml.safe_load(value) for value in values.split(",")] for name, values in parts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("run", "train and evaluate what is missing"),
        ("cost", "time a step of each method, side by side"),
        ("embeddings", "measure the embeddings of what is trained of the table `relations`"),
        ("report", "write the pages from the rows"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", type=Path)
        if name == "report":
            command.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="directory of the pages")
            continue
        command.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="of a run: method=crack seed=0,1")
        command.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="default: experiments.yml")
        command.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
        if name in ("run", "cost"):
            command.add_argument("--table", default="accuracy", help="of experiments.yml (default: accuracy)")
        if name == "cost":
            command.add_argument("--rounds", type=int, default=30, help="steps of each method (default: 30)")
    options = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch")
    workspace = Workspace(options.directory.resolve())
    try:
        if options.command == "report":
            write_report(workspace, options.out)
            return 0
        options.only = fields(options.only)
        plan = read_plan(options.experiments)
        if options.command == "run":
            return run_missing(plan, workspace, options, work)
        if options.command == "embeddings":
            measure_embeddings(plan, workspace, options)
            return 0
        from benchmarks.accuracy.costs import measure_costs

        measure_costs(plan, workspace, options)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.accuracy {options.command}: {error}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the training of this process, too
    sys.exit(main())
