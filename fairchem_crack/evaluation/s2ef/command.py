"""`fairchem-crack evaluate`: evaluate, print, write."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairchem.core.common.utils import update_config

from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.s2ef.cached import evaluate_caches
from fairchem_crack.evaluation.s2ef.data import given_options, options_for, validation_options, without_labels
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator, check_labelled, evaluated_outputs, first_records
from fairchem_crack.evaluation.s2ef.gates import Outcome, gates_of, outcomes, stable_gate, verdict
from fairchem_crack.evaluation.s2ef.leaderboard import Group, Row, Throughputs, as_csv, leaderboard
from fairchem_crack.evaluation.s2ef.options import parser
from fairchem_crack.evaluation.s2ef.runs import Evaluation, evaluate_all
from fairchem_crack.evaluation.s2ef.stability_gate import stability_outcomes, stability_starts
from fairchem_crack.evaluation.s2ef.submission import check_submission, write_submission
from fairchem_crack.evaluation.s2ef.summary import REPEATS, summary
from fairchem_crack.evaluation.speed.measure import throughput_by_size
from fairchem_crack.evaluation.speed.runs import Model
from fairchem_crack.evaluation.teacher_caches import TeacherCaches
from fairchem_crack.io.arguments import check_at_least, check_labels, check_positive, named_values
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.files import write_json, write_text
from fairchem_crack.plugins import load_plugins
from fairchem_crack.training.config_checks import check_dataset, check_gpus


def evaluate(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack evaluate`."""
    options = parser().parse_args(arguments)
    logging.disable(logging.WARNING)  # fairchem describes each model at length while loading it
    try:
        load_plugins(options.imports, "--import")
        data = splits_of(options.data, "--data")
        groups = groups_of(options)
        has_gap = bool(options.undistilled) and bool(options.teacher or options.teacher_cache)
        gates = gates_of(options.require, data, has_gap=has_gap)
        checkpoints = [path for group in groups for path in group.checkpoints]
        dataset = _check(options, checkpoints, data)
        stability = stable_gate(gates)
        starts = [] if stability is None else stability_starts(data, dataset, options.stability_starts)
        caches = TeacherCaches(options.teacher_cache) if options.teacher_cache else None
        print(f"Data read as {', '.join(f'{name}: {value}' for name, value in dataset.items())}\n")
        evaluations = evaluate_all(
            checkpoints,
            data,
            dataset,
            batch_size=options.batch_size,
            cpu=options.cpu,
            processes=options.num_gpus,
            atoms=options.atoms,
            label_caches=options.teacher_cache if options.labels else (),
            imports=options.imports,
        )
        if caches is not None:
            atoms = evaluations[options.checkpoint[0]].atoms
            groups.append(Group("teacher", "teacher", (caches.checkpoint,)))
            evaluations[caches.checkpoint] = evaluate_caches(
                caches, data, dataset, atoms=atoms, are_labels=bool(options.labels)
            )
        rows = leaderboard(evaluations, groups)
        throughput = _throughput(groups, data, dataset, options)
        print(summary(rows, groups, evaluations, throughput, labels=options.labels or "data"))
        of_gates = outcomes(gates, rows)
        if stability is not None:
            of_gates += stability_outcomes(stability, groups, starts, next(iter(data)), options)
        if of_gates:
            print(f"\n{verdict(of_gates)}")
        if options.output is not None:
            _write(options.output, rows, groups, evaluations, throughput, of_gates, options.labels or "data")
        if options.submission is not None:
            test = splits_of(options.test, "--test")
            evaluator = CheckpointEvaluator(
                options.checkpoint[0], dataset_of(options, test), batch_size=options.batch_size, cpu=options.cpu
            )
            print(f"Written: {write_submission(evaluator, test, options.submission)}")
        if not all(outcome.is_met for outcome in of_gates):
            sys.exit(1)
    except BrokenProcessPool as error:
        raise ValueError("a process was killed; did memory run out? Lower --num-gpus or --batch-size.") from error
    finally:
        logging.disable(logging.NOTSET)


def groups_of(options: argparse.Namespace) -> list[Group]:
    """The checkpoints of the options by role; of several seeds, those of a role together.

    Raises:
        ValueError: not one undistilled student, or not one for each seed.
    """
    roles = {
        "undistilled": options.undistilled,
        "student": options.checkpoint,
        "teacher": [] if options.teacher is None else [options.teacher],
    }
    given = [path for checkpoints in roles.values() for path in checkpoints]
    if len({path.resolve() for path in given}) < len(given):
        raise ValueError("--checkpoint, --undistilled, --teacher: a file is given twice.")
    if options.seeds and len(options.undistilled) not in (0, len(options.checkpoint)):
        raise ValueError(
            f"--seeds: got {len(options.checkpoint)} --checkpoint and {len(options.undistilled)} --undistilled; give one of "
            "each for every seed."
        )
    if not options.seeds and len(options.undistilled) > 1:
        raise ValueError(f"--undistilled: expected one, got {len(options.undistilled)}; with --seeds, one for every seed.")
    names, groups = short_names(given), []
    for role, checkpoints in roles.items():
        if options.seeds and len(checkpoints) > 1:
            groups.append(Group(f"{role}, mean of {len(checkpoints)} seeds", role, tuple(checkpoints)))
        else:
            groups += [Group(names[path], role, (path,)) for path in checkpoints]
    return groups


def _check(options: argparse.Namespace, checkpoints: Sequence[Path], data: dict[str, Path]) -> dict[str, Any]:
    """Name what is wrong before any model runs; the options with which the data are read."""
    check_at_least(options, {"batch_size": 1, "num_gpus": 1, "stability_starts": 1, "batch_sizes": 1})
    check_positive(options, ("temperature",))
    check_gpus(options.num_gpus, cpu=options.cpu)
    if (options.submission is None) is not (options.test is None):
        raise ValueError("--submission and --test come together: the file, and the four splits to predict.")
    check_labels(options.labels, options.teacher_cache)
    test = splits_of(options.test or [], "--test")
    for path in [*checkpoints, *data.values(), *test.values()]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist (looked in {Path.cwd()}).")
    if options.submission is not None:
        check_submission(test, options.submission)
    dataset = dataset_of(options, data)
    for split, path in data.items():
        check_dataset(split, {"src": path}, dataset["format"])
        if not options.labels:
            check_labelled(path, dataset)
    return without_labels(dataset) if options.labels else dataset


def splits_of(entries: Sequence[str], option: str) -> dict[str, Path]:
    """`SPLIT=PATH` entries as a mapping; ValueError for any other."""
    return {
        name: Path(path)
        for name, path in named_values(entries, option, "SPLIT=PATH, for example val_id=data/val_id").items()
    }


def dataset_of(options: argparse.Namespace, data: dict[str, Path]) -> dict[str, Any]:
    """fairchem's options of datasets at these paths: given, of the first checkpoint's training, or usual ones.

    Raises:
        ValueError: they are of several formats, or the checkpoint cannot be read.
    """
    checkpoint = options.checkpoint[0]
    config = read_checkpoint(checkpoint)["config"]
    names, _ = evaluated_outputs(config, checkpoint)
    trained = validation_options(update_config(config))
    return options_for(data.values(), trained, names, data_format=options.format, given=given_options(options.dataset))


def _throughput(
    groups: Sequence[Group], data: dict[str, Path], dataset: dict[str, Any], options: argparse.Namespace
) -> Throughputs:
    """Speed and memory of each group's first model on the first systems of the first split; models are interleaved."""
    if not options.batch_sizes:
        return {}
    records = first_records(next(iter(data.values())), dataset, max(options.batch_sizes))
    runnable = [group for group in groups if group.checkpoints[0].is_file()]  # a cache has no model
    models = {group.name: Model(group.checkpoints[0], cpu=options.cpu) for group in runnable}
    return throughput_by_size(models, [to_atoms(record) for record in records], options.batch_sizes, REPEATS)


def _write(
    output: Path,
    rows: list[Row],
    groups: Sequence[Group],
    evaluations: dict[Path, Evaluation],
    throughput: Throughputs,
    of_gates: list[Outcome],
    labels: str,
) -> None:
    from fairchem_crack.evaluation.s2ef.picture import draw

    names = short_names(list(evaluations))
    models = {
        str(path): {
            "name": names[path],
            "role": group.role,
            "architecture": evaluations[path].architecture,
            "parameters": evaluations[path].parameters,
            **asdict(evaluations[path].progress),
            "atoms": evaluations[path].atoms,
            "speed": throughput.get(group.name, {}) if path == group.checkpoints[0] else {},
        }
        for group in groups
        for path in group.checkpoints
    }
    gates = [asdict(gate) for gate in of_gates]
    content = {"labels": labels, "rows": [asdict(row) for row in rows], "models": models, "gates": gates}
    write_json(output.with_name(f"{output.name}.json"), content)
    write_text(output.with_name(f"{output.name}.csv"), as_csv(rows, throughput))
    draw(rows, throughput, output.with_name(f"{output.name}.png"))
    print(f"\nWritten: {output}.json, {output}.csv, {output}.png")
