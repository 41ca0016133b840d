"""Direct and gradient forces at constant energy: docs/benchmarks/gradient_forces.{json,md}.

    python -m benchmarks.gradient_forces commands --runs RUNS --data DATA --seeds 5 | bash -e
    python -m benchmarks.gradient_forces page RUNS/stability-*.json

The first prints the trainings and the dynamics of each seed. DATA is a workspace of `benchmarks.accuracy` with 300 labelled
systems and those generated from them. Checkpoints are named STUDENT-FORCES-TRAINING-SEED.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest

from fairchem_crack.evaluation.intervals import t_interval
from fairchem_crack.evaluation.tables import NO_NUMBER, cell, digits
from fairchem_crack.io.files import write_json, write_text

DOCS = Path(__file__).parents[1] / "docs/benchmarks"
STUDENTS = {"gemnet": "GemNet-dT", "painn": "PaiNN"}
FORCES, TRAININGS = ("direct", "gradient"), ("undistilled", "distilled")
YAMLS = {"gemnet": "gemnet_dT", "painn": "painn"}
GRAPH = ("--model.cutoff=5.0", "--model.max_neighbors=100")  # of painn_gradient.yml, for the PaiNN with direct forces
STEPS = {"undistilled": (20, 380), "distilled": (2, 374)}  # epochs, and how many steps they are
DYNAMICS = ("--temperatures", "300", "--ps", "0.02", "--every", "5", "--drift-ps", "0.5", "--starts", "3", "--cpu")
ERRORS = ("energy_mae", "forces_mae")
HEADINGS = ("energy MAE [eV]", "force MAE [eV/A]", "completed", "lasted [ps]", "drift [meV/atom/ps]")


class Line(NamedTuple):
    """What seeds have in common."""

    student: str
    forces: str
    training: str

    def __str__(self) -> str:
        return f"{STUDENTS[self.student]}, {self.forces}, {self.training}"


Lines = dict[Line, dict[int, dict[str, Any]]]  # rows by seed
LINES = [Line(*parts) for parts in product(STUDENTS, FORCES, TRAININGS)]


def commands(runs: str, data: str, seeds: int) -> Iterator[list[str]]:
    """Of each seed the trainings and the dynamics, to be run in the repository's root."""
    for seed in range(seeds):
        yield from (training(line, seed, runs, data) for line in LINES)
        yield dynamics(seed, runs, data)


def training(line: Line, seed: int, runs: str, data: str) -> list[str]:
    """The command that trains a seed of a line."""
    yaml, (epochs, steps) = YAMLS[line.student], STEPS[line.training]
    if line.forces == "gradient":
        yaml += "_gradient"
    source = [f"--dataset.train.src={data}/data/train-300/train"]
    if line.training == "distilled":
        yaml += "_generated"
        generated = f"{data}/structures/equiformer_v2-300-mixed9"
        source = [f"--dataset.train.src={generated}/data", f"--task.distill.teacher.cache={generated}/cache"]
    return [
        *("fairchem", "--mode", "train", "--config-yml", f"configs/oc20/demo/{yaml}.yml", "--cpu", "--seed", f"{seed}"),
        *("--run-dir", runs, "--timestamp-id", checkpoint(line, seed)),
        *source,
        f"--dataset.val.src={data}/data/validation/val_id",
        *(f"--optim.max_epochs={epochs}", f"--optim.total_steps={steps}", f"--optim.eval_every={steps // 2}"),
        *(GRAPH if (line.student, line.forces) == ("painn", "direct") else ()),
    ]


def dynamics(seed: int, runs: str, data: str) -> list[str]:
    """The command that runs the students of a seed, all from the same positions and velocities."""
    checkpoints = [f"{runs}/checkpoints/{checkpoint(line, seed)}/best_checkpoint.pt" for line in LINES]
    options = ["--seed", f"{seed}", "--output", f"{runs}/stability-{seed}.json"]
    systems = f"{data}/data/validation/val_id"
    return ["fairchem-crack", "stability", "--checkpoint", *checkpoints, "--data", systems, *DYNAMICS, *options]


def checkpoint(line: Line, seed: int) -> str:
    """Its name."""
    return f"{'-'.join(line)}-{seed}"


def collect(files: Sequence[Path]) -> dict[str, Any]:
    """The rows of all checkpoints in files of `fairchem-crack stability`."""
    rows, first = [], json.loads(files[0].read_text())
    for file in files:
        for name, figures in json.loads(file.read_text())["checkpoints"].items():
            student, forces, of_training, seed = name.split("-")
            metrics = torch.load(figures["path"], map_location="cpu", weights_only=False)["val_metrics"]
            course = figures["constant_energy"]
            rows.append(
                {
                    "student": student,
                    "forces": forces,
                    "training": of_training,
                    "seed": int(seed),
                    **{name: metrics[name]["metric"] for name in ERRORS},
                    "drift": course["drift"],
                    "ps": course["ps"],
                }
            )
    options = {name: first["options"][name] for name in ("temperatures", "drift_ps")}
    return {"machine": first["machine"], "starts": len(first["starts"]["atoms"]), **options, "rows": rows}


def by_line(rows: Sequence[dict[str, Any]]) -> Lines:
    """The rows of the lines that have any."""
    lines: Lines = {}
    for line in LINES:
        of_line = [row for row in rows if line == (row["student"], row["forces"], row["training"])]
        if of_line:
            lines[line] = {row["seed"]: row for row in of_line}
    return lines


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    lines = by_line(content["rows"])
    pairs = [pair for pair in comparisons() if lines.keys() >= set(pair)]
    return "\n".join(
        [
            "# Direct forces and forces that are a gradient",
            "",
            f"Small students of the demo, 374 or 380 steps, at constant energy for {content['drift_ps']:g} ps from",
            f"velocities of {content['temperatures'][0]:g} K, {content['starts']} validation systems for each seed.",
            "Undistilled: on 300 labelled systems. Distilled: on generated ones, with the teacher's labels.",
            "With either kind of forces GemNet-dT has 12 neighbors within 6 A, PaiNN up to 100 within 5 A.",
            "`python -m benchmarks.gradient_forces` prints the commands and writes this page.",
            "",
            "Errors: mean over the seeds on 200 validation systems, with the 95 % t-interval. A run ends early above",
            "2000 K, or with two atoms too close. Completed: runs that did not, with the 95 % Wilson interval of their",
            "share; it takes runs as independent, but all seeds start from the same systems. Lasted: median [min, max].",
            "Drift: the same of its absolute value, in the completed runs.",
            "",
            *table(["student", "forces", "training", "seeds", *HEADINGS], [_row(line, lines[line]) for line in lines]),
            "",
            "The same seeds, the first less the second. Lasted: how many runs lasted longer, and shorter, than the",
            "second's from the same start. Drift: difference of the absolute values where both completed.",
            "",
            *table(
                ["first", "second", "seeds", *HEADINGS[:2], "lasted longer, shorter", HEADINGS[-1]],
                [_difference(*pair, lines) for pair in pairs],
            ),
            "",
        ]
    )


def comparisons() -> Iterator[tuple[Line, Line]]:
    """Lines that differ in their forces, and then those that differ in their training."""
    for student, of_training in product(STUDENTS, TRAININGS):
        yield Line(student, "gradient", of_training), Line(student, "direct", of_training)
    for student, forces in product(STUDENTS, FORCES):
        yield Line(student, forces, "distilled"), Line(student, forces, "undistilled")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of markdown."""
    return [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _row(line: Line, rows: dict[int, dict[str, Any]]) -> list[str]:
    lasted = [ps for row in rows.values() for ps in row["ps"]]
    drifts = [abs(drift) for row in rows.values() for drift in row["drift"] if drift is not None]
    share = binomtest(len(drifts), len(lasted)).proportion_ci(method="wilson")
    return [
        *(STUDENTS[line.student], line.forces, line.training, f"{len(rows)}"),
        *(str(cell(t_interval([row[error] for row in rows.values()]))) for error in ERRORS),
        f"{len(drifts)} of {len(lasted)} [{share.low:.0%}, {share.high:.0%}]",
        *(_range(lasted), _range(drifts)),
    ]


def _difference(first: Line, second: Line, lines: Lines) -> list[str]:
    """Of the seeds that both lines have."""
    pairs = [(row, lines[second][seed]) for seed, row in lines[first].items() if seed in lines[second]]
    lasted = [a - b for row, its in pairs for a, b in zip(row["ps"], its["ps"])]
    drifts = [abs(a) - abs(b) for row, its in pairs for a, b in zip(row["drift"], its["drift"]) if None not in (a, b)]
    return [
        *(str(first), str(second), f"{len(pairs)}"),
        *(str(cell(t_interval([row[error] - its[error] for row, its in pairs]))) for error in ERRORS),
        f"{sum(ps > 0 for ps in lasted)}, {sum(ps < 0 for ps in lasted)} of {len(lasted)}",
        _range(drifts),
    ]


def _range(values: Sequence[float]) -> str:
    """Median, min and max."""
    return f"{digits(median(values))} [{digits(min(values))}, {digits(max(values))}]" if values else NO_NUMBER


def main() -> None:
    """Print the commands, or collect and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    of_commands = actions.add_parser("commands", help="print what makes the figures")
    of_commands.add_argument("--runs", required=True, metavar="FOLDER")
    of_commands.add_argument("--data", required=True, metavar="FOLDER", help="a workspace of benchmarks.accuracy")
    of_commands.add_argument("--seeds", type=int, default=5)
    of_page = actions.add_parser("page", help="write the page and its figures")
    of_page.add_argument("files", nargs="+", type=Path)
    of_page.add_argument("--output", type=Path, default=DOCS / "gradient_forces.json")
    options = parser.parse_args()
    if options.action == "commands":
        print("\n".join(shlex.join(command) for command in commands(options.runs, options.data, options.seeds)))
        return
    content = collect(options.files)
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), report(content))


if __name__ == "__main__":
    main()
