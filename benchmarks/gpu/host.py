"""What of fairchem-core 1.10, and of this package in it, works with the installed torch: one row for each trial.

Every architecture forward and backward at toy size, then the demo's commands in a process each, with few steps.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from torch import Tensor

from benchmarks import ROOT
from benchmarks.gpu import json_lines
from benchmarks.gpu.demo import OURS, TEACHER, Demo

sys.path.insert(0, str(ROOT / "tests"))

from architectures import MODELS, build

from fairchem_crack.evaluation.speed.systems import make_systems

STOCK = ("-c", "from fairchem.core._cli import main; main()", "--mode")
CALCULATOR = """
import sys
from ase.build import fcc111
from fairchem.core import OCPCalculator
slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
slab.pbc = True
slab.calc = OCPCalculator(checkpoint_path=sys.argv[1], cpu=sys.argv[2] == "cpu")
assert abs(slab.get_forces()).max() < 1e3
"""


def run_model(name: str, device: str) -> None:
    """Energies and forces of two systems, and the gradient of their sum."""
    convert = AtomsToGraphs(r_edges=False, r_pbc=True)
    systems = [convert.convert(atoms, sid=index) for index, atoms in enumerate(make_systems(13, 2))]
    batch = data_list_collater(systems, otf_graph=True).to(device)
    model = build(name).to(device).train()
    out = model(copy.copy(batch))
    loss = sum(value.double().square().sum() for value in leaves(out))
    assert torch.isfinite(loss), f"loss {loss}"
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients), "a gradient is not finite"


def leaves(out: dict | Tensor) -> list[Tensor]:
    """The tensors of a model's output, which a hydra may nest."""
    return [leaf for value in out.values() for leaf in leaves(value)] if isinstance(out, dict) else [out]


def commands(demo: Demo) -> list[dict[str, list[str]]]:
    """The trials that are commands: stages, each of what can run side by side once the stages before it are done."""
    cpu = ["--cpu"] if demo.device == "cpu" else []
    student = str(demo.directory / "runs/checkpoints/cached/best_checkpoint.pt")
    of_student = ["--checkpoint", student, *cpu]
    split = f"val_id={demo.directory / 'data/val_id'}"
    stock = demo.flags("painn")
    return [
        {"demo data": demo.data()},
        {
            "fairchem training of PaiNN": [*STOCK, "train", *stock, *demo.place("stock"), *demo.schedule],
            "fairchem-crack check": [*OURS, "check", *demo.flags()],
            "training with an online EquiformerV2": [word for word in demo.train("online") if word != demo.cache],
            "fairchem-crack cache-teacher": demo.cached(),
        },
        {"training from the teacher cache": demo.train("cached")},
        {
            "fairchem validation of the student": [
                *STOCK,
                "validate",
                *stock,
                *demo.place("validated"),
                "--checkpoint",
                student,
            ],
            "OCPCalculator of the student": ["-c", CALCULATOR, student, demo.device],
            "OCPCalculator of the teacher": ["-c", CALCULATOR, TEACHER, demo.device],
            "fairchem-crack evaluate": [*OURS, "evaluate", *of_student, "--data", split, "--batch-sizes"],
            "fairchem-crack bench": [*OURS, "bench", *of_student, "--atoms=13", "--repeats=1", "--only", "latency"],
        },
    ]


def run_command(command: list[str]) -> None:
    """Run this Python on it; its output ends in the error where it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}"[-1500:])


def attempt(rows: Path, kind: str, name: str, work: Callable[[], None]) -> None:
    """Do it, and write whether it worked."""
    start = time.monotonic()
    error = ""
    try:
        work()
    except Exception as problem:
        error = str(problem) if isinstance(problem, RuntimeError) else traceback.format_exc()[-1500:]
        print(name, error, flush=True)
    json_lines.append(rows, kind=kind, what=name, works=not error, seconds=time.monotonic() - start, error=error)


def main() -> None:
    """Try everything; what fails is a row, not an end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="fairchem|torch")
    setup_imports()
    for name in MODELS:
        attempt(options.rows, "model", name, lambda name=name: run_model(name, options.device))
    demo = Demo(options.directory / "host", options.device, systems=18, epochs=1)
    for stage in commands(demo):
        with ThreadPoolExecutor(1 if options.device == "cpu" else len(stage)) as pool:
            for name, command in stage.items():
                pool.submit(attempt, options.rows, "command", name, lambda command=command: run_command(command))


if __name__ == "__main__":
    main()
