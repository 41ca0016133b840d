"""Time of a training step at true size: undistilled, distilled from a teacher cache, distilled with the teacher online.

    python -m benchmarks.step                             # CPU, both students, about 10 minutes
    python -m benchmarks.step painn --repeats 10
    python -m benchmarks.step --device cuda --batch-size 8

The shipped YAMLs, fairchem's trainer and ours, an eqV2_31M with random weights in the published format, slabs with random
energies and forces. The three kinds of step, and the teacher by itself, are interleaved on the same batches: a machine that
becomes slower does so for all of them. Writes step.json and step.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports

from benchmarks import ROOT
from benchmarks.step.report import TEACHER, cache_ratios, missed, report, summary

sys.path.insert(0, str(ROOT / "tests/tools"))

import make_published_checkpoint

from benchmarks.step.cache import measure_cache
from benchmarks.step.runs import CACHE, measure_steps, write_dataset
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems

STUDENTS = {"painn": 5, "gemnet_dT": 3}  # and how many rounds it is measured for
SYSTEMS, ATOMS = 8, 73  # of about so many atoms each, near the mean of OC20


def run_case(options: argparse.Namespace) -> dict:
    """Measure the cache or one student in this process."""
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    setup_imports()
    if options.case == CACHE:
        return measure_cache(options.directory, device=options.device)
    repeats = options.repeats or STUDENTS[options.case]
    return measure_steps(
        options.case, options.directory, repeats=repeats, batch_size=options.batch_size, device=options.device
    )


def main() -> None:
    """Write teacher, data and cache, run each student in a process of its own, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=list(STUDENTS), help=f"of {', '.join(STUDENTS)}; both by default")
    parser.add_argument("--systems", type=Path, help=f"a file that ASE reads, its first {SYSTEMS}; else O on fcc(111)")
    parser.add_argument("--repeats", type=int, help=f"rounds (default: {STUDENTS})")
    parser.add_argument("--batch-size", type=int, default=2, help=f"systems per step, of {SYSTEMS}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--directory", type=Path, help="where the teacher, 240 MB, and the data are written for the time")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="fairchem|torch")
    if options.case:
        (options.directory / f"{options.case}.json").write_text(json.dumps(run_case(options)))
        return
    raw = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        make_published_checkpoint.write_published_checkpoint(TEACHER, Path(directory) / f"{TEACHER}.pt")
        systems = read_systems(options.systems, SYSTEMS) if options.systems else make_systems(ATOMS, SYSTEMS)
        atoms = write_dataset(systems, Path(directory) / "train")
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.step", *_passed_on(options), "--directory", directory]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), str(options.threads))  # fairchem takes numba's
        for case in (CACHE, *options.students):
            if subprocess.run([*command, "--case", case], env={**os.environ, **threads}).returncode != 0:
                sys.exit(f"{case} failed; see above.")
            raw[case] = json.loads((Path(directory) / f"{case}.json").read_text())
    students, cache = {name: summary(raw[name]) for name in options.students}, cache_ratios(raw[CACHE])
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {platform.machine()}"
    content = {
        "machine": f"{device}, {options.threads} thread{'s' * (options.threads > 1)}, torch {torch.__version__}",
        "command": shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]]),
        "batch_size": options.batch_size,
        "atoms": atoms,
        "students": students,
        "cache": cache,
        "missed": missed(students, cache),
        "raw": raw,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "step.json").write_text(json.dumps(content, indent=1))
    (options.out / "step.md").write_text(report(content), encoding="utf-8")
    print(report(content))


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("repeats", "batch_size", "threads", "device")
    given = {name.replace("_", "-"): getattr(options, name) for name in names if getattr(options, name) is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


if __name__ == "__main__":
    main()
