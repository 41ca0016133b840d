"""What `fairchem-crack generate` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from fairchem_crack.io.arguments import check_at_least, check_positive, check_range

MOVES = ("rattle", "displace", "strain")  # of the parent's geometry
TRAJECTORIES = ("relax", "md")  # of a model, from where the moves have led
FORMATS = ("lmdb", "ase_db")


class ThrownOut(Exception):
    """A system that is not kept, or cannot be made; the reason is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Settings:
    """What decides which systems are made of a parent, and which of them are kept.

    Attributes:
        strategies: how many systems of each parent, by strategy; `displace+rattle` applies one after the other.
        sigma: A, the range from which the standard deviation of a system's rattling is drawn.
        temperature: K, of `md`.
        every: steps between two kept frames of `md` and `relax`.
        strain: standard deviation of the entries of a strain tensor.
        min_distance: of two atoms, in sums of their covalent radii.
        max_force: eV/A, of the teacher on a free atom.
        max_energy_change: eV, between the teacher's energies of a system and of its parent.
        max_gap: A, between the adsorbate and the atom nearest to it; None for no limit.
        select: how many of the systems within all limits are kept, those that add most; None for all.
        select_random: the same number at random, to compare with.
        seed: with the number of the parent and of the copy it decides a system.
        with_parents: are they part of the dataset, too?
        output_format: of the dataset, one of `FORMATS`.
        checkpoint: of the model that moves the atoms of `md` and `relax`; None is the teacher.

    Raises:
        ValueError: one of them is out of bounds; the message begins with its option.
    """

    strategies: Mapping[str, int]
    sigma: tuple[float, float] = (0.02, 0.12)
    temperature: float = 500.0
    every: int = 10
    strain: float = 0.01
    min_distance: float = 0.6
    max_force: float = 20.0
    max_energy_change: float = 20.0
    max_gap: Optional[float] = None
    select: Optional[int] = None
    select_random: Optional[int] = None
    seed: int = 0
    with_parents: bool = True
    output_format: str = "lmdb"
    checkpoint: Optional[str] = None

    def __post_init__(self) -> None:
        for strategy, count in self.strategies.items():
            _check_strategy(strategy)
            if count < 1:
                raise ValueError(f"--strategies {strategy}={count}: expected at least 1.")
        check_range(self, "sigma")
        check_positive(self, ("temperature", "strain", "max_force", "max_energy_change", "max_gap"))
        check_positive(self, ("min_distance",), or_zero=True)
        check_at_least(self, {"every": 1, "select": 1, "select_random": 1, "seed": 0})
        if self.select is not None and self.select_random is not None:
            raise ValueError("--select and --select-random: expected one of them.")

    @property
    def selected(self) -> Optional[int]:
        """How many systems are selected, in either way; None for all."""
        return self.select_random if self.select is None else self.select

    def check_selected(self, available: int, which: str) -> None:
        """Raise ValueError where more systems are to be selected than there are.

        Args:
            which: what the available systems are, for the message.
        """
        if self.selected is not None and self.selected > available:
            option = "--select-random" if self.select is None else "--select"
            raise ValueError(f"{option} {self.selected}: {available} systems {which}. Select fewer.")

    @property
    def has_trajectories(self) -> bool:
        """Whether a model moves atoms."""
        return any(strategy.split("+")[-1] in TRAJECTORIES for strategy in self.strategies)


def _check_strategy(strategy: str) -> None:
    *before, last = strategy.split("+")
    for name in (*before, last):
        if name not in (*MOVES, *TRAJECTORIES):
            raise ValueError(f"--strategies {strategy}: {name!r} is none of {', '.join((*MOVES, *TRAJECTORIES))}.")
    for name in before:
        if name in TRAJECTORIES:
            raise ValueError(f"--strategies {strategy}: {name} can only be the last; it begins where the others end.")
