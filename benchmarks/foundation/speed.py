"""How long one system takes: the teacher in its environment, the students in theirs, in the same minutes.

    python -m benchmarks.foundation.speed runs/foundation --teacher sevennet:7net-0              # there
    python -m benchmarks.foundation.speed runs/foundation --student CHECKPOINT [CHECKPOINT ...]  # here

Energies and forces of the systems of val_id, one after another on one thread, as a relaxation or dynamics takes them; the
teacher also as it labels. CPU time, graphs included; a row for each round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from ase import Atoms

from benchmarks.accuracy.table import Table
from fairchem_crack.teacher.label.systems import Systems

SYSTEMS, ROUNDS, TOGETHER = 32, 5, 16  # of which the labelling runs so many at once
TABLE = "speed"


def rounds(run: Callable[[list[Atoms]], object], systems: list[Atoms], together: int) -> list[float]:
    """Seconds of CPU for a system, in the mean over the systems of each round; the first round is not counted.

    Args:
        together: systems that are run at once.
    """
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        for first in range(0, len(systems), together):
            run([atoms.copy() for atoms in systems[first : first + together]])
        seconds.append((time.process_time() - start) / len(systems))
    return seconds[1:]


def main() -> None:
    """Append the rows of the teacher or of the students to speed.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--teacher")
    model.add_argument("--student", nargs="+", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    candidates = Systems([options.directory / "candidates/val_id.db"])
    systems = [candidates[number].atoms for number in range(SYSTEMS)]
    models: list[tuple[str, int, Callable[[list[Atoms]], object]]] = []
    if options.teacher:
        from fairchem_crack.teacher.label.teachers import labeller_of

        labeller = labeller_of(options.teacher, "cpu")
        models = [("teacher", together, labeller) for together in (1, TOGETHER)]
    else:
        from fairchem.core import OCPCalculator

        from fairchem_crack.io.calculators import energy_and_forces

        for file in options.student:
            calculator = OCPCalculator(checkpoint_path=str(file), cpu=True)
            name = calculator.config["model"]["name"]
            models.append((name, 1, lambda systems, own=calculator: energy_and_forces(own, *systems)))
    common = {"atoms": sum(map(len, systems)) / SYSTEMS}
    for name, together, run in models:
        seconds = rounds(run, systems, together)
        rows = [{"model": name, "together": together, **common, "round": n, "seconds": s} for n, s in enumerate(seconds)]
        Table(options.directory / f"{TABLE}.csv").append(rows)
        print(f"{name}, {together} together:", *(f"{each:.4f}" for each in seconds), "s a system")


if __name__ == "__main__":
    main()
