"""Multiple time steps with the demo's student and teacher (examples/respa): docs/benchmarks/respa.{json,md}.

    python -m benchmarks.respa --teacher configs/oc20/demo/teacher_equiformer_v2.pt --data data/demo/val_id \
      --students distilled=runs/demo/checkpoints/crack-0/best_checkpoint.pt
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.evaluation.speed.runs import Model
from fairchem_crack.evaluation.speed.systems import read_systems
from fairchem_crack.evaluation.stability.drift import line
from fairchem_crack.io.files import write_json, write_text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks"
EVERY = (1, 2, 4, 8)
HOTTEST = 5000  # K, of a run that has left its course
sys.path.append(str(ROOT / "examples/respa"))


class Counted(Calculator):
    """A calculator, its calls and their CPU time."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012, as ASE declares it

    def __init__(self, calculator: Any) -> None:
        super().__init__()
        self.calculator, self.calls, self.seconds = calculator, 0, 0.0

    def calculate(
        self, atoms: Any = None, properties: Sequence[str] = (), system_changes: Sequence[str] = all_changes
    ) -> None:
        """Energy and forces of the calculator."""
        super().calculate(atoms, properties, system_changes)
        start = time.process_time()
        copy = atoms.copy()
        copy.set_constraint()
        copy.calc = self.calculator
        self.results = {"forces": copy.get_forces(), "energy": copy.get_potential_energy()}
        self.calls, self.seconds = self.calls + 1, self.seconds + time.process_time() - start


def measure(start: Atoms, teacher: Any, student: Any, *, every: int, steps: int) -> dict[str, Any]:
    """A run at constant energy of inner steps of 1 fs: the drift of the teacher's total energy, and the time.

    Args:
        start: with velocities.
    """
    from respa import Respa

    atoms, energies, ended = start.copy(), [], ""
    atoms.calc, inner = Counted(teacher), Counted(student)
    dynamics = Respa(atoms, units.fs, student=inner, every=every)
    energies.append(atoms.get_total_energy())
    for step in range(steps // every):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        if not atoms.get_temperature() < HOTTEST:
            ended = f"above {HOTTEST} K after {1e-3 * every * (step + 1):.3f} ps"
            break
    course = 1e3 * (np.array(energies) - energies[0]) / len(atoms)
    drift, fluctuation = (float("nan"),) * 2 if ended else line(course, 1e-3 * every)
    return {
        "every": every,
        "drift": drift,
        "fluctuation": fluctuation,
        "ended": ended,
        "milliseconds": 1e3 * (atoms.calc.seconds + inner.seconds) / (every * (len(energies) - 1)),
        "teacher_calls": atoms.calc.calls,
        "student_calls": inner.calls,
        "teacher_milliseconds": 1e3 * atoms.calc.seconds / atoms.calc.calls,
        "student_milliseconds": 1e3 * inner.seconds / inner.calls,
    }


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    first = content["rows"][0]
    lines = [
        "# Multiple time steps",
        "",
        "The student in every step of 1 fs, the teacher's correction in every n-th (`examples/respa/respa.py`), at constant",
        f"energy, from velocities of {content['temperature']:g} K: {content['ps']:g} ps of each of "
        f"{content['starts']} slabs with an adsorbate.",
        f"n = 1 is velocity Verlet with the teacher. {content['teacher']}. {content['machine']}.",
        f"Written by `{content['command']}`.",
        "",
        "Drift: slope of the teacher's total energy, meV/atom/ps, median of absolute values [min, max]; fluctuation: root",
        "mean square about the line. Times are CPU time of one step of 1 fs in the calculators.",
        "",
        "| student | n | absolute drift | fluctuation [meV/atom] | to the end | ms/step | x n = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    base = median(run["milliseconds"] for run in first["runs"])
    for row in content["rows"]:
        runs = [run for run in row["runs"] if not run["ended"]]
        cost = median(run["milliseconds"] for run in row["runs"])
        drifts, fluctuations = sorted(abs(run["drift"]) for run in runs), [run["fluctuation"] for run in runs]
        drift = f"{median(drifts):.1f} [{drifts[0]:.1f}, {drifts[-1]:.1f}]" if runs else "-"
        fluctuation = f"{median(fluctuations):.1f}" if runs else "-"
        lines.append(
            f"| {row['student']} | {row['every']} | {drift} | {fluctuation} | {len(runs)} of {len(row['runs'])} "
            f"| {cost:.1f} | {base / cost:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--students", nargs="+", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--ps", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=500.0)
    parser.add_argument("--output", type=Path, default=DOCS / "respa.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Model(options.teacher, cpu=True).calculator
    students = {name: StudentCalculator(path) for name, path in (pair.split("=", 1) for pair in options.students)}
    starts = read_systems(options.data, options.starts)
    for seed, start in enumerate(starts):
        MaxwellBoltzmannDistribution(start, temperature_K=options.temperature, rng=np.random.RandomState(seed))
    rows = []
    for name, student in students.items():
        for every in EVERY:
            if every > 1 or not rows:  # n = 1 has the teacher's forces, whatever the student
                steps = round(1e3 * options.ps)
                torch.manual_seed(0)  # EquiformerV2 draws the frames of its edges
                runs = [measure(start, teacher, student, every=every, steps=steps) for start in starts]
                rows.append({"student": name if every > 1 else "none", "every": every, "runs": runs})
    content = {
        "teacher": "The demo's EquiformerV2 and PaiNN students",
        "machine": f"CPU, {platform.machine()}, one thread, torch {torch.__version__}",
        "command": "python -m benchmarks.respa",
        "temperature": options.temperature,
        "ps": options.ps,
        "starts": len(starts),
        "atoms": [len(start) for start in starts],
        "rows": rows,
    }
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), report(content))


if __name__ == "__main__":
    main()
