"""The systems to label: those of ASE's files, as a training of fairchem reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import iread

from fairchem_crack.io.wrapping import wrapped
from fairchem_crack.teacher.cache import system_digest

DATABASES = (".db", ".json")
DATA_KEYS = ("charge", "spin", "initial_charges", "initial_magmoms")  # of `info`, that a training can read
NAMES = ("sid", "parent", "copy_number")  # of `info`, for messages
SMALLEST_VOLUME = 1e-6  # A^3: with less, a cell's vectors lie in a plane
EXPORTED, EXPORTED_AS = "crack_digest", "crack_exported_as"  # in `info`: of the record, and of the Atoms beside it


class System(NamedTuple):
    """A system, as a training reads it.

    Attributes:
        name: its place in the data, and what its data name it.
        atoms: without constraints and calculator.
        digest: the same as the training's.
        fixed: (N,) bool.
    """

    name: str
    atoms: Atoms
    digest: bytes
    fixed: np.ndarray


class Systems:
    """The systems of ASE databases or of any other files that ASE reads, in the order of the files.

    Args:
        files: read one after another.
        data_keys: `a2g_args.r_data_keys` of the training's dataset, those of `DATA_KEYS`.
        is_untagged: the dataset has `atoms_transform_args: {skip_always: True}`, which keeps systems without tags so.

    Raises:
        ValueError: a file cannot be read, or they hold no system; a system, when it is read, has a fault.
    """

    def __init__(self, files: Sequence[Path], data_keys: Sequence[str] = (), *, is_untagged: bool = False) -> None:
        unknown = [name for name in data_keys if name not in DATA_KEYS]
        if unknown:
            raise ValueError(f"--data-keys {' '.join(unknown)}: expected some of {', '.join(DATA_KEYS)}.")
        self._data_keys, self._is_untagged = tuple(data_keys), is_untagged
        self._places: list[tuple[str, Any, int]] = []  # name, database or None, row of it or number in `_held`
        self._held: list[Atoms] = []
        for file in files:
            try:
                self._places.extend(self._rows_of(file) if file.suffix in DATABASES else self._frames_of(file))
            except Exception as error:  # ASE's readers raise anything
                raise ValueError(
                    f"--data {file}: ASE cannot read it ({type(error).__name__}: {error}). Of any data that fairchem reads, "
                    "`fairchem-crack export-data` writes a database, where the student is."
                ) from error
        if not self._places:
            raise ValueError(f"--data {' '.join(map(str, files))}: holds no system.")

    def _rows_of(self, file: Path) -> Iterator[tuple[str, Any, int]]:
        if not file.is_file():
            raise FileNotFoundError("there is no such file")  # ASE would make an empty database
        database = connect(file)
        for row in database.select(columns=["id"], include_data=False):
            yield f"row {row.id} of {file.name}", database, row.id

    def _frames_of(self, file: Path) -> Iterator[tuple[str, Any, int]]:
        for number, atoms in enumerate(iread(file, ":")):
            self._held.append(atoms)
            yield f"frame {number} of {file.name}", None, len(self._held) - 1

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[System]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> System:
        name, database, place = self._places[index]
        if database is None:
            atoms = self._held[place].copy()
        else:
            row = database._get_row(place)  # as fairchem reads it
            atoms = row.toatoms()
            atoms.info.update(row.data if isinstance(row.data, dict) else {})
            atoms.calc = None
        ids = ", ".join(f"{key} {atoms.info[key]}" for key in NAMES if key in atoms.info)
        formula = f", {atoms.get_chemical_formula()}" if len(atoms) else ""
        return self._read(f"{name}{f' ({ids})' if ids else ''}{formula}", atoms)

    def _read(self, name: str, atoms: Atoms) -> System:
        fault = fault_of(atoms)
        if fault:
            raise ValueError(f"{name}: {fault}. Leave the system out of the data and of the training.")
        if EXPORTED in atoms.info:
            if atoms.info.get(EXPORTED_AS) != digest_as_it_is(atoms).hex():
                raise ValueError(
                    f"{name}: has changed since `fairchem-crack export-data` wrote it, so its record would never be looked "
                    f"up. Write the changed systems without {EXPORTED} in their data, and train on them."
                )
            digest = bytes.fromhex(atoms.info[EXPORTED])
        else:
            cell = atoms.get_cell(complete=True)
            atoms = as_fairchem_reads(atoms, is_untagged=self._is_untagged)
            others = {key: atoms.info.get(key) for key in self._data_keys}
            digest = _digest(atoms, cell, others)
        fixed = fixed_atoms(atoms)
        atoms.set_constraint()
        return System(name, atoms, digest, fixed)


def fault_of(atoms: Atoms) -> str:
    """Of a system that cannot be labelled; empty where nothing is wrong."""
    if not len(atoms):
        return "no atoms"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        return "positions or a cell that are not finite"
    has_vector, volume = atoms.cell.array.any(axis=1), abs(np.linalg.det(atoms.get_cell(complete=True)))
    if (atoms.pbc & ~has_vector).any() or (atoms.pbc.any() and volume < SMALLEST_VOLUME):
        return "periodic, and its cell has no volume"
    return ""


def as_fairchem_reads(atoms: Atoms, *, is_untagged: bool = False) -> Atoms:
    """A copy as fairchem's ASE datasets read it: wrapped into the cell, in float32, all tags 1 where none is set."""
    read, cell = atoms.copy(), np.array(atoms.get_cell(complete=True))
    read.positions[:] = wrapped(atoms.positions, cell, atoms.pbc).astype(np.float32)
    read.cell[:] = atoms.cell.array.astype(np.float32)
    if not is_untagged and not read.get_tags().any():
        read.set_tags(np.ones(len(read), dtype=int))
    return read


def digest_as_it_is(atoms: Atoms) -> bytes:
    """The digest of Atoms that were made from a record: nothing is wrapped, no tag is set."""
    numbers = {"initial_charges": atoms.get_initial_charges(), "initial_magmoms": atoms.get_initial_magnetic_moments()}
    others = {name: atoms.info.get(name) for name in ("charge", "spin")}
    return _digest(atoms, atoms.cell.array, {**numbers, **others})


def _digest(atoms: Atoms, cell: Any, others: dict[str, Any]) -> bytes:
    tags, fixed = atoms.get_tags(), fixed_atoms(atoms)
    return system_digest(atoms.numbers, atoms.positions, cell, atoms.pbc, tags=tags, fixed=fixed, **others)


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """(N,) bool, the atoms of its FixAtoms."""
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return fixed
