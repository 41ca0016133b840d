"""Systems of fairchem's datasets as ASE's Atoms, with all that a calculator reads.

fairchem's `batch_to_atoms` makes every system periodic in all directions and wraps its atoms into the cell, which of a
molecule is 1 A wide.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch.utils.data import Dataset
from torch_geometric.data import Data

from fairchem_crack.io.wrapping import wrapped

SURFACE, ADSORBATE = 1, 2  # tags, in OC20's data; 0 is below the surface
INFO = ("charge", "spin")  # of a whole system: fields of a record that calculators read from `Atoms.info`


def to_atoms(system: Data) -> Atoms:
    """A record as it is: positions, cell, pbc, tags, fixed atoms, initial charges and magnetic moments where it has them.

    Without `pbc` it is periodic in all directions, as OC20's records are; a record without a cell in none.
    """
    from fairchem_crack.io.boundaries import as_pbc  # with fairchem, which the rest of the module runs without

    cell = np.zeros((3, 3)) if "cell" not in system else _array(system.cell).reshape(3, 3)
    pbc = as_pbc(_array(system.pbc)).numpy() if "pbc" in system else np.full(3, cell.any())
    atoms = Atoms(
        numbers=_array(system.atomic_numbers).astype(int), positions=_array(system.pos).astype(float), cell=cell, pbc=pbc
    )
    if "tags" in system:
        atoms.set_tags(_array(system.tags).astype(int))
    if "fixed" in system and (fixed := _array(system.fixed) != 0).any():
        atoms.set_constraint(FixAtoms(mask=fixed))
    if "initial_charges" in system:
        atoms.set_initial_charges(_array(system.initial_charges))
    if "initial_magmoms" in system:
        atoms.set_initial_magnetic_moments(_array(system.initial_magmoms))
    atoms.info.update({name: _array(system[name]).reshape(-1)[0].item() for name in INFO if name in system})
    return atoms


def atoms_at(dataset: Any, index: int) -> Atoms:
    """System `index` of a dataset, without calculator: of an ASE one the Atoms it reads, of any other its record.

    A calculator then sees what no record of fairchem's has: charges, moments, constraints of any kind, `info`.
    """
    source, place = _source_of(dataset, index)
    if not hasattr(source, "get_atoms"):
        return to_atoms(dataset[index])
    atoms = source.get_atoms(source.ids[place])
    atoms.calc = None  # which holds the labels
    if source.atoms_transform is not None:  # as the dataset itself does: it tags atoms where none is tagged
        atoms = source.atoms_transform(atoms, **source.config.get("atoms_transform_args", {}))
    return atoms


def positions_in_file(dataset: Any, index: int) -> Optional[np.ndarray]:
    """(N, 3) positions of system `index` of an ASE dataset, wrapped by `wrapping.wrapped`; None of any other dataset."""
    source, place = _source_of(dataset, index)
    if not hasattr(source, "get_atoms"):
        return None
    atoms = source.get_atoms(source.ids[place])
    return wrapped(atoms.positions, np.array(atoms.get_cell(complete=True)), atoms.pbc)


def _source_of(dataset: Any, index: int) -> tuple[Any, int]:
    """The dataset that reads the files, below subsets and what names the records, and the system's place in it."""
    source, place = dataset, index
    while isinstance(getattr(source, "dataset", None), Dataset):
        place = source.indices[place] if hasattr(source, "indices") else place
        source = source.dataset
    return source, place


def free_mask(atoms: Atoms) -> np.ndarray:
    """(N,) bool, the atoms that no constraint fixes."""
    free = np.ones(len(atoms), bool)
    for constraint in atoms.constraints:
        free[constraint.get_indices()] = False
    return free


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
