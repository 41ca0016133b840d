"""What numbers below 1.2e-38 cost on this CPU: a training step and a forward of the demo's students, with them and without.

    python -m benchmarks.denormals --data data/demo/train    # 2 minutes

fairchem's own trainer, of undistilled students. Both ways are interleaved, on the same batches, in alternating order. Writes
denormals.json and denormals.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from shutil import copytree

import torch
from fairchem.core.common.utils import load_config, setup_imports

from benchmarks import ROOT
from benchmarks.step.runs import Clock, build_trainer, endless, take_step

STUDENTS = ("painn", "gemnet_dT")
WAYS = {"kept": False, "flushed": True}
PARTS = {"step": "training step", "forward": "forward"}
WARM_UP = 3  # rounds; torch.jit, which PaiNN uses, compiles in its first two runs


def measure(student: str, data: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of CPU of each part and way, one for each round."""
    config = {"task": {}, **load_config(str(ROOT / f"configs/oc20/demo/{student}.yml"))[0]}
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(data)}}
    config["optim"]["num_workers"] = 0
    trainer = build_trainer(config, "cpu")
    trainer.metrics = {}
    seconds: dict[str, dict[str, list[float]]] = {part: defaultdict(list) for part in PARTS}
    batches = endless(trainer)
    for number in range(WARM_UP + rounds):
        for way in list(WAYS)[:: -1 if number % 2 else 1]:
            torch.set_flush_denormal(WAYS[way])
            clock = Clock()
            batch, _ = take_step(trainer, batches)
            passed = {"step": clock.read()["cpu"]}
            with torch.no_grad():
                trainer._forward(batch)
            passed["forward"] = clock.read()["cpu"]
            for part in PARTS if number >= WARM_UP else ():
                seconds[part][way].append(passed[part])
    return seconds


def ratios(seconds: dict[str, list[float]]) -> list[float]:
    """Lower quartile, median and upper quartile over the rounds of the time with denormals over that without."""
    return statistics.quantiles((kept / flushed for kept, flushed in zip(seconds["kept"], seconds["flushed"])), n=4)


def report(content: dict) -> str:
    """The table, as markdown."""
    lines = [
        "# Numbers below 1.2e-38",
        "",
        f"{content['machine']}. CPU time of a training step, by fairchem's own trainer, and of a forward of the demo's "
        "students, with denormal numbers kept and taken for 0 (`torch.set_flush_denormal`), interleaved. Medians over the "
        f"rounds, of the ratios too, in brackets quartiles. Load of the machine before it began: {content['load']:.1f}. "
        f"`{content['command']}` makes this page and `denormals.json`.",
        "",
        "| student | | rounds | kept, ms | flushed, ms | kept / flushed |",
        "|---|---|---|---|---|---|",
    ]
    for student, parts in content["students"].items():
        for part, seconds in parts.items():
            times = [f"{1000 * statistics.median(seconds[way]):.0f}" for way in WAYS]
            low, median, high = ratios(seconds)
            cells = [student, PARTS[part], str(len(seconds["kept"])), *times, f"{median:.2f} [{low:.2f}, {high:.2f}]"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the demo's training data")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each way")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    setup_imports()
    torch.set_num_threads(1)
    content = {
        "machine": f"CPU, {platform.machine()}, 1 thread of {os.cpu_count()} cores, torch {torch.__version__}",
        "load": os.getloadavg()[0],
        "command": shlex.join(["python", "-m", "benchmarks.denormals", *sys.argv[1:]]),
        "students": {},
    }
    with tempfile.TemporaryDirectory() as directory:
        for student in STUDENTS:  # each on data of its own: a process opens an LMDB only once
            data = copytree(options.data, Path(directory) / student)
            content["students"][student] = measure(student, data, options.rounds)
    (options.out / "denormals.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "denormals.md").write_text(report(content), encoding="utf-8")
    print(report(content))


if __name__ == "__main__":
    main()
