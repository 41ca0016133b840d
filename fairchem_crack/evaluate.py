"""`fairchem-crack evaluate`: checkpoints side by side on labelled splits, as the S2EF leaderboard has them.

The figures are those of fairchem's own `--mode validate`; intervals come from a bootstrap over the systems.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from fairchem_crack.checks import ASE_SUFFIXES
from fairchem_crack.evaluation import CheckpointEvaluator
from fairchem_crack.files import write_text
from fairchem_crack.leaderboard import ERRORS, Row, as_csv, averages, draw, table
from fairchem_crack.statistics import Errors, Interval, error_interval, gap_closed_interval
from fairchem_crack.submission import TEST_SPLITS, write_submission

FORMATS = {  # of a dataset: the options beside src
    "lmdb": {"format": "lmdb", "key_mapping": {"y": "energy", "force": "forces"}},
    "ase_db": {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True}},
}
WEIGHTS = {"energy_mae": ("energy", None), "forces_mae": ("forces", "components")}  # in the errors of each system


@dataclass(frozen=True)
class Task:
    """A checkpoint to evaluate; sent to processes."""

    checkpoint: Path
    role: str
    data: dict[str, Path]
    dataset: dict[str, Any]
    batch_size: int
    batch_sizes: tuple[int, ...]
    device: Optional[int]  # of the GPU; None for the CPU


@dataclass(frozen=True)
class Found:
    """What `Task` gave.

    Attributes:
        metrics: of each split.
        errors: of each split, of each system, see `CheckpointEvaluator.metrics_and_errors`.
        speed: atoms per second and peak memory in bytes (None where unknown) by batch size.
    """

    architecture: str
    parameters: int
    metrics: dict[str, dict[str, float]]
    errors: dict[str, dict[str, np.ndarray]]
    speed: dict[int, dict[str, Optional[float]]]


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(prog="fairchem-crack evaluate", description=__doc__)
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="students: any checkpoints of fairchem")
    own.add_argument("--teacher", type=Path)
    own.add_argument("--undistilled", type=Path, help="with --teacher: the gap closed is counted from it")
    own.add_argument("--data", nargs="+", required=True, metavar="SPLIT=PATH", help="labelled splits")
    own.add_argument("--format", choices=FORMATS, help="of the data (default: ase_db of files *.db, *.aselmdb, else lmdb)")
    own.add_argument("--batch-size", type=int, default=32, help="of the evaluation (default: 32)")
    own.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="at which speed and memory are measured")
    own.add_argument("--num-gpus", type=int, default=1, help="checkpoints are evaluated side by side, one on each")
    own.add_argument("--cpu", action="store_true")
    own.add_argument("--output", type=Path, help="write OUTPUT.json, OUTPUT.csv and OUTPUT.png")
    own.add_argument("--submission", type=Path, metavar="FILE", help="of the first checkpoint, for the OC20 leaderboard")
    own.add_argument("--test", nargs=4, metavar="SPLIT=PATH", help=f"with --submission: {', '.join(TEST_SPLITS)}")
    return own


def evaluate(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack evaluate`."""
    options = parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    logging.disable(logging.WARNING)  # fairchem describes each model at length while loading it
    try:
        data = splits_of(options.data, "--data")
        models = {"student": options.checkpoint, "undistilled": [options.undistilled], "teacher": [options.teacher]}
        chosen = [(path, role) for role, paths in models.items() for path in paths if path is not None]
        for path in [*(path for path, _ in chosen), *data.values()]:
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist (looked in {Path.cwd()}).")
        if len({path.resolve() for path, _ in chosen}) < len(chosen):
            raise ValueError("--checkpoint, --undistilled, --teacher: a file is given twice.")
        if (options.submission is None) is not (options.test is None):
            raise ValueError("--submission and --test come together: the file, and the four splits to predict.")
        found = _run(chosen, data, options)
        rows = leaderboard(found, {path: role for path, role in chosen})
        rows += averages(rows)
        print(table(rows) + "\n\n" + speeds(found))
        if options.output is not None:
            _write(options.output, rows, found)
        if options.submission is not None:
            test = splits_of(options.test, "--test")
            evaluator = CheckpointEvaluator(
                options.checkpoint[0], format_of(test, options.format), batch_size=options.batch_size, cpu=options.cpu
            )
            print(f"Written: {write_submission(evaluator, test, options.submission)}")
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack evaluate: {error}")
    finally:
        logging.disable(logging.NOTSET)


def splits_of(entries: Sequence[str], option: str) -> dict[str, Path]:
    """`name=path` entries as a mapping.

    Raises:
        ValueError: an entry of another form, or a name given twice.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        name, is_given, path = entry.partition("=")
        if not (name and is_given and path):
            raise ValueError(f"{option} {entry}: expected SPLIT=PATH, val_id=data/val_id say.")
        if name in found:
            raise ValueError(f"{option} {entry}: the split {name} is given twice.")
        found[name] = Path(path)
    return found


def format_of(data: dict[str, Path], given: Optional[str]) -> dict[str, Any]:
    """fairchem's options of datasets at these paths.

    Raises:
        ValueError: they are of several formats.
    """
    found = {given or ("ase_db" if path.suffix in ASE_SUFFIXES else "lmdb") for path in data.values()}
    if len(found) > 1:
        raise ValueError(f"{', '.join(map(str, data.values()))}: expected one format, found {', '.join(sorted(found))}.")
    return FORMATS[found.pop()]


def _run(chosen: list[tuple[Path, str]], data: dict[str, Path], options: argparse.Namespace) -> dict[Path, Found]:
    def task(number: int) -> Task:
        path, role = chosen[number]
        device = None if options.cpu else number % options.num_gpus
        sizes = tuple(options.batch_sizes)
        return Task(path, role, data, format_of(data, options.format), options.batch_size, sizes, device)

    tasks = [task(number) for number in range(len(chosen))]
    if options.num_gpus == 1 or options.cpu:
        return {one.checkpoint: measure(one) for one in tasks}
    with multiprocessing.get_context("spawn").Pool(options.num_gpus) as pool:
        return {one.checkpoint: found for one, found in zip(tasks, pool.map(measure, tasks, chunksize=1))}


def measure(task: Task) -> Found:
    """Evaluate a checkpoint on every split, then take its speed and memory on systems of the first."""
    import torch

    if task.device is not None and torch.cuda.is_available():
        torch.cuda.set_device(task.device)
    evaluator = CheckpointEvaluator(task.checkpoint, task.dataset, batch_size=task.batch_size, cpu=task.device is None)
    metrics, errors = {}, {}
    for split, src in task.data.items():
        metrics[split], errors[split] = evaluator.metrics_and_errors(src)
    first = next(iter(task.data.values()))
    speed = {size: evaluator.speed(first, size) for size in task.batch_sizes}
    return Found(evaluator.architecture, evaluator.parameters, metrics, errors, speed)


def leaderboard(found: dict[Path, Found], roles: dict[Path, str]) -> list[Row]:
    """Every model on every split."""
    by_role = {role: found[path] for path, role in roles.items()}
    undistilled, teacher = by_role.get("undistilled"), by_role.get("teacher")
    rows = []
    for split in next(iter(found.values())).metrics:
        for path, one in found.items():
            of_systems = one.errors[split]
            gaps: dict[str, Interval] = {}
            if roles[path] == "student" and undistilled and teacher:
                gaps = {name: _gap(name, split, undistilled, one, teacher) for name in ERRORS}
            intervals = {name: error_interval(*_sums(of_systems, name)) for name in ERRORS}
            rows.append(Row(names(list(found))[path], roles[path], split, one.metrics[split], intervals, gaps))
    return rows


def _sums(of_systems: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """x and w of `statistics`: an error is sum x / sum w."""
    values, weights = WEIGHTS[name]
    return of_systems[values], np.ones(len(of_systems[values])) if weights is None else of_systems[weights]


def _gap(name: str, split: str, undistilled: Found, student: Found, teacher: Found) -> Interval:
    (u, weights), (d, _), (t, _) = (_sums(one.errors[split], name) for one in (undistilled, student, teacher))
    return gap_closed_interval([Errors(u[None], d[None], t, weights)])


def names(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name of each file: its own, behind as many of its directories as tell it from the others."""
    depth = 1
    while depth < max(len(path.parts) for path in paths) and len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {path: "/".join(path.with_suffix("").parts[-depth:]) for path in paths}


def speeds(found: dict[Path, Found]) -> str:
    """Atoms per second and peak memory of each model at each batch size."""
    lines = ["atoms/s (peak memory beyond the model) by systems in a batch"]
    short = names(list(found))
    for path, one in found.items():
        cells = [f"{size}: {cell['atoms_per_second']:,.0f}{_memory(cell['peak_bytes'])}" for size, cell in one.speed.items()]
        lines.append(f"  {short[path]}, {one.architecture}, {one.parameters / 1e6:.2f}M parameters   " + "   ".join(cells))
    return "\n".join(lines)


def _memory(size: Optional[float]) -> str:
    return "" if size is None else f" ({size / 2**20:,.0f} MB)"


def _with_null(content: Any) -> Any:
    """NaN, which JSON has not, as None."""
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_with_null(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _write(output: Path, rows: list[Row], found: dict[Path, Found]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    models = {
        str(path): {"architecture": one.architecture, "parameters": one.parameters, "speed": one.speed}
        for path, one in found.items()
    }
    content = _with_null({"rows": [asdict(row) for row in rows], "models": models})
    write_text(output.with_name(f"{output.name}.json"), json.dumps(content, indent=1) + "\n")
    write_text(output.with_name(f"{output.name}.csv"), as_csv(rows))
    draw(rows, output.with_name(f"{output.name}.png"))
    print(f"\nWritten: {output}.json, {output}.csv, {output}.png")
