"""A small screening: adsorption energies on many surfaces, with the demo's teacher and with a student of it.

    python -m benchmarks.screening --student runs/demo/checkpoints/crack-0/best_checkpoint.pt \
        --undistilled runs/demo/checkpoints/undistilled-0/best_checkpoint.pt      # CPU, half an hour
    python -m benchmarks.screening --true-size                                    # CPU, 10 to 15 minutes
    python -m benchmarks.screening --true-size --device cuda --batch-size 32

The first relaxes one adsorbate from every site of many of the demo's surfaces, with each model and with EMT, the potential
that labelled the demo's data; and runs each model at constant energy from the same thermalised starts. The second times
forwards of a PaiNN h512 and of EquiformerV2 31M and 153M: random weights in the published format, so no geometry is relaxed.
Each writes its part of screening.json, and screening.md and screening.png anew, to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.emt import EMT

from benchmarks import ROOT
from benchmarks.screening.report import draw, report
from benchmarks.screening.runs import (
    HOT,
    TIME_STEP,
    agreement,
    best_sites,
    candidates,
    constant_energy,
    forwards,
    rank_difference,
    relax_all,
    relax_emt,
    surfaces,
    thermalised,
)
from fairchem_crack.evaluation.speed.command import machine
from fairchem_crack.evaluation.speed.runs import RELAXES_IN_BATCHES, Model
from fairchem_crack.evaluation.speed.systems import make_systems
from fairchem_crack.io.files import write_text

TEACHER = ROOT / "configs/oc20/demo/teacher_equiformer_v2.pt"
TOOL = ROOT / "tests/tools/make_published_checkpoint.py"
TRUE_SIZE = ("painn_h512", "eqV2_31M", "eqV2_153M")  # the student first
ATOMS = 73  # of a system of true size: near the mean of OC20


def screen(options: argparse.Namespace) -> dict[str, Any]:
    """The part called `demo` of the JSON file."""
    paths = {"student": options.student, "undistilled": options.undistilled, "teacher": options.teacher}
    models = {name: Model(path, cpu=options.device == "cpu") for name, path in paths.items() if path is not None}
    starts = candidates(surfaces(options.surfaces), options.adsorbate)
    print(f"{len(starts)} starts on {len({start.surface for start in starts})} surfaces", flush=True)
    limits = {"fmax": options.fmax, "most_steps": options.steps}
    relaxed: dict[str, dict[str, list]] = relax_all(models, starts, batch_size=options.batch_size or 32, **limits)
    relaxed["EMT"] = relax_emt(starts, **limits)
    best = {name: best_sites(starts, values["energy"]) for name, values in relaxed.items()}
    names = list(best["EMT"])
    energies = {name: np.array([sites[surface][0] for surface in names]) for name, sites in best.items()}
    top = min(options.top, len(names))
    pairs = [(name, reference) for name in models for reference in ("EMT", "teacher") if name != reference]
    return {
        "machine": machine(next(iter(models.values())).device),
        "checkpoints": {
            name: [os.path.relpath(model.checkpoint, ROOT), model.architecture, model.parameters]
            for name, model in models.items()
        },
        "adsorbate": options.adsorbate,
        "starts": len(starts),
        "batch_size": options.batch_size or 32,
        "relaxes_in_batches": RELAXES_IN_BATCHES,
        "top": top,
        **limits,
        "surfaces": names,
        "energies": {name: values.tolist() for name, values in energies.items()},
        "sites": {name: [sites[surface][1] for surface in names] for name, sites in best.items()},
        "relaxed": relaxed,
        "agreement": {
            f"{name}, {reference}": agreement(energies[name], energies[reference], top=top) for name, reference in pairs
        },
        "rank_difference": rank_difference(energies["student"], energies["undistilled"], energies["EMT"])
        if options.undistilled
        else None,
        "dynamics": run_dynamics(models, starts, options),
    }


def run_dynamics(models: dict[str, Model], starts: list, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Each model, and EMT, at constant energy from each of a few thermalised starts."""
    calculators = {**{name: model.calculator for name, model in models.items()}, "EMT": EMT()}
    runs: dict[str, list[dict]] = {name: [] for name in calculators}
    for number in range(options.nve_starts):
        start = thermalised(starts[number * len(starts) // options.nve_starts], steps=options.nve_steps, seed=number)
        for name, calculator in calculators.items():
            runs[name].append(constant_energy(start, calculator, steps=options.nve_steps))
        shown = "  ".join(f"{name} {values[-1]['drift']:.2f}" for name, values in runs.items())
        print(f"constant energy, start {number + 1}: {shown} meV/atom/ps", flush=True)
    return runs


def true_size(options: argparse.Namespace) -> dict[str, Any]:
    """The part called `true_size` of the JSON file."""
    size = options.batch_size or 2
    systems = make_systems(ATOMS, size)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        models = {}
        for name in options.models:
            path = Path(directory) / f"{name}.pt"
            subprocess.run([sys.executable, TOOL, name, path, "--no-ema"], check=True, capture_output=True)
            models[name] = Model(path, cpu=options.device == "cpu")
            path.unlink()
    return {
        "machine": machine(next(iter(models.values())).device),
        "atoms": [len(system) for system in systems],
        "parameters": {name: model.parameters for name, model in models.items()},
        "student": options.models[0],
        "forwards": forwards(models, systems, options.repeats),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="checkpoint of a distilled student of the demo")
    parser.add_argument("--undistilled", type=Path, help="of the same student, trained on labels only")
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--adsorbate", default="O", choices=["H", "C", "N", "O"])
    parser.add_argument("--surfaces", type=int, default=60, help="so many, of the 150 there are (60)")
    parser.add_argument("--batch-size", type=int, help="systems (32; with --true-size 2)")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/A (0.05)")
    parser.add_argument("--steps", type=int, default=200, help="of a relaxation, at most (200)")
    parser.add_argument("--top", type=int, default=15, help="most strongly binding surfaces that are compared (15)")
    parser.add_argument("--nve-starts", type=int, default=5)
    parser.add_argument("--nve-steps", type=int, default=500, help=f"of {TIME_STEP:g} fs (500)")
    parser.add_argument("--true-size", action="store_true", help="only the throughput of models of the published sizes")
    parser.add_argument("--models", nargs="+", default=list(TRUE_SIZE), help="of true size, the student first")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of --true-size (5)")
    parser.add_argument("--directory", type=Path, help="where checkpoints of true size are written for a moment, 0.7 GB")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    options = parser.parse_args()
    if not options.true_size and options.student is None:
        parser.error("--student is needed, or --true-size")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    return options


def main() -> None:
    """Measure one part, and write the page of what has been measured so far."""
    options = parse()
    warnings.filterwarnings("ignore")
    file = options.out / "screening.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    part = "true_size" if options.true_size else "demo"
    content[part] = true_size(options) if options.true_size else screen(options)
    content[part]["command"] = shlex.join(["python", "-m", "benchmarks.screening", *sys.argv[1:]])
    content["hot"] = HOT
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content) + "\n")
    if "demo" in content:
        draw(content["demo"], options.out / "screening.png")
    write_text(options.out / "screening.md", report(content))
    print(report(content))


if __name__ == "__main__":
    main()
