"""`fairchem-crack prepare-demo` and `summarize-demo`: the two ends of `make demo`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from fairchem_crack.io.trust import TRUST_HELP


def prepare(arguments: list[str]) -> None:
    """Write the demo's data."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack prepare-demo", description="Write the demo's splits as OC20-format LMDBs.", allow_abbrev=False
    )
    own.add_argument("directory", type=Path)
    own.add_argument("--train", type=int, default=300, help="systems in train (default: 300)")
    own.add_argument("--val", type=int, default=200, help="systems in each validation split (default: 200)")
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = own.parse_args(arguments)
    _quiet()
    from fairchem_crack.demo.prepare import SPLITS, prepare_demo

    sizes = {split: options.train if split == "train" else options.val for split in SPLITS}
    try:
        prepare_demo(options.directory, sizes=sizes, seed=options.seed, workers=options.workers)
    except (ValueError, OSError) as error:
        sys.exit(f"{own.prog}: {error}")


def summarize(arguments: list[str]) -> None:
    """Evaluate the demo's models."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack summarize-demo",
        description="Evaluate the demo's models: table, picture, summary.json.",
        allow_abbrev=False,
    )
    own.add_argument("run_dir", type=Path, help="the --run-dir of the trainings")
    own.add_argument("--data", type=Path, default=Path("data/demo"))
    own.add_argument("--teacher", type=Path, required=True)
    own.add_argument("--seeds", type=int, nargs="+", default=[0])
    own.add_argument("--trust", action="store_true", help=TRUST_HELP)
    options = own.parse_args(arguments)
    _quiet()
    from fairchem_crack.demo.summary import summarize_demo

    try:
        summarize_demo(options.run_dir, data=options.data, teacher=options.teacher, seeds=options.seeds)
    except (ValueError, OSError) as error:
        sys.exit(f"{own.prog}: {error}")


def _quiet() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")  # deprecations, which are theirs to heed
