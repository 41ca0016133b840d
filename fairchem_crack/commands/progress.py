"""`fairchem-crack progress`: how far a training is, from its log on standard input."""

from __future__ import annotations

import argparse
import io
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Optional, TextIO

# fairchem's lines, of which one of a step has `step`, and one of a validation only `epoch`
NUMBERS = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) .*\(INFO\): (\w+: [-+.\w]+(?:, \w+: [-+.\w]+)*)$")
MAX_EPOCHS = re.compile(r"^  max_epochs: (\d+)$")  # of the config, which fairchem prints at the start
OUR_WARNING = re.compile(r"fairchem_crack/\S+ \(WARNING\): (.*)$")
END = "(INFO): Total time taken: "
ERASE_LINE = "\r\x1b[K"
WIDTH = 12  # of the bar
LAST_LINES = 10  # shown of a training that failed


@dataclass(frozen=True)
class Record:
    """The numbers of one line of the log."""

    time: datetime
    values: dict[str, float]

    @property
    def epoch(self) -> float:
        """Passes over the training data."""
        return self.values["epoch"]

    @property
    def is_step(self) -> bool:
        """Of a step, not of a validation."""
        return "step" in self.values


def record_of(line: str) -> Optional[Record]:
    """The numbers of a step or a validation; None for every other line."""
    match = NUMBERS.match(line)
    pairs = [pair.split(": ") for pair in match[2].split(", ")] if match else []
    if not match or "epoch" not in dict(pairs):
        return None
    return Record(datetime.fromisoformat(match[1]), {name: float(value) for name, value in pairs})


def losses(values: dict[str, float]) -> str:
    """For example "loss 278 (energy 0.29, forces 0.46, relations 4.3)"; without terms, the errors of the training."""
    terms = {name[len("loss_") :]: value for name, value in values.items() if name.startswith("loss_")}
    terms = terms or {name: value for name, value in values.items() if name.endswith("_mae")}
    listed = ", ".join(f"{name} {value:.2g}" for name, value in terms.items())
    return f"loss {values['loss']:.3g}" + (f" ({listed})" if terms else "")


def time_left(record: Record, first: Record, epochs: int) -> Optional[str]:
    """By the pace since the first record of this process; None before there is one."""
    seconds = (record.time - first.time).total_seconds()
    if not (seconds > 0 and record.epoch > first.epoch):
        return None
    left = (epochs - record.epoch) * seconds / (record.epoch - first.epoch)
    if left < 90:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 90 * 60 else f"{left / 3600:.1f} h left"


class Screen:
    """Shows records: on a terminal in one line that is drawn anew, elsewhere a line for each tenth of the training."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.is_terminal = file.isatty()
        self.part = 0  # of the training, at the last line

    def step(self, record: Record, first: Record, epochs: Optional[int]) -> None:
        """Show a step, with what is left where the number of epochs is known."""
        if epochs is None:
            fraction, text = 0.0, f"epoch {record.epoch:.3g}"
            part = int((record.time - first.time).total_seconds() // 60)  # a line for each minute
        else:
            fraction = record.epoch / epochs
            text = ", ".join(filter(None, [f"epoch {record.epoch:.3g} of {epochs}", time_left(record, first, epochs)]))
            text = f"{fraction:4.0%}  {text}"
            part = int(10 * fraction)
        text = f"{text}, step {record.values['step']:.0f}, {losses(record.values)}"
        if self.is_terminal:
            bar = f"|{'#' * round(WIDTH * fraction):{WIDTH}}|" if epochs else "  "
            line = f"   {bar}{text}"[: shutil.get_terminal_size().columns - 1]
            self.file.write(f"{ERASE_LINE}{line}")
            self.file.flush()
        elif part > self.part or record is first:
            self.say(text)
        self.part = part

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.file.write(f"{ERASE_LINE if self.is_terminal else ''}   {text}\n")
        self.file.flush()


def follow(log: Iterable[str], file: TextIO) -> bool:
    """Show the progress of a training until its log ends; returns whether the training ended as it should."""
    screen, last = Screen(file), deque[str](maxlen=LAST_LINES)
    epochs: Optional[int] = None
    first: Optional[Record] = None
    is_complete = False
    for line in map(str.rstrip, log):
        last.append(line)
        record, warning, option = record_of(line), OUR_WARNING.search(line), MAX_EPOCHS.match(line)
        if record and record.is_step:
            first = first or record
            screen.step(record, first, epochs)
        elif record:
            screen.say("validation: " + ", ".join(f"{name} {value:.3g}" for name, value in record.values.items()))
        elif warning:
            screen.say(f"warning: {warning[1]}")
        elif option:
            epochs = int(option[1])
        is_complete = is_complete or END in line
    if not is_complete:
        screen.say("The training ended before its last step. The end of its log:")
        for line in last:
            screen.say(line)
    elif screen.is_terminal:
        file.write(ERASE_LINE)
    return is_complete


def progress(arguments: list[str]) -> None:
    """Follow the log on standard input; exit with 1 if the training failed."""
    argparse.ArgumentParser(
        prog="fairchem-crack progress",
        description="Show how far a training is, how long the rest takes, its losses and validations: "
        "fairchem --mode train ... 2>&1 | tee train.log | fairchem-crack progress",
    ).parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, whose last lines are read then
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not follow(sys.stdin, sys.stdout):
        sys.exit(1)
