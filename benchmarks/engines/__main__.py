"""Steps per second and deviations of a student in every engine: docs/benchmarks/engines.{json,md}.

    python -m benchmarks.engines --checkpoint runs/demo/checkpoints/crack-0/best_checkpoint.pt

Needs the two environments of `make engines`: .venv with fairchem, .venv-engines without.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from benchmarks.engines.profile import profile
from benchmarks.engines.report import report
from fairchem_crack.commands.cli import main as command
from fairchem_crack.io.files import write_json, write_text

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/benchmarks"
SIZES = {1: None, 14: (2, 2, 3), 66: (4, 4, 4), 502: (5, 10, 10)}  # atoms: the slab's
BATCHES = {8: 14, 32: 14}  # systems: the atoms of each
ENGINES = {"ocp": ".venv", "ase, checkpoint": ".venv", "ase": ".venv-engines", "torch-sim": ".venv-engines"}
ONE_BY_ONE = {"lammps": ".venv-engines", "openmm": ".venv-engines"}  # without batches
PACKAGES = {"ocp": "fairchem-core", "ase, checkpoint": "torch", "ase": "torch", "torch-sim": "torch-sim-atomistic"}
TARGET = 1.2  # seconds of an OCPCalculator's steps


def systems(atoms: int, count: int) -> list[Atoms]:
    """Slabs with OH, rattled, with velocities of 300 K; of one atom, a crystal."""
    made = []
    for seed in range(count):
        size = SIZES[atoms]
        if size is None:
            system = bulk("Cu")
        else:
            system = fcc111("Cu", size, vacuum=7.0, periodic=True)
            add_adsorbate(system, molecule("OH"), 1.6, "fcc")
            system.rattle(0.05, seed=seed)
        MaxwellBoltzmannDistribution(system, temperature_K=300, rng=np.random.RandomState(seed))
        made.append(system)
    return made


class Worker:
    """A process of an environment that runs tasks."""

    def __init__(self, environment: str) -> None:
        command_ = [str(ROOT / environment / "bin/python"), "-W", "ignore", "-m", "benchmarks.engines.worker"]
        self._process = subprocess.Popen(
            command_, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """The answer to a task."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise RuntimeError(
            f"{task['engine']} ended; run `python -m benchmarks.engines.worker` in its environment to see why."
        )

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def version_of(engine: str, environment: str) -> str:
    """Of the engine's package, in its environment."""
    package = PACKAGES.get(engine, engine)
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    done = subprocess.run([ROOT / environment / "bin/python", "-c", code], capture_output=True, text=True, check=True)
    return f"{package} {done.stdout.strip()}"


def measure(
    workers: dict[str, Worker], files: dict[str, str], place: Path, atoms: int, count: int, repeats: int
) -> list[dict]:
    """A row for each engine."""
    engines = {**ENGINES, **(ONE_BY_ONE if count == 1 else {})}
    path = place / f"systems-{atoms}-{count}.traj"
    ase.io.write(path, systems(atoms, count))
    task = {"systems": str(path), "files": files}
    steps = 5
    trial = workers[ENGINES["ocp"]].run({**task, "engine": "ocp", "steps": steps})
    steps = max(3, min(200, int(TARGET / trial["seconds"] * steps)))
    rates: dict[str, list[float]] = {engine: [] for engine in engines}
    answers: dict[str, dict] = {}
    for _ in range(repeats):
        for engine, environment in engines.items():
            answers[engine] = workers[environment].run({**task, "engine": engine, "steps": steps})
            rates[engine].append(count * steps / answers[engine]["seconds"])
    expected = answers["ocp"]
    return [
        {
            "engine": engine,
            "version": version_of(engine, environment),
            "system": f"{atoms} atom{'s' * (atoms > 1)}" + (f", {count} systems" if count > 1 else ""),
            "steps_per_second": rates[engine],
            "speed": [own / ocp for own, ocp in zip(rates[engine], rates["ocp"])],
            "energy_deviation": 1e3 * abs(answers[engine]["energy"] - expected["energy"]),
            "force_deviation": 1e3 * float(np.abs(np.subtract(answers[engine]["forces"], expected["forces"])).max()),
        }
        for engine, environment in engines.items()
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=DOCS / "engines.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = ROOT / "build/engines"
    place.mkdir(parents=True, exist_ok=True)
    student = place / "student.pt"
    command(["export", "--checkpoint", str(options.checkpoint), "--output", str(student)])
    files = {"checkpoint": str(options.checkpoint), "student": str(student)}
    workers = {environment: Worker(environment) for environment in {*ENGINES.values(), *ONE_BY_ONE.values()}}
    rows = []
    for atoms, count in [*((atoms, 1) for atoms in SIZES), *((atoms, count) for count, atoms in BATCHES.items())]:
        rows += measure(workers, files, place, atoms, count, options.repeats)
    for worker in workers.values():
        worker.close()
    content = {
        "student": "the demo's, 0.2M parameters, cutoff 6 A, 30 neighbors",
        "machine": f"CPU, {platform.machine()}, one thread, torch {version('torch')} and that of the engines' environment",
        "command": "python -m benchmarks.engines",
        "repeats": options.repeats,
        "clock": "CPU time of one thread",
        "rows": rows,
        "profile": profile(student, [systems(atoms, 1)[0] for atoms in SIZES if atoms > 1], 40),
    }
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), report(content))


if __name__ == "__main__":
    main()
