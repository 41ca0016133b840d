"""A fairchem logger that keeps what is logged, and can interrupt a training at a step."""

from __future__ import annotations

from fairchem.core.common.logger import Logger
from fairchem.core.common.registry import registry

_records: list[dict] = []
_stop_at: int | None = None


class Interrupted(BaseException):
    """Stands for a kill: nothing in the trainer catches it."""


def start(stop_at: int | None) -> None:
    global _stop_at
    _records.clear()
    _stop_at = stop_at


def records() -> list[dict]:
    return list(_records)


@registry.register_logger("recorder")
class Recorder(Logger):
    def watch(self, model, log_freq: int = 1000) -> None:
        pass

    def log(self, update_dict, step: int, split: str = ""):
        _records.append({**update_dict, "step": step, "split": split})
        if split == "train" and "loss" in update_dict and step == _stop_at:
            raise Interrupted

    def log_summary(self, summary_dict) -> None:
        pass

    def log_plots(self, plots) -> None:
        pass

    def log_table(self, name, cols, data) -> None:
        pass

    def mark_preempting(self) -> None:
        pass

    def log_artifact(self, name, type, file_location) -> None:
        pass
