"""A training that resumes a checkpoint, compared with the one that wrote it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fairchem.core.common import distutils
from torch.optim import lr_scheduler

from fairchem_crack import keys

# Options on which the state of an optimizer, a schedule or a projection depends: it fits no other.
CLASSES = ("optim.optimizer", "optim.scheduler", "optim.scheduler_params.lambda_type", "task.distill.projection.kind")
# Options of the state that fairchem loads from a checkpoint, which decides them; those of the schedule are added.
STATEFUL = ("optim.lr_initial", "optim.optimizer_params", "optim.weight_decay", "optim.scheduler_params")
TRANSFORMS = "dataset.train.transforms"  # likewise, where the checkpoint has them
PATHS = ("dataset.train.src", "dataset.train.metadata_path")  # of what `dataset.train.content` compares
ORDER = ("seed", "dataset.train.content", "dataset.train.src", "task.distill.shuffle")  # of the order in which data are read


class Difference(NamedTuple):
    """An option by its dotted name, as it was and as it is; None where it is not given."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        before, now = ("not given" if value is None else "given" if isinstance(value, dict) else value for value in self[1:])
        return f"{self.name}: {before} -> {now}"


@dataclass(frozen=True)
class Resumed:
    """A checkpoint with the state of a training.

    Attributes:
        path: of its file.
        step, epoch: of that training.
        identity: see `identity`.
    """

    path: str
    step: int
    epoch: float
    identity: dict[str, Any]


def compare(resumed: Resumed, identity: dict[str, Any], *, steps_per_epoch: int) -> None:
    """Log, on rank 0, how a training differs from the one that it resumes.

    Args:
        identity: of the training.

    Raises:
        ValueError: what cannot be resumed: another kind of optimizer, schedule or projection.
    """
    if refused := foreign_state(resumed.identity, identity):
        raise ValueError(
            f"{resumed.path} cannot be resumed with another {_listed(refused)}. The state that it holds does not fit: give "
            "what it was trained with. To begin another training from its weights, give another --timestamp-id, and a "
            "best_checkpoint.pt as --checkpoint; task.distill.resume: student resumes the student, and begins all else anew."
        )
    changed = differences(resumed.identity, identity)
    if not distutils.is_master():
        return
    kept = [difference for difference in changed if is_kept(difference, identity["optim"])]
    taken = [difference for difference in changed if difference not in kept]
    where = f"{resumed.path} (step {resumed.step})"
    if taken:
        logging.warning(
            f"{where} is of another training than this one, whose result will be neither's: {_listed(taken)}. Another "
            "--timestamp-id begins anew."
        )
    if kept:
        logging.warning(f"{where} decides these options; the config's values have no effect: {_listed(kept)}.")
    if fault := position_fault(resumed, identity, changed, steps_per_epoch):
        logging.warning(f"{where}: {fault}")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """The options in which two identities differ. Numbers count by value; data by content, where both know it."""
    changed = _differences(before, now, "")
    knows_content = all("content" in (identity.get("dataset") or {}).get("train", {}) for identity in (before, now))
    unknown = [*(PATHS if knows_content else ["dataset.train.content"])]
    unknown += [name for name in ("ranks", "task") if name not in before or name not in now]
    if "task" not in before:
        unknown += [f"loss_functions.{term}" for term in keys.DISTILLATION_TERMS]
    # the numbers in a file of a normalizer or of references are in the checkpoint, too
    return [
        difference
        for difference in changed
        if difference.name not in unknown
        and not (difference.name.startswith(TRANSFORMS) and difference.name.endswith(".file"))
    ]


def _differences(before: Any, now: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}" if path else name)
    elif before != now:
        yield Difference(path, before, now)


def foreign_state(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """The differences for which the state of an optimizer, a schedule or a projection no longer fits.

    fairchem groups the parameters where there is a weight decay, and does not where there is none.
    """
    decays = [_weight_decay(identity.get("optim", {})) for identity in (before, now)]
    classes = [difference for difference in differences(before, now) if difference.name in CLASSES]
    return classes + ([] if all(decays) or not any(decays) else [Difference("optim.weight_decay", *decays)])


def is_kept(difference: Difference, optim: dict[str, Any]) -> bool:
    """Whether the value comes from the checkpoint, whatever the config says.

    fairchem's default schedule, a function of `optim`, has no state: its options are the config's.
    """
    if difference.name.startswith(TRANSFORMS):
        return difference.before is not None
    if difference.name == "optim.ema_decay":
        # without it the average is dropped; a checkpoint without an average has none to continue
        return difference.now is not None
    name = optim.get("scheduler", "Null")
    schedule = () if name == "Null" else inspect.signature(getattr(lr_scheduler, name)).parameters
    options = (*STATEFUL, *(f"optim.{option}" for option in schedule))
    return any(f"{difference.name}.".startswith(f"{option}.") for option in options)


def position_fault(resumed: Resumed, identity: dict[str, Any], changed: list[Difference], steps_per_epoch: int) -> str:
    """Why the data that follow are not those that would have followed; empty where they are.

    fairchem resumes at a number of steps, in whatever epoch that is now, and skips as many batches of it.
    """
    epoch = resumed.step / steps_per_epoch
    if resumed.epoch and abs(epoch - resumed.epoch) > 1e-6:
        return (
            f"that was epoch {resumed.epoch:.4g}, of {resumed.step / resumed.epoch:.0f} steps each. With {steps_per_epoch} "
            f"in an epoch fairchem resumes at epoch {epoch:.4g}: systems are repeated or left out, and a schedule in steps "
            "ends in another epoch."
        )
    names = {difference.name for difference in changed}
    systems = {_systems_per_step(training) for training in (resumed.identity, identity)}
    is_other_order = any(name.startswith(ORDER) for name in names) or len(systems - {None}) > 1
    is_other_order |= "ranks" in names and "shuffle" in identity["task"]["distill"]  # each has a part of the order
    if resumed.step % steps_per_epoch and is_other_order:
        return "the rest of this epoch is drawn in another order; in it, systems are repeated or left out."
    return ""


def _systems_per_step(identity: dict[str, Any]) -> int | None:
    ranks = identity.get("ranks")
    return None if ranks is None else ranks * identity["optim"]["batch_size"]


def _listed(changed: list[Difference]) -> str:
    return "; ".join(map(str, changed))


def _weight_decay(optim: dict[str, Any]) -> float:
    return optim.get("weight_decay", (optim.get("optimizer_params") or {}).get("weight_decay", 0))
