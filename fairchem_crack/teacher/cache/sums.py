"""Mean and standard deviation of each channel, gathered while records are written and merged over shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairchem_crack.io.files import write_text

CONSTANT = 1e-6  # of its mean: a channel that varies by less varies by rounding
LOST = 1e-3  # of its mean: float16 has 11 bits, and rounds a channel that varies by less to a few values


class Sums:
    """Of the atoms seen so far.

    Attributes:
        count: atoms.
        mean: (D,).
        squares: (D,) sum of (x - mean)^2.
    """

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(width), np.zeros(width)

    def add(self, values: np.ndarray) -> None:
        """(N, D) more atoms."""
        other = Sums(len(self.mean))
        values = values.astype(np.float64)
        if len(values):
            other.count, other.mean = len(values), values.mean(axis=0)
            other.squares = np.square(values - other.mean).sum(axis=0)
            self.merge(other)

    def merge(self, other: Sums) -> None:
        """Those of both. With d = mean' - mean: M = M + M' + d^2 n n' / (n + n') (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * other.count / count
        self.squares = self.squares + other.squares + difference**2 * self.count * other.count / count
        self.count = count

    @property
    def std(self) -> np.ndarray:
        """(D,) standard deviation."""
        return np.sqrt(self.squares / max(self.count, 1))

    def lost_in(self, dtype: str) -> int:
        """How many channels vary by less than their type resolves: large constants with a small signal on top."""
        if dtype != "float16":
            return 0
        size = np.abs(self.mean)
        return int(((self.std < LOST * size) & (self.std > CONSTANT * size)).sum())

    def state(self) -> dict[str, Any]:
        """What a file keeps."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], width: int) -> Sums:
        """Raises ValueError, KeyError or TypeError for what is not the state of sums of this width."""
        sums = cls(width)
        sums.count = int(state["count"])
        sums.mean, sums.squares = (np.array(state[name], dtype=float) for name in ("mean", "squares"))
        if not sums.mean.shape == sums.squares.shape == (width,):
            raise ValueError(f"expected {width} channels.")
        return sums


@dataclass
class ShardSums:
    """Of a shard's embeddings. Both kinds in one sum would differ by rounding, and a constant channel would seem to vary.

    Attributes:
        stored: of all records, as a training reads them, however often their writing was interrupted.
        given: before rounding, of the records whose writer could keep it; what float16 loses is seen here only.
    """

    stored: Sums
    given: Sums

    @classmethod
    def of_nothing(cls, width: int) -> ShardSums:
        """Of no record."""
        return cls(Sums(width), Sums(width))

    def add(self, values: np.ndarray, dtype: str) -> None:
        """(N, D) of a record that is written in a type."""
        self.given.add(values)
        self.stored.add(values.astype(dtype))

    def merge(self, other: ShardSums) -> None:
        """Those of both."""
        self.stored.merge(other.stored)
        self.given.merge(other.given)

    def lost_in(self, dtype: str) -> int:
        """How many channels vary by less than their type resolves, as far as that is known."""
        return (self.given if self.given.count else self.stored).lost_in(dtype)

    def save(self, file: Path, covered: int) -> None:
        """Keep them, with how many bytes of the shard's rows they cover."""
        content = {"covered": covered, "stored": self.stored.state(), "given": self.given.state()}
        write_text(file, json.dumps(content))

    @classmethod
    def load(cls, file: Path, width: int) -> tuple[ShardSums, int]:
        """The kept ones, and what they cover; of nothing where there are none or they cannot be read."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            stored, given = (Sums.from_state(content[name], width) for name in ("stored", "given"))
            return cls(stored, given), int(content["covered"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls.of_nothing(width), 0
