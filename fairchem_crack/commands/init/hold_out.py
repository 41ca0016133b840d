"""Part of an ASE database for validation, where there is no other: both parts as databases of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.db import connect

from fairchem_crack.io.files import whole

SEED = 0


class Division(NamedTuple):
    """The databases of the systems to train on and to validate on, and how much of all the latter are."""

    train: Path
    val: Path
    summary: str


@contextmanager
def hold_out(source: Path, count: int, output: Path) -> Iterator[Division]:
    """Write the systems to train on, and those held out, beside the YAML; an error removes the two files again.

    Systems of one composition are on the same side: so the frames of a relaxation are, also where its cell changes, the
    volumes of a crystal, and the places of an adsorbate on a slab. Else the student would be validated on structures next to
    those that it was trained on. They are drawn at random, always the same of the same database.

    Args:
        count: systems to hold out at most; as many as do not divide a composition.
        output: the YAML, whose name theirs begin with.

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: not one database that ASE writes, too few compositions, or a file is there already.
    """
    if source.suffix != ".db":
        raise ValueError(
            f"--hold-out: divides an ASE database (*.db), not {source}. Give the systems to validate on as --val."
        )
    if not source.is_file():
        raise FileNotFoundError(f"--dataset {source}: does not exist (looked in {Path.cwd()}).")
    train, val = (output.with_name(f"{output.stem}_{split}.db") for split in ("train", "val"))
    for file in (train, val):
        if file.exists():
            raise ValueError(f"--output {output}: {file} is there already. Give another name, or remove it.")
    rows = connect(source)
    compositions = by_composition(rows.select(include_data=False))
    held = held_out(compositions, count)
    if not held:
        sizes = [len(ids) for ids in compositions]
        raise ValueError(
            f"--hold-out {count}: expected a composition of at most {count} systems, and of at most half of all; {source} "
            f"has {sum(sizes)} systems of {len(sizes)} compositions, at least {min(sizes, default=0)} of each. Systems of "
            "one composition stay together. Give another number, or the systems to validate on as --val."
        )
    chosen = sum(not held.isdisjoint(ids) for ids in compositions)
    summary = f"{len(held)} of {rows.count()} systems, {chosen} of {len(compositions)} compositions"
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(train, (row for row in rows.select() if row.id not in held))
        _write(val, (row for row in rows.select() if row.id in held))
        yield Division(train, val, summary)
    except BaseException:
        for file in (train, val):
            file.unlink(missing_ok=True)
        raise


def by_composition(rows: Iterable[Any]) -> list[list[int]]:
    """The ids of the rows that have as many atoms of each element."""
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        groups.setdefault(np.sort(row.numbers).tobytes(), []).append(row.id)
    return list(groups.values())


def held_out(groups: list[list[int]], count: int) -> set[int]:
    """Ids of whole groups, in a random order: at most `count`, and at most half of all."""
    held = set[int]()
    most = min(count, sum(map(len, groups)) // 2)
    for index in np.random.default_rng(SEED).permutation(len(groups)):
        if len(held) + len(groups[index]) <= most:
            held |= set(groups[index])
    return held


def _write(file: Path, rows: Iterable[Any]) -> None:
    """Rows as they are: with their labels, constraints, and what their data have."""
    with whole(file) as partial:
        partial.unlink(missing_ok=True)
        with connect(partial) as database:
            for row in rows:
                database.write(row, key_value_pairs=row.key_value_pairs, data=row.data)
