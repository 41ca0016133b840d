"""How far the training had come that wrote a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairchem_crack import keys


@dataclass(frozen=True)
class Progress:
    """Of a training; None where its checkpoint does not say.

    Attributes:
        step: updates of the weights.
        epoch: passes over the training data.
    """

    step: Optional[int] = None
    epoch: Optional[float] = None

    def __str__(self) -> str:
        if self.step is None:
            return "step not recorded"
        return f"step {self.step}" + ("" if self.epoch is None else f", epoch {self.epoch:.4g}")


def progress_of(checkpoint: dict[str, Any]) -> Progress:
    """fairchem records it in a training checkpoint, this package in one for inference as well (`best_checkpoint.pt`)."""
    entry = checkpoint.get(keys.CHECKPOINT_KEY) or {}
    step, epoch = (checkpoint.get(name, entry.get(name)) for name in (keys.STEP, keys.EPOCH))
    return Progress(None if step is None else int(step), None if epoch is None else float(epoch))


def trained_progress(checkpoint: dict[str, Any], path: Path) -> Progress:
    """`progress_of` a checkpoint whose model has been trained.

    Raises:
        ValueError: it is of step 0, as one that a run has left which ended before its first checkpoint.
    """
    progress = progress_of(checkpoint)
    if progress.step == 0:
        raise ValueError(
            f"{path} is of step 0: its model is untrained. Did its run end before it saved? Start the run again, or give "
            "another checkpoint."
        )
    return progress
