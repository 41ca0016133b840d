"""Students of a foundation potential, trained on its labels only: students x methods x sizes of the data x seeds.

    python -m benchmarks.foundation systems runs/foundation     # write the systems to label, as ASE databases

In the teacher's environment (docs/teachers.md), in runs/foundation:

    label="python -m fairchem_crack.teacher.label --teacher sevennet:7net-0"
    $label --data candidates/train.db --output caches/sevennet --vectors
    $label --data candidates/val_*.db --output caches/sevennet-validation

Here again:

    python -m benchmarks.foundation collect runs/foundation     # data of the systems within the limits
    python -m benchmarks.foundation run runs/foundation         # what is missing; as often as there are cores
    python -m benchmarks.foundation simulate runs/foundation    # relaxations and dynamics; the teacher's: see simulations.py
    python -m benchmarks.foundation report runs/foundation      # docs/benchmarks/foundation.*

With another teacher, in another directory: `--experiments benchmarks/foundation/nequix.yml`, with the caches named as there.

The rows in the directory's CSVs are the only record of what is done, as in benchmarks.accuracy.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from benchmarks import ROOT
from benchmarks.accuracy.__main__ import fields, run_missing
from benchmarks.accuracy.plan import read_plan
from benchmarks.foundation import EXPERIMENTS, NAME
from benchmarks.foundation.data import collect
from benchmarks.foundation.dft import evaluate_dft
from benchmarks.foundation.starts import simulate_students
from benchmarks.foundation.systems import CANDIDATES, write_candidates
from benchmarks.foundation.training import Foundation, work


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("systems", "write the systems that the teacher labels"),
        ("collect", "write data and references from the teacher's caches"),
        ("run", "train and evaluate what is missing"),
        ("dft", "compare teacher and students with DFT"),
        ("simulate", "relaxations and dynamics by the students, see simulations.py"),
        ("report", "write the page from the rows"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", type=Path)
        if name == "report":
            command.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="directory of the page")
            continue
        command.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="default: experiments.yml")
        if name == "dft":
            command.add_argument("relaxations", type=Path, help="extxyz with the frames of relaxations, see dft.py")
        if name in ("run", "simulate"):
            command.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="of a run: method=all seed=0,1")
        if name == "run":
            command.add_argument("--table", default=NAME, help="of experiments.yml (default: %(default)s)")
            command.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch")
    workspace = Foundation(options.directory.resolve())
    try:
        if options.command == "report":
            from benchmarks.foundation.page import write_report

            write_report(workspace, options.out)
            return 0
        plan = read_plan(options.experiments)
        if options.command == "run":
            options.only = fields(options.only)
            return run_missing(plan, workspace, options, work)
        if options.command == "collect":
            collect(plan, workspace)
            return 0
        if options.command == "simulate":
            simulate_students(plan, workspace, fields(options.only))
            return 0
        if options.command == "dft":
            evaluate_dft(plan, workspace, options.relaxations)
            return 0
        for split, count in CANDIDATES.items():
            write_candidates(workspace.directory / "candidates" / f"{split}.db", split, count)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.foundation {options.command}: {error}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the training of this process, too
    sys.exit(main())
