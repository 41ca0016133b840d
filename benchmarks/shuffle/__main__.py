"""An epoch in blocks with a shuffle buffer (`task.distill.shuffle`), compared with fairchem's uniform shuffle.

    python -m benchmarks.shuffle cost build/shuffle                 # cold reads of a cache and of a dataset; 2 GB of disk
    python -m benchmarks.shuffle accuracy build/shuffle data/demo   # of the demo's PaiNN; 3 minutes a training
    python -m benchmarks.shuffle report build/shuffle               # docs/benchmarks/shuffle.{md,json}

Each measurement is kept in DIRECTORY/shuffle.json. `accuracy` trains what is missing of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.shuffle import accuracy, cost
from benchmarks.shuffle.report import report
from fairchem_crack.io.files import write_json, write_text


def main() -> None:
    """Measure what was requested, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "accuracy", "report"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("data", type=Path, nargs="?", default=Path("data/demo"))
    parser.add_argument("--systems", type=int, default=60_000, help="of the cache that is read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", default=list(accuracy.ORDERS), choices=list(accuracy.ORDERS))
    options = parser.parse_args()
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "shuffle.json"
    if options.what == "report":
        content = read(file)
        write_json(ROOT / "docs/benchmarks/shuffle.json", content)
        write_text(ROOT / "docs/benchmarks/shuffle.md", report(content))
    elif options.what == "cost":
        machine = f"CPU, {platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}"
        measured = {"machine": machine, "cost": cost.measure(directory, options.systems)}
        write_json(file, {**read(file), **measured})
    else:
        for seed, order in product(options.seeds, options.orders):
            if (order, seed) not in {(row["order"], row["seed"]) for row in read(file)["rows"]}:
                rows = accuracy.run(order, seed, options.data.resolve(), directory)
                content = read(file)  # to which the other measurement may have been added meanwhile
                write_json(file, {**content, "rows": [*content["rows"], *rows]})


def read(file: Path) -> dict[str, Any]:
    """What is measured so far."""
    return json.loads(file.read_text()) if file.exists() else {"rows": []}


if __name__ == "__main__":
    main()
