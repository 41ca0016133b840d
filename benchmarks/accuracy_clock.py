"""The logger of the accuracy benchmark's trainings: fairchem's TensorBoard logger, which also logs what a step costs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from fairchem.core.common.logger import TensorboardLogger

STEP_CPU = "step_cpu_seconds"


class ClockedLogger(TensorboardLogger):
    """Also logs the CPU time since the last step was logged: of one step, and of the validation between them if any."""

    _last: float | None = None

    def log(self, update_dict: dict, step: int, split: str = "") -> None:
        """Log as fairchem does; of a step's entry, the one with the learning rate, also its CPU time."""
        if split == "train" and "lr" in update_dict:
            now = time.process_time()
            if self._last is not None:
                update_dict = {**update_dict, STEP_CPU: now - self._last}
            self._last = now
        super().log(update_dict, step, split)


NAME = f"{__name__}.{ClockedLogger.__name__}"  # by which fairchem's registry imports it


def step_seconds(logs: Path) -> dict[str, float]:
    """Medians over the steps of a run, wall clock and CPU, as columns of the CSV: they leave validations out as outliers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wall: list[float] = []
    cpu: list[float] = []
    for file in sorted(logs.glob("events.out.tfevents.*")):  # one of each process that had a part in the training
        entries: Any = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        if f"train/{STEP_CPU}" in entries.Tags()["scalars"]:
            steps = entries.Scalars("train/lr")
            wall += [after.wall_time - before.wall_time for before, after in zip(steps, steps[1:])]
            cpu += [entry.value for entry in entries.Scalars(f"train/{STEP_CPU}")]
    if not wall:
        raise ValueError(f"{logs}: no two steps of one process are logged there.")
    return {"step_seconds": statistics.median(wall), STEP_CPU: statistics.median(cpu)}
