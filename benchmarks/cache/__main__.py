"""How a teacher cache grows with the number of systems, and what reading it costs from a cold page cache.

    python -m benchmarks.cache --directory build/cache_benchmark      # about 20 minutes, 9 GB of disk

Each measurement runs in a process of its own. Writes cache.json and cache.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache import measure
from benchmarks.cache.measure import LMDBS, PLAIN, REALISTIC, SMALLEST, Shape
from benchmarks.cache.report import FIELDS, report


def in_process(function: Callable[..., dict], *arguments: Any) -> dict:
    """Call a function in a new process, which has read and imported nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def cache_row(directory: Path, shape: Shape, systems: int, reads: int) -> dict[str, Any]:
    """All figures of a cache of a size; it is deleted in the end."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        row = {"shape": shape.name, **in_process(measure.write, directory, shape, systems)}
        row.update(in_process(measure.finish_cache, directory))
        row.update(in_process(measure.open_cache, directory))
        row["cold"] = {name: in_process(measure.read, directory, reads, fields, True) for name, fields in FIELDS.items()}
        row["warm"] = in_process(measure.read, directory, reads, None, False)
        print(row, flush=True)
        return row
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def layout_row(directory: Path, name: str, systems: int, reads: int) -> dict[str, Any]:
    """The figures of a layout."""
    try:
        return {"layout": name, **in_process(measure.layout, directory, name, systems, reads)}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Measure, and write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="on the disk that is measured; it is emptied")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 300_000])
    parser.add_argument("--small-sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--layout-size", type=int, default=60_000)
    parser.add_argument("--reads", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    place, reads = options.directory / "cache", options.reads
    layouts = [layout_row(place, name, options.layout_size, reads) for name in (*LMDBS, PLAIN)]
    sizes = [(REALISTIC, size) for size in options.sizes] + [(SMALLEST, size) for size in options.small_sizes]
    content = {
        "machine": f"CPU, {platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
        "load": os.getloadavg()[0],
        "command": shlex.join(["python", "-m", "benchmarks.cache", *sys.argv[1:]]),
        "reads": reads,
        "layout_size": options.layout_size,
        "layouts": layouts,
        "rows": [cache_row(place, shape, size, reads) for shape, size in sizes],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cache.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "cache.md").write_text(report(content), encoding="utf-8")
    print(report(content))


if __name__ == "__main__":
    main()
