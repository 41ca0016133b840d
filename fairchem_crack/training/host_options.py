"""Faults of fairchem's own options, on which it fails in the first steps or which it drops in silence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from fairchem.core.modules.evaluator import Evaluator

from fairchem_crack import keys
from fairchem_crack.config import CONTRASTIVE, DistillConfig, Fault, TermConfig, suggestion
from fairchem_crack.io.batches import free_rows
from fairchem_crack.io.named_records import listed
from fairchem_crack.shapes import Shape, loss_misfit
from fairchem_crack.training.losses import unknown_loss

# Of `optim`, the smallest value of each integer.
SMALLEST = {
    "max_epochs": 1,
    "num_workers": 0,
    "batch_size": 1,
    "eval_batch_size": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
}
LAMBDAS = {  # of fairchem's schedules in epochs, what each needs
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}
FITTED = ("normalizer", "element_references")  # transforms that fairchem fits to labels
BEST_WHEN_SMALL = ("mse", "magnitude_error", "min_diff")  # errors whose names fairchem does not know for those


def all_outputs(outputs: dict) -> dict[str, dict]:
    """`outputs` with those that another is composed of, which have its level unless they say otherwise."""
    flat: dict[str, dict] = {}
    for name, options in outputs.items():
        flat[name] = options or {}
        for part, part_options in (flat[name].get("decomposition") or {}).items():
            flat[part] = {"level": flat[name].get("level", "system"), **(part_options or {})}
    return flat


def output_faults(outputs: dict) -> Iterator[Fault]:
    """Options of an output that fairchem reads in each step."""
    for name, options in outputs.items():
        path = f"outputs.{name}"
        if not isinstance(options, dict):
            yield Fault(path, f"expected a mapping with `level`, found {options!r}.")
            continue
        level = options.get("level")
        if level not in ("system", "atom"):
            yield Fault(f"{path}.level", f"expected `system` or `atom`, found {level!r}.")
        for flag in ("train_on_free_atoms", "eval_on_free_atoms") if level == "atom" else ():
            if not isinstance(options.get(flag), bool):
                yield Fault(f"{path}.{flag}", f"expected True or False, found {options.get(flag)!r}.")


def shape_of(name: str, options: dict) -> Optional[Shape]:
    """Of an output; None where its options do not say it."""
    rows, columns = {"system": "B", "atom": "N"}.get(str(options.get("level"))), columns_of(name, options)
    return None if rows is None or columns is None else (rows, str(columns))


def columns_of(name: str, options: dict) -> Optional[int]:
    """How many numbers an output has of each system or atom; None where its options do not say it."""
    columns = {keys.ENERGY: 1, keys.FORCES: 3}.get(options.get("property", name), options.get("shape"))
    if isinstance(options.get("irrep_dim"), int):
        columns = 2 * options["irrep_dim"] + 1
    return columns if isinstance(columns, int) else None


def own_loss_faults(own_losses: list[dict], outputs: dict) -> Iterator[Fault]:
    """A loss of what is no output of the model and no distillation term, or one that an output cannot take."""
    known = all_outputs(outputs)
    for name, options in (item for loss in own_losses for item in loss.items()):
        where = f"loss_functions, {name}"
        if name not in known:
            nearest = suggestion(name, [*known, *keys.DISTILLATION_TERMS])
            yield Fault("loss_functions", f"`{name}` is neither an output of the model nor a distillation term. {nearest}")
        elif not isinstance(options, dict) or not {"fn", "coefficient"} <= options.keys():
            yield Fault(where, f"expected a mapping with `fn` and `coefficient`, found {options!r}.")
        else:
            fn, coefficient = options["fn"], options["coefficient"]
            if fn in CONTRASTIVE.values():
                yield Fault(f"{where}.fn", f"`{fn}` compares embeddings; an output takes for example `mae`.")
            elif unknown := unknown_loss(fn):
                yield Fault(f"{where}.fn", unknown)
            elif misfit := loss_misfit(fn, shape_of(name, known[name]), name):
                yield Fault(f"{where}.fn", misfit)
            if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)) or not math.isfinite(coefficient):
                yield Fault(f"{where}.coefficient", f"expected a finite number, found {coefficient!r}.")


def term_loss_faults(terms: Iterable[TermConfig]) -> Iterator[Fault]:
    """A distillation term with a loss that fairchem does not have."""
    for term in terms:
        if term.fn not in CONTRASTIVE.values() and (unknown := unknown_loss(term.fn)):
            yield Fault(f"loss_functions, {term.key}.fn", unknown)


def transform_faults(dataset: dict, outputs: dict) -> Iterator[Fault]:
    """A normalizer or references of what is no output, which fairchem never applies.

    Args:
        dataset: the options of the training split.
        outputs: fairchem's options of each.
    """
    known = all_outputs(outputs)
    for transform in FITTED:
        given = (dataset.get("transforms") or {}).get(transform) or {}
        for name in (*given, *((given.get("fit") or {}).get("targets") or ())):
            if name not in ("fit", "file") and name not in known:
                sentence = f"`{name}` is no output, and would never be applied. {suggestion(name, known)}"
                yield Fault(f"dataset.train.transforms.{transform}", sentence)


def label_faults(distill: DistillConfig, dataset: dict) -> Iterator[Fault]:
    """Normalizers or references that are to be fitted to labels that are missing, or not trained on.

    Args:
        dataset: the options of the training split.
    """
    if distill.labels == "data":
        return
    for name in FITTED:
        if "fit" in ((dataset.get("transforms") or {}).get(name) or {}):
            yield Fault(
                f"dataset.train.transforms.{name}.fit",
                f"is fitted to the labels of the data, and with task.distill.labels: {distill.labels} the student is "
                "trained on the teacher's. `fairchem-crack references --config-yml ... --output references.npz` fits both "
                "transforms to these, and prints the lines that replace this one.",
            )


def shuffle_faults(distill: DistillConfig, dataset: dict) -> Iterator[Fault]:
    """Blocks of neighbours that lie together in no file: fairchem's dataset is in a random order of its own.

    Args:
        dataset: the options of the training split.
    """
    options = {**dataset, **(dataset.get("train_split_settings") or {})}
    is_shuffled = not options.get("no_shuffle") and options.get("first_n") is None
    if distill.shuffle is not None and distill.teacher.cache is None and is_shuffled:
        yield Fault(
            "task.distill.shuffle",
            "reads nothing in sequence: fairchem shuffles dataset.train when it opens it, so that neighbours lie apart. Set "
            "dataset.train.no_shuffle: True, or use a teacher.cache, whose records are in the shuffled order.",
        )


def metric_faults(evaluation_metrics: dict, task: str = "ocp") -> Iterator[Fault]:
    """A primary metric, which the trainer has no default for, that is missing, never computed, or best when it is small.

    Args:
        task: fairchem's name of it; for "ocp" it has no default metrics.
    """
    path, primary = "evaluation_metrics.primary_metric", evaluation_metrics.get("primary_metric")
    metrics = evaluation_metrics.get("metrics") or Evaluator.task_metrics.get(task, {})
    # as fairchem's Evaluator names them
    names = [fn if of in fn or of == "misc" else f"{of}_{fn}" for of, functions in metrics.items() for fn in functions]
    if not primary:
        yield Fault(
            path,
            "missing. It decides which checkpoint is the best; OC20's is `energy_forces_within_threshold`, `forces_mae` is "
            "usual too.",
        )
    elif primary not in (*names, "loss"):
        advice = suggestion(primary, names) if names else "Give evaluation_metrics.metrics."
        yield Fault(path, f"{primary!r} is none of the metrics. {advice}")
    elif "mae" not in primary and (primary == "loss" or primary.endswith(BEST_WHEN_SMALL)):
        yield Fault(
            path,
            f"{primary!r} is better when it is smaller, and fairchem takes the largest value for the best, unless `mae` is "
            "in the name: best_checkpoint.pt would be the worst. Take an MAE, for example `forces_mae`, or "
            "`energy_forces_within_threshold`.",
        )


def validation_faults(options: dict, optim: dict) -> Iterator[Fault]:
    """A learning rate that follows a validation for which there is no data.

    Args:
        options: of the validation split.
    """
    if optim.get("scheduler") == "ReduceLROnPlateau" and not options.get("src"):
        sentence = "missing; optim.scheduler ReduceLROnPlateau goes by a validation. Give data for it, or another scheduler."
        yield Fault("dataset.val.src", sentence)


def optim_faults(optim: dict) -> Iterator[Fault]:
    """A number of `optim` that is missing or impossible, at which fairchem fails only after training has begun."""
    for name, smallest in SMALLEST.items():
        path, value = f"optim.{name}", optim.get(name, smallest)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if name not in optim and name in ("max_epochs", "num_workers"):
            yield Fault(path, "missing; expected an integer.")
        elif not is_integer or (value < smallest and (name, value) != ("checkpoint_every", -1)):  # -1: after each epoch
            yield Fault(path, f"expected an integer >= {smallest}, found {value!r}.")


def lambda_faults(scheduler_params: dict) -> Iterator[Fault]:
    """A schedule in epochs that fairchem does not have, or that lacks an option."""
    kind = scheduler_params.get("lambda_type")
    if kind not in LAMBDAS:
        yield Fault("optim.scheduler_params.lambda_type", f"unknown {kind!r}. {suggestion(str(kind), LAMBDAS)}")
    for name in LAMBDAS.get(str(kind), ()):
        if name not in scheduler_params:
            yield Fault(f"optim.scheduler_params.{name}", f"missing; lambda_type {kind} needs it.")


def check_free_atoms(batch: Any, outputs: dict, *, is_training: bool, where: str) -> None:
    """Raise ValueError for a batch without a free atom, where those are compared: fairchem cannot take a mean over nothing.

    Args:
        outputs: fairchem's options of each.
        where: the batch is from, for the message, which adds its systems.
    """
    flag = "train_on_free_atoms" if is_training else "eval_on_free_atoms"
    compared = [name for name, options in outputs.items() if options.get("level") == "atom" and options.get(flag)]
    if compared and "fixed" in batch and not len(free_rows(batch)):
        raise ValueError(
            f"{where}, systems of {listed(batch)}: all atoms are fixed, and outputs.{compared[0]}.{flag} is true: there is "
            f"nothing to compare. Leave such systems out, take larger batches, or set {flag}: False."
        )
