"""The learning rate's schedule over a whole training: whether it lasts, and where it leads."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim import lr_scheduler

POINTS = 500  # steps of a training at which the rate is looked at
TINY = 1e-4  # of the largest rate: below it nothing is learned
LATE = 0.9  # of the training: from there on a tiny rate is the end of a schedule


def check_length(scheduler: Any, steps: int) -> None:
    """Raise ValueError for a schedule of a fixed length that ends before the training: torch refuses to step beyond it.

    Args:
        scheduler: fairchem's, which is stepped once for each training step.
        steps: of the training.
    """
    total = getattr(getattr(scheduler, "scheduler", None), "total_steps", None)
    if total is not None and total < steps:
        raise ValueError(
            f"optim.scheduler: {scheduler.scheduler_type} has {total} steps, the training {steps}; torch would end it with "
            f"an error in step {total + 1}. Set optim.total_steps: {steps}."
        )


def learning_rates(scheduler: Any, steps: int) -> dict[int, float]:
    """The rate in some steps of a training, counted from 1, the first and the last among them.

    Args:
        scheduler: torch's, at its beginning; it is left where the training ends.
        steps: of the training; not more than the schedule has.
    """
    rates = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against `step(epoch)`, which needs no loop over all steps
        for step in sorted({1 + number * (steps - 1) // (POINTS - 1) for number in range(POINTS)}):
            scheduler.step(step - 1)
            rates[step] = float(scheduler.get_last_lr()[0])
    return rates


def schedule_notes(scheduler: Any, steps: int) -> list[str]:
    """The first, largest and last rate of fairchem's scheduler over a training, and what looks unintended, as warnings."""
    inner = getattr(scheduler, "scheduler", None)
    if inner is None or steps < 1 or isinstance(inner, lr_scheduler.ReduceLROnPlateau):
        return []
    rates = learning_rates(inner, steps)
    first, largest, last = rates[1], max(rates.values()), rates[steps]
    notes = [f"learning rate {first:.3g} in step 1, at most {largest:.3g}, {last:.3g} in step {steps}"]
    tiny = [step for step, rate in rates.items() if rate < TINY * largest and step >= max(rates, key=rates.__getitem__)]
    rises_again = isinstance(inner, lr_scheduler.CosineAnnealingLR) and inner.T_max < steps
    if tiny and tiny[0] < LATE * steps and not rises_again:
        notes.append(
            f"WARNING: the learning rate is {rates[tiny[0]]:.2g} from about step {tiny[0]} of {steps} on. fairchem advances "
            "a schedule with each step, not with each epoch."
        )
    if rises_again:
        notes.append(
            f"WARNING: the learning rate rises again after step {inner.T_max} of {steps}; for one descent set optim.T_max: "
            f"{steps}."
        )
    if isinstance(inner, lr_scheduler.OneCycleLR) and inner.total_steps > steps:
        notes.append(
            f"WARNING: the training ends after {steps} of the schedule's {inner.total_steps} steps, before the learning "
            f"rate has come down. Set optim.total_steps: {steps}."
        )
    return notes
