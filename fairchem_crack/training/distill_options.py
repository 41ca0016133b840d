"""What a config says of distillation: the student's own losses, the terms, and the block `task.distill`."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Optional

from fairchem_crack.config import DistillConfig, TermConfig, parse, split_loss_functions
from fairchem_crack.training.config_checks import missing_distill

ONLY_TERMS = "loss_functions: has only distillation terms; the student needs its own too, for example `energy`."


class DistillOptions(NamedTuple):
    """The options of a training.

    Attributes:
        own_losses: of the student, as fairchem takes them.
        terms: those with a coefficient.
        config: None for a training without terms.
    """

    own_losses: list[dict]
    terms: list[TermConfig]
    config: Optional[DistillConfig]


def distill_options(task: dict[str, Any], loss_functions: list[dict]) -> DistillOptions:
    """Read the options, and log what of them has no effect.

    Raises:
        ValueError: an option is not understood or missing; the message names it.
    """
    own_losses, given = split_loss_functions(loss_functions)
    if given and not own_losses:
        raise ValueError(ONLY_TERMS)
    terms = [term for term in given if term.coefficient > 0]
    for term in given:
        if term not in terms:
            logging.info(f"loss_functions: `{term.key}` is left out, its coefficient is 0.")
    block = task.get("distill")
    if not terms:
        if block is not None:
            logging.warning("task.distill is given, but loss_functions has no distillation term: plain training.")
        return DistillOptions(own_losses, [], None)
    if block is None:
        raise ValueError(missing_distill(task))
    return DistillOptions(own_losses, terms, parse(DistillConfig, block, "task.distill"))
