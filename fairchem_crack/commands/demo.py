"""`fairchem-crack prepare-demo`: the beginning of `make demo`."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path


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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from fairchem_crack.demo.prepare import SPLITS, prepare_demo

    sizes = {split: options.train if split == "train" else options.val for split in SPLITS}
    prepare_demo(options.directory, sizes=sizes, seed=options.seed, workers=options.workers)
