"""Checks of fairchem's own options, which it meets with a traceback in the first steps or drops in silence."""

from __future__ import annotations

from typing import Any, Optional

from fairchem_crack import keys
from fairchem_crack.batches import free_rows
from fairchem_crack.config import suggestion
from fairchem_crack.named_records import listed
from fairchem_crack.shapes import Shape


def all_outputs(outputs: dict) -> dict[str, dict]:
    """`outputs` with those that another is composed of, which have its level unless they say otherwise."""
    flat: dict[str, dict] = {}
    for name, options in outputs.items():
        flat[name] = options or {}
        for part, part_options in (flat[name].get("decomposition") or {}).items():
            flat[part] = {"level": flat[name].get("level", "system"), **(part_options or {})}
    return flat


def check_outputs(outputs: dict) -> None:
    """Raise ValueError for an output without an option that fairchem reads in each step."""
    for name, options in outputs.items():
        if not isinstance(options, dict):
            raise ValueError(f"outputs.{name}: expected a mapping with `level`, found {options!r}.")
        if options.get("level") not in ("system", "atom"):
            raise ValueError(f"outputs.{name}.level: expected `system` or `atom`, found {options.get('level')!r}.")
        flags = ("train_on_free_atoms", "eval_on_free_atoms") if options["level"] == "atom" else ()
        for flag in (flag for flag in flags if not isinstance(options.get(flag), bool)):
            raise ValueError(f"outputs.{name}.{flag}: expected True or False, found {options.get(flag)!r}.")


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


def check_transforms(dataset: dict, outputs: dict) -> None:
    """Raise ValueError for a normalizer or references of what is no output, which fairchem never applies.

    Args:
        dataset: the options of the training split.
        outputs: fairchem's options of each.
    """
    known = all_outputs(outputs)
    for transform in ("normalizer", "element_references"):
        given = (dataset.get("transforms") or {}).get(transform) or {}
        for name in (*given, *((given.get("fit") or {}).get("targets") or ())):
            if name not in ("fit", "file") and name not in known:
                raise ValueError(
                    f"dataset.train.transforms.{transform}: `{name}` is no output, and would never be applied. "
                    + suggestion(name, known)
                )


def check_optim(optim: dict) -> None:
    """Raise ValueError for a number of `optim` that is missing or impossible, which fairchem meets when training began."""
    for name in ("max_epochs", "num_workers"):
        if name not in optim:
            raise ValueError(f"optim.{name}: missing; expected an integer.")
    smallest = {"max_epochs": 1, "num_workers": 0, "batch_size": 1, "eval_batch_size": 1, "eval_every": 1}
    for name, least in {**smallest, "checkpoint_every": 1}.items():
        value = optim.get(name, least)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or (value < least and (name, value) != ("checkpoint_every", -1)):  # -1: after each epoch
            raise ValueError(f"optim.{name}: expected an integer of at least {least}, found {value!r}.")


LAMBDAS = {  # of fairchem's schedules in epochs, what each needs
    "cosine": ("warmup_epochs", "warmup_factor", "lr_min_factor"),
    "multistep": ("warmup_epochs", "warmup_factor", "decay_epochs", "decay_rate"),
}


def check_lambda(scheduler_params: dict) -> None:
    """Raise ValueError for a schedule in epochs that fairchem does not have, or that lacks an option."""
    kind = scheduler_params.get("lambda_type")
    if kind not in LAMBDAS:
        raise ValueError(f"optim.scheduler_params.lambda_type: unknown {kind!r}. {suggestion(str(kind), LAMBDAS)}")
    for name in LAMBDAS[kind]:
        if name not in scheduler_params:
            raise ValueError(f"optim.scheduler_params.{name}: missing; lambda_type {kind} needs it.")


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
