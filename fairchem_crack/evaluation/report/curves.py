"""What a training logged, from TensorBoard's event files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairchem_crack import keys

TRAIN, VAL = "train/", "val/"
# At most so many values of a scalar, drawn at random by TensorBoard from longer trainings.
LARGEST = 10_000
DIAGNOSTICS = (keys.RELATION_TOP1, keys.RELATION_COSINE, keys.RELATION_ENTROPY)


@dataclass(frozen=True)
class Curve:
    """One scalar: (T,) training steps, (T,) values, (T,) seconds since 1970."""

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray


def log_directory(checkpoint: Path) -> Path:
    """Where the run of RUN_DIR/checkpoints/NAME/checkpoint.pt logged, if its logger was `tensorboard`."""
    folder = checkpoint.absolute().parent
    return folder.parent.parent / "logs" / "tensorboard" / folder.name


def read_curves(directory: Path) -> dict[str, Curve]:
    """Every scalar in the event files of a directory, by its tag (`train/loss_relations`); a resumed run has several files.

    Empty where there are none.
    """
    if not any(directory.glob("*tfevents*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": LARGEST})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        events_of_tag = sorted(events.Scalars(tag), key=lambda event: (event.step, event.wall_time))
        last = {event.step: event for event in events_of_tag}  # of a step that was repeated, its last
        columns = zip(*((event.step, event.value, event.wall_time) for event in last.values()))
        steps, values, times = (np.array(column) for column in columns)
        curves[tag] = Curve(steps, values, times)
    return curves


def training_tags(curves: dict[str, Curve]) -> list[str]:
    """The tags of the loss and its terms, then of the relations' diagnostics."""
    terms = [tag for tag in curves if tag.startswith(TRAIN + keys.LOSS_PREFIX)]
    tags = [f"{TRAIN}loss", *sorted(terms), *(TRAIN + name for name in DIAGNOSTICS)]
    return [tag for tag in tags if tag in curves]


def validation_tags(curves: dict[str, Curve]) -> list[str]:
    """The tags of the metrics of the validations."""
    return [tag for tag in curves if tag.startswith(VAL) and tag != f"{VAL}epoch"]
