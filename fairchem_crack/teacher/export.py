"""Systems of fairchem as an ASE database: the common ground of a student and a teacher of another framework."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import load_split
from fairchem_crack.io.files import whole
from fairchem_crack.io.labels import read_unlabelled
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.label.systems import EXPORTED, EXPORTED_AS, digest_as_it_is


def write_database(config: dict[str, Any], split: str, file: Path) -> int:
    """Write the systems of a split, in the order of a training, all or none; how many there are.

    Each keeps its labels, tags, fixed atoms, `sid` and `fid`, and the digest by which a training looks up its record.

    Raises:
        ValueError: there is no such data, a record cannot be read, or the file is there.
    """
    if file.suffix != ".db":
        raise ValueError(f"--output {file}: expected a name that ends in .db.")
    if file.exists():
        raise ValueError(f"--output {file}: is there. Give another name, or delete it.")
    dataset = NamedRecords(load_split(config, split), f"dataset.{split}")
    read_unlabelled(dataset)
    return write_systems((dataset[index] for index in tqdm(range(len(dataset)), unit=" systems")), file)


def write_systems(systems: Iterable[Data], file: Path) -> int:
    """Write systems as rows of a database, in their order, all or none; how many there are."""
    count = 0
    with whole(file) as partial:
        partial.unlink(missing_ok=True)
        with connect(partial) as database:
            for system in systems:
                atoms = to_atoms(system)
                digests = {EXPORTED: digest_of(system).hex(), EXPORTED_AS: digest_as_it_is(atoms).hex()}
                atoms.calc = _labels(atoms, system)
                database.write(atoms, data={**atoms.info, **_ids(system), **digests})
                count += 1
    return count


def _labels(atoms: Atoms, system: Data) -> Optional[SinglePointCalculator]:
    """The record's energy and forces, those that are finite; None where it has none."""
    given = {name: system.get(name) for name in (keys.ENERGY, keys.FORCES)}
    labels = {name: np.asarray(value, dtype=float) for name, value in given.items() if value is not None}
    finite = {name: value for name, value in labels.items() if np.isfinite(value).all()}
    if keys.ENERGY in finite:
        finite[keys.ENERGY] = finite[keys.ENERGY].item()
    return SinglePointCalculator(atoms, **finite) if finite else None


def _ids(system: Data) -> dict[str, Any]:
    """What names a system, as plain numbers and texts."""
    names = ("sid", "fid", "parent", "copy_number")
    return {name: np.asarray(system[name]).reshape(-1)[0].item() for name in names if name in system}
