"""Part of an ASE database for validation, where there is no other: both parts as databases of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase.db import connect

from fairchem_crack.io.files import whole

SEED = 0


@contextmanager
def hold_out(source: Path, count: int, output: Path) -> Iterator[tuple[Path, Path]]:
    """Write the systems to train on, and those held out, beside the YAML; the two files, which an error removes again.

    Systems that have the same atoms in the same cell, as the frames of a relaxation and the placements of an adsorbate on a
    slab have, are on the same side. They are drawn at random, always the same of the same database.

    Args:
        count: systems to hold out at most; as many as do not divide such a group.
        output: the YAML, whose name theirs begin with.

    Raises:
        FileNotFoundError: there is no such database.
        ValueError: not one database that ASE writes, too few systems or too alike, or a file is there already.
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
    held = held_out(rows.select(include_data=False), count)
    if not held:
        raise ValueError(
            f"--hold-out {count}: {source} has {rows.count()} systems, but no {count} of them or fewer can be held out. "
            "Those with the same atoms in the same cell stay together, and half of all stay for training. Give the systems "
            "to validate on as --val."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(train, (row for row in rows.select() if row.id not in held))
        _write(val, (row for row in rows.select() if row.id in held))
        yield train, val
    except BaseException:
        for file in (train, val):
            file.unlink(missing_ok=True)
        raise


def held_out(rows: Iterable[Any], count: int) -> set[int]:
    """The ids of the rows held out: whole groups, in a random order, at most `count` and half of all rows."""
    groups: dict[tuple, list[int]] = {}
    for row in rows:
        cell = np.round(row.cell, 3) + 0.0  # -0.0 is another number by its bytes
        groups.setdefault((row.numbers.tobytes(), cell.tobytes(), row.pbc.tobytes()), []).append(row.id)
    ids, held = list(groups.values()), set[int]()
    most = min(count, sum(map(len, ids)) // 2)
    for index in np.random.default_rng(SEED).permutation(len(ids)):
        if len(held) + len(ids[index]) <= most:
            held |= set(ids[index])
    return held


def _write(file: Path, rows: Iterable[Any]) -> None:
    """Rows as they are: with their labels, constraints, and what their data have."""
    with whole(file) as partial:
        partial.unlink(missing_ok=True)
        with connect(partial) as database:
            for row in rows:
                database.write(row, key_value_pairs=row.key_value_pairs, data=row.data)
