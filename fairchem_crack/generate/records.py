"""The records of generated systems: what of the parent's they keep, their labels, their bytes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.io.atoms import INFO
from fairchem_crack.teacher.cache import Record
from fairchem_crack.training.labels import labelled_outputs

# Of a parent, what holds for its copies as well: no edges, no labels, nothing of its relaxation.
KEPT = (
    "atomic_numbers",
    "natoms",
    "tags",
    "fixed",
    "cell",
    "pbc",
    "sid",
    "fid",
    *INFO,
    "initial_charges",
    "initial_magmoms",
)
LABELS = (keys.ENERGY, keys.FORCES)
PARENT, COPY = "parent", "copy_number"  # fields of a generated record: number of its parent in dataset.train, and 1, 2, ...


def bare(system: Data, parent: int) -> Data:
    """A parent's record with what its copies keep, and `parent`, `copy_number` 0."""
    kept = {name: system[name] for name in KEPT if name in system}
    return Data(pos=system.pos.float(), **kept, **{PARENT: parent, COPY: 0})


def at(system: Data, atoms: Atoms) -> Data:
    """A record with the positions and the cell that its Atoms have now."""
    moved = system.clone()
    moved.pos = torch.from_numpy(atoms.positions).float()
    if "cell" in system:
        moved.cell = torch.from_numpy(atoms.cell.array).to(system.cell.dtype).view_as(system.cell)
    return moved


def label_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Name of each label in the records of a training, by property: that of the student's output.

    Raises:
        ValueError: the student has several outputs of a property.
    """
    return {**{name: name for name in LABELS}, **labelled_outputs(ModelOutputs("outputs", config.get("outputs")))}


def own_labels(system: Data, names: Mapping[str, str]) -> dict[str, Any]:
    """Energy (eV, float) and forces (N, 3) (eV/A) of a parent's record, those that it has and that are finite.

    Args:
        names: of the record's fields, by property.
    """
    labels: dict[str, Any] = {}
    for property_, name in names.items():
        if system.get(name) is None:
            continue
        value = torch.as_tensor(system[name]).detach().float()
        numbers = 1 if property_ == keys.ENERGY else system.pos.numel()
        if torch.isfinite(value).all() and value.numel() == numbers:
            labels[property_] = float(system[name]) if property_ == keys.ENERGY else value.view(-1, 3)
    return labels


def labels_of(record: Record) -> dict[str, Any]:
    """The same, of a teacher."""
    forces = torch.from_numpy(np.array(record.values[keys.FORCES], dtype=np.float32))
    return {keys.ENERGY: float(record.values[keys.ENERGY]), keys.FORCES: forces}


def origins(labels: Mapping[str, str]) -> dict[str, bool]:
    """The fields of a record that say whose its labels are, from `data` or `teacher` of each property."""
    return {keys.OF_TEACHER[name]: origin == "teacher" for name, origin in labels.items()}


def labelled(system: Data, labels: Mapping[str, Any], names: Mapping[str, str]) -> Data:
    """A record with labels.

    Args:
        names: of the record's fields, by property.
    """
    record = system.clone()
    for property_, value in labels.items():
        record[names[property_]] = value
    return record


def to_bytes(system: Data) -> bytes:
    """A record as fairchem's LMDBs hold it; equal records have equal bytes, which torch's own pickles do not promise."""
    file = io.BytesIO()
    _Pickler(file, protocol=4).dump(system)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A tensor through numpy: torch's pickle of a storage has its address."""
        return (torch.from_numpy, (value.contiguous().numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented
