"""`fairchem-crack evaluate`: checkpoints side by side on labelled splits, as the S2EF leaderboard has them.

The figures are those of fairchem's own `--mode validate`; intervals come from a bootstrap over the systems.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from fairchem.core.common.utils import update_config

from fairchem_crack.evaluation.s2ef.data import given_options, options_for, validation_options
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator, first_records, judged_outputs
from fairchem_crack.evaluation.s2ef.leaderboard import Row, Throughput, as_csv, draw, table
from fairchem_crack.evaluation.s2ef.runs import Found, evaluate_all, leaderboard, names
from fairchem_crack.evaluation.s2ef.submission import TEST_SPLITS, check_submission, write_submission
from fairchem_crack.evaluation.speed.command import measure_throughput
from fairchem_crack.evaluation.speed.runs import Model
from fairchem_crack.io.arguments import IMPORT_HELP, named_values
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.files import write_json, write_text
from fairchem_crack.io.trust import TRUST_HELP
from fairchem_crack.plugins import load_plugins
from fairchem_crack.training.config_checks import check_dataset, check_gpus

REPEATS = 3  # of a timed forward


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(prog="fairchem-crack evaluate", description=__doc__, allow_abbrev=False)
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="students: any checkpoints of fairchem")
    own.add_argument("--teacher", type=Path)
    own.add_argument("--undistilled", type=Path, help="with --teacher: the gap closed is counted from it")
    own.add_argument("--data", nargs="+", required=True, metavar="SPLIT=PATH", help="labelled splits")
    own.add_argument(
        "--format", help="of the data, as in dataset.val.format (default: ase_db of files *.db, *.aselmdb, else lmdb)"
    )
    own.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the data, such as a2g_args, key_mapping; the values are YAML (default: those with which the first "
        "checkpoint was trained, where its data are of this format)",
    )
    own.add_argument(
        "--atoms", choices=("free", "all"), help="whose forces are compared (default: each checkpoint's eval_on_free_atoms)"
    )
    own.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=IMPORT_HELP)
    own.add_argument("--trust", action="store_true", help=TRUST_HELP)
    own.add_argument("--batch-size", type=int, default=32, help="of the evaluation (default: 32)")
    own.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="at which speed and memory are measured")
    own.add_argument("--num-gpus", type=int, default=1, help="models and splits are evaluated side by side, one on each")
    own.add_argument("--cpu", action="store_true", help="--num-gpus is then a number of processes")
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
        load_plugins(options.imports, "--import")
        data = splits_of(options.data, "--data")
        models = {"student": options.checkpoint, "undistilled": [options.undistilled], "teacher": [options.teacher]}
        roles = {path: role for role, paths in models.items() for path in paths if path is not None}
        dataset = _check(options, roles, data)
        print(f"Data read as {', '.join(f'{name}: {value}' for name, value in dataset.items())}")
        found = evaluate_all(
            list(roles),
            data,
            dataset,
            batch_size=options.batch_size,
            cpu=options.cpu,
            processes=options.num_gpus,
            atoms=options.atoms,
            imports=options.imports,
        )
        rows = leaderboard(found, roles)
        throughput = _throughput(list(roles), data, dataset, options)
        print("\n".join(f"{names(list(found))[path]}: {model.progress}" for path, model in found.items()) + "\n")
        print(table(rows))
        print(atoms_note(found))
        if None in (options.undistilled, options.teacher):
            print("\nNo gap closed: it is counted from --undistilled to --teacher.")
        print("\n" + speeds(found, throughput) if throughput else "")
        if options.output is not None:
            _write(options.output, rows, found, throughput)
        if options.submission is not None:
            test = splits_of(options.test, "--test")
            evaluator = CheckpointEvaluator(
                options.checkpoint[0], dataset_of(options, test), batch_size=options.batch_size, cpu=options.cpu
            )
            print(f"Written: {write_submission(evaluator, test, options.submission)}")
    except BrokenProcessPool:
        sys.exit("fairchem-crack evaluate: a process was killed, for want of memory? Give less --num-gpus, --batch-size.")
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack evaluate: {error}")
    finally:
        logging.disable(logging.NOTSET)


def _check(options: argparse.Namespace, roles: dict[Path, str], data: dict[str, Path]) -> dict[str, Any]:
    """Name what is wrong before any model runs; the options with which the data are read."""
    for name in ("batch_size", "num_gpus"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1.")
    if options.batch_sizes and min(options.batch_sizes) < 1:
        raise ValueError(f"--batch-sizes {min(options.batch_sizes)}: expected at least 1.")
    check_gpus(options.num_gpus, cpu=options.cpu)
    if (options.submission is None) is not (options.test is None):
        raise ValueError("--submission and --test come together: the file, and the four splits to predict.")
    test = splits_of(options.test or [], "--test")
    for path in [*roles, *data.values(), *test.values()]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist (looked in {Path.cwd()}).")
    if len({path.resolve() for path in roles}) < len(options.checkpoint) + sum(role != "student" for role in roles.values()):
        raise ValueError("--checkpoint, --undistilled, --teacher: a file is given twice.")
    if options.submission is not None:
        check_submission(test, options.submission)
    dataset = dataset_of(options, data)
    for split, path in data.items():
        check_dataset(split, {"src": path}, dataset["format"])
        first_records(path, dataset, 1)
    return dataset


def splits_of(entries: Sequence[str], option: str) -> dict[str, Path]:
    """`SPLIT=PATH` entries as a mapping; ValueError for any other."""
    return {name: Path(path) for name, path in named_values(entries, option, "SPLIT=PATH, val_id=data/val_id say").items()}


def dataset_of(options: argparse.Namespace, data: dict[str, Path]) -> dict[str, Any]:
    """fairchem's options of datasets at these paths: given, of the first checkpoint's training, or usual ones.

    Raises:
        ValueError: they are of several formats, or the checkpoint cannot be read.
    """
    checkpoint = options.checkpoint[0]
    config = read_checkpoint(checkpoint)["config"]
    names, _ = judged_outputs(config, checkpoint)
    trained = validation_options(update_config(config))
    return options_for(data.values(), trained, names, data_format=options.format, given=given_options(options.dataset))


def atoms_note(found: dict[Path, Found]) -> str:
    """Whose forces were compared."""
    if len({model.atoms for model in found.values()}) == 1:
        return f"\nForces of {next(iter(found.values())).atoms} atoms."
    short = names(list(found))
    said = "; ".join(
        f"of {atoms} atoms: {', '.join(short[path] for path, model in found.items() if model.atoms == atoms)}"
        for atoms in ("free", "all")
    )
    return f"\nForces {said}. As their checkpoints have it; their errors do not compare. --atoms free counts alike."


def _throughput(
    models: list[Path], data: dict[str, Path], dataset: dict[str, Any], options: argparse.Namespace
) -> Throughput:
    """Speed and memory of every model on the first systems of the first split; models are interleaved."""
    if not options.batch_sizes:
        return {}
    records = first_records(next(iter(data.values())), dataset, max(options.batch_sizes))
    systems = [to_atoms(record) for record in records]
    loaded = {str(path): Model(path, cpu=options.cpu) for path in models}
    return measure_throughput(loaded, systems, options.batch_sizes, REPEATS)


def speeds(found: dict[Path, Found], throughput: Throughput) -> str:
    """Atoms per second, median of some repeats, and peak memory of each model at each batch size."""
    lines = [f"atoms/s, median of {REPEATS} in turns (peak memory beyond the model), by systems in a batch"]
    short = names(list(found))
    for path, one in found.items():
        cells = [f"{size}: {_speed(cell)}" for size, cell in throughput[str(path)].items()]
        lines.append(f"  {short[path]}, {one.architecture}, {one.parameters / 1e6:.2f}M parameters   " + "   ".join(cells))
    return "\n".join(lines)


def _speed(cell: dict[str, Any]) -> str:
    if not cell:
        return "does not fit"
    memory = "" if cell["peak_bytes"] is None else f" ({cell['peak_bytes'] / 2**20:,.0f} MB)"
    return f"{median(cell['atoms_per_second']):,.0f}{memory}"


def _write(output: Path, rows: list[Row], found: dict[Path, Found], throughput: Throughput) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    short = names(list(found))
    models: dict[str, dict[str, Any]] = {
        str(path): {
            "name": short[path],
            "architecture": one.architecture,
            "parameters": one.parameters,
            **asdict(one.progress),
            "atoms": one.atoms,
            "speed": throughput.get(str(path), {}),
        }
        for path, one in found.items()
    }
    speed = {one["name"]: one["speed"] for one in models.values() if one["speed"]}
    write_json(output.with_name(f"{output.name}.json"), {"rows": [asdict(row) for row in rows], "models": models})
    write_text(output.with_name(f"{output.name}.csv"), as_csv(rows, speed))
    draw(rows, speed, output.with_name(f"{output.name}.png"))
    print(f"\nWritten: {output}.json, {output}.csv, {output}.png")
