"""Checks of an OCP config that fairchem leaves to a traceback further down."""

from __future__ import annotations

import difflib
import math
import os
import typing
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from fairchem.core.modules.evaluator import Evaluator

from fairchem_crack import keys
from fairchem_crack.config import (
    CONTRASTIVE,
    TERM_OPTIONS,
    DistillConfig,
    TermConfig,
    parse,
    parse_term,
    split_loss_functions,
    suggestion,
)
from fairchem_crack.shapes import check_loss_fits
from fairchem_crack.training.host_options import all_outputs, shape_of

ASE_SUFFIXES = (".db", ".aselmdb")  # of files that are no LMDB of fairchem's


def check_run_dir(run_dir: str | None) -> None:
    """Raise PermissionError or NotADirectoryError when nothing can be written to `--run-dir`."""
    path = Path(run_dir or ".").absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    advice = "Give a directory you can write to with `--run-dir`."
    if not existing.is_dir():
        raise NotADirectoryError(f"--run-dir {path}: {existing} is a file. {advice}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"--run-dir {path}: no permission to write to {existing}. {advice}")


def check_datasets(datasets: dict[str, dict]) -> None:
    """`check_dataset` for each split.

    Args:
        datasets: the `dataset` options of each split; the training split's name is "".
    """
    for name, options in datasets.items():
        # fairchem's default is the training's format
        check_dataset(name or "train", options, options.get("format", datasets[""].get("format", "lmdb")))


def check_dataset(split: str, options: dict, data_format: str) -> None:
    """Raise FileNotFoundError when a dataset's `src` is a plain path that does not exist, ValueError when it is empty.

    Args:
        split: its name under `dataset`.
        options: fairchem's, of this split.
        data_format: the split's own, or the training's.
    """
    sources = options.get("src", [])
    if sources is None:
        raise ValueError(f"dataset.{split}.src: is empty; give a path, or leave the whole split out.")
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        is_pattern = any(mark in str(source) for mark in "*?[:")  # ase_db and ase_read also take globs and addresses
        if not is_pattern and not Path(source).exists():
            raise FileNotFoundError(f"dataset.{split}.src: {source} does not exist (looked in {Path.cwd()}).")
        if data_format == "lmdb" and Path(source).suffix in ASE_SUFFIXES:
            raise ValueError(
                f"dataset.{split}: {source} is read as an LMDB of fairchem; for an ASE database give "
                f"dataset.{split}.format: ase_db."
            )
        if data_format == "lmdb" and Path(source).is_dir() and not any(Path(source).glob("*.lmdb")):
            raise FileNotFoundError(f"dataset.{split}.src: no *.lmdb file in the directory {source}.")


def check_has_validation(options: dict, optim: dict) -> None:
    """Raise ValueError when the learning rate is to follow a validation for which there is no data.

    Args:
        options: of the validation split.
    """
    if optim.get("scheduler") == "ReduceLROnPlateau" and not options.get("src"):
        raise ValueError(
            "dataset.val.src: missing; optim.scheduler ReduceLROnPlateau goes by a validation. Give data for it, or another "
            "scheduler."
        )


def check_metrics(evaluation_metrics: dict, task: str = "ocp") -> None:
    """Raise ValueError when the primary metric, which the trainer has no default for, is missing or never computed.

    Args:
        task: fairchem's name of it; for "ocp" it has no default metrics.
    """
    if not evaluation_metrics.get("primary_metric"):
        raise ValueError(
            "evaluation_metrics.primary_metric: missing. It decides which checkpoint is the best; "
            "OC20's is `energy_forces_within_threshold`, `forces_mae` is usual too."
        )
    metrics = evaluation_metrics.get("metrics") or Evaluator.task_metrics.get(task, {})
    # as fairchem's Evaluator names them
    names = [fn if of in fn or of == "misc" else f"{of}_{fn}" for of, functions in metrics.items() for fn in functions]
    if evaluation_metrics["primary_metric"] not in (*names, "loss"):
        raise ValueError(
            f"evaluation_metrics.primary_metric: {evaluation_metrics['primary_metric']!r} is none of the metrics. "
            + (suggestion(evaluation_metrics["primary_metric"], names) if names else "Give evaluation_metrics.metrics.")
        )
    if is_best_when_small(evaluation_metrics["primary_metric"]):
        raise ValueError(
            f"evaluation_metrics.primary_metric: {evaluation_metrics['primary_metric']!r} is better when it is smaller, and "
            "fairchem takes the largest value for the best, unless `mae` is in the name: best_checkpoint.pt would be the "
            "worst. Take an MAE, `forces_mae` for example, or `energy_forces_within_threshold`."
        )


def is_best_when_small(metric: str) -> bool:
    """Whether a metric is an error or a loss whose name fairchem does not know for one."""
    return "mae" not in metric and (metric == "loss" or metric.endswith(("mse", "magnitude_error", "min_diff")))


def check_own_terms(own_losses: list[dict], outputs: dict) -> None:
    """Raise ValueError for a loss of what is no output of the model and no distillation term, or one that cannot take it."""
    known = all_outputs(outputs)
    for name, options in (item for loss in own_losses for item in loss.items()):
        if name not in known:
            nearest = suggestion(name, [*known, *keys.DISTILLATION_TERMS])
            raise ValueError(
                f"loss_functions: `{name}` is neither an output of the model nor a distillation term. {nearest}"
            )
        where = f"loss_functions, {name}"
        if not isinstance(options, dict) or not {"fn", "coefficient"} <= options.keys():
            raise ValueError(f"{where}: expected a mapping with `fn` and `coefficient`, found {options!r}.")
        fn, coefficient = options["fn"], options["coefficient"]
        if fn in CONTRASTIVE.values():
            raise ValueError(f"{where}.fn: `{fn}` compares embeddings; an output takes `mae`, for example.")
        check_loss_fits(fn, shape_of(name, known[name]), name, f"{where}.fn")
        if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)) or not math.isfinite(coefficient):
            raise ValueError(f"{where}.coefficient: expected a finite number, found {coefficient!r}.")


def check_not_fitted_to_labels(distill: DistillConfig, dataset: dict) -> None:
    """Raise ValueError when normalizers or references are to be fitted to labels that are not trained on.

    Args:
        dataset: the options of the training split.
    """
    for name, transform in (dataset.get("transforms") or {}).items():
        if name in ("normalizer", "element_references") and distill.labels == "teacher" and "fit" in (transform or {}):
            given = "`mean` and `stdev` of each output" if name == "normalizer" else "a `file` with the coefficients"
            raise ValueError(
                f"dataset.train.transforms.{name}.fit: is fitted to the labels of the data, and with task.distill.labels: "
                f"teacher the student is trained on the teacher's. Give {given} instead."
            )


def missing_distill(task: dict) -> str:
    """What to say when there are distillation terms and no `task.distill`."""
    nearest = difflib.get_close_matches("distill", map(str, task), n=1)
    found = f"task has `{nearest[0]}`" if nearest else "expected at least `task.distill.teacher.checkpoint`"
    return f"task.distill: missing, but loss_functions has distillation terms; {found}."


def distill_faults(block: Any) -> list[str]:
    """Everything that is wrong with a `task.distill` block; `config.parse` stops at the first."""
    hints = typing.get_type_hints(DistillConfig)
    return _faults(lambda values: parse(DistillConfig, values, "task.distill"), hints, block, "task.distill")


def term_faults(loss_functions: list) -> tuple[list[str], list[dict], list[TermConfig]]:
    """Everything that is wrong with the distillation terms.

    Returns:
        the faults, the student's own terms, the distillation terms without fault.
    """
    faults: list[str] = []
    sound: list = []
    for index, entry in enumerate(loss_functions):
        terms = entry if isinstance(entry, dict) else {}
        found: list[str] = []
        for key in keys.DISTILLATION_TERMS:
            options = terms.get(key) or {}
            if key in terms and isinstance(options, dict):
                found += _term_faults(key, options, f"loss_functions[{index}].{key}")
        try:
            # the entries before it keep its index; with them it is seen whether a term is given twice
            split_loss_functions([*sound, entry])
        except ValueError as error:
            found = found or [str(error)]
        faults += found
        sound.append({} if found else entry)
    own, terms_without_fault = split_loss_functions(sound)
    return faults, own, terms_without_fault


def _term_faults(key: str, options: dict, path: str) -> list[str]:
    hints = {
        name: hint for cls in (TermConfig, TERM_OPTIONS.get(key)) if cls for name, hint in typing.get_type_hints(cls).items()
    }
    return _faults(lambda values: parse_term(key, values, path), hints, options, path)


def _faults(build: Callable[[Any], Any], hints: dict[str, Any], values: Any, path: str) -> list[str]:
    """The message of `build` for each option of a mapping that it refuses.

    Args:
        build: makes a dataclass of a mapping, or raises ValueError at the first fault.
        hints: the types of its options.
    """
    if not isinstance(values, dict):
        return [_refusal(build, values)]
    faults: list[str] = []
    sound = dict(values)
    for name, value in values.items():
        cls = hints.get(name)
        if is_dataclass(cls):
            inner_path = f"{path}.{name}"
            build_inner = partial(parse, cls, path=inner_path)  # type: ignore[arg-type]
            inside = _faults(build_inner, typing.get_type_hints(cls), value, inner_path)
            faults += inside
            if inside:
                del sound[name]
    while refusal := _refusal(build, sound):
        name = refusal.removeprefix(f"{path}.").partition(":")[0].partition(".")[0]
        if name in sound:
            del sound[name]  # and on to the next
        elif name in values:
            break  # missing, because it was refused
        faults.append(refusal)
        if name not in values:
            break  # missing
    return faults


def _refusal(build: Callable[[Any], Any], values: Any) -> str:
    try:
        build(values)
    except ValueError as error:
        return str(error)
    return ""


def check_normalizers(normalizers: dict[str, Any], references: dict[str, Any]) -> None:
    """Raise ValueError for a normaliser or reference that makes every target something that is not finite.

    Args:
        normalizers: fairchem's `Normalizer` of each output.
        references: its `LinearReferences`.
    """
    where, advice = "dataset.train.transforms", "Are the labels of dataset.train finite, and do they differ?"
    for name, normalizer in normalizers.items():
        mean, stdev = normalizer.mean, normalizer.rmsd
        if not (mean.isfinite().all() and stdev.isfinite().all() and (stdev > 0).all()):
            raise ValueError(
                f"{where}.normalizer.{name}: mean {mean.tolist()}, stdev {stdev.tolist()}; expected finite numbers, and a "
                f"stdev above 0. {advice}"
            )
    for name, reference in references.items():
        if not reference.element_references.isfinite().all():
            raise ValueError(f"{where}.element_references.{name}: holds numbers that are not finite. {advice}")


def check_warmup(scheduler_params: dict, steps_per_epoch: int) -> None:
    """Raise ValueError when `warmup_epochs` comes to no whole step, by which fairchem's schedules divide."""
    warmup = scheduler_params.get("warmup_epochs", 0)
    if int(warmup * steps_per_epoch) < 1:
        raise ValueError(
            f"optim.scheduler_params.warmup_epochs: {warmup} of an epoch of {steps_per_epoch} steps is less than one step; "
            f"give at least {1 / steps_per_epoch:.2g}."
        )


def check_gpus(number: int, *, cpu: bool) -> None:
    """Raise ValueError for `--num-gpus` beyond the GPUs of this machine; on the CPU it is a number of processes.

    A machine without GPU runs one process on its CPU.
    """
    there = torch.cuda.device_count()
    if not cpu and number > max(there, 1):
        raise ValueError(f"--num-gpus {number}: this machine has {there}. Give --cpu for as many processes on the CPU.")


def check_no_graph_parallelism(gp_gpus: int | None) -> None:
    """Raise ValueError for `--gp-gpus`, which spreads a system's atoms over ranks: relations join atoms of one rank."""
    if gp_gpus:
        raise ValueError(
            f"--gp-gpus {gp_gpus}: distillation needs all atoms of a system on one rank. Leave the flag out; students are "
            "small, and a large teacher can be cached on another machine (fairchem-crack cache-teacher)."
        )
