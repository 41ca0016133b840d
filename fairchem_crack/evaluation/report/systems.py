"""The systems of a report, their labels, and how their atoms are grouped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.formula import Formula
from fairchem.core.datasets import data_list_collater
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.evaluation.teacher_caches import LabelledByCaches, TeacherCaches
from fairchem_crack.io.datasets import Records
from fairchem_crack.io.named_records import NamedRecords, free_atoms
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import CacheError

ADSORBATE = 2  # OC20's tag of its atoms


@dataclass(frozen=True)
class Split:
    """Systems of one split and their labels: S systems, N atoms in all.

    Attributes:
        name: what the report calls it.
        source: where it lies.
        total: systems that the dataset holds, of which S are here.
        systems: S systems.
        natoms: (S,) atoms of each.
        atomic_numbers: (N,).
        mask: (N,) bool, the atoms whose forces are evaluated: the free ones, or all.
        adsorbates: (S,) formula of the atoms tagged 2; empty where no system has any.
        energy: (S,) eV.
        forces: (N, 3) eV/A.
    """

    name: str
    source: str
    total: int
    systems: list[Data]
    natoms: np.ndarray
    atomic_numbers: np.ndarray
    mask: np.ndarray
    adsorbates: np.ndarray
    energy: np.ndarray
    forces: np.ndarray

    @property
    def symbols(self) -> np.ndarray:
        """(N,) chemical symbols."""
        return np.array(chemical_symbols)[self.atomic_numbers]


def load_split(
    name: str,
    options: dict[str, Any],
    *,
    systems: int,
    free_atoms_only: bool,
    caches: Optional[TeacherCaches] = None,
    labels: str = "data",
) -> Split:
    """Read evenly spaced systems of a dataset.

    Args:
        options: fairchem's, of the dataset, by which its systems have `energy` and `forces`.
        systems: at most so many.
        free_atoms_only: leave fixed atoms out of the evaluation, `outputs.forces.eval_on_free_atoms`.
        caches: whose outputs are attached to the systems.
        labels: "teacher" for these outputs as labels, or "data".

    Raises:
        ValueError: the dataset cannot be read, is empty, or has no labels.
    """
    try:
        with Records(options) as records:
            total, named = len(records), NamedRecords(records, name)
            labelled = named if caches is None or labels == "data" else LabelledByCaches(named, caches, str(options["src"]))
            indices = evenly_spaced(total, systems)
            chosen = [labelled[index] for index in indices]
            if caches is not None:
                for system, index in zip(chosen, indices):
                    caches.attach(system, index, str(options["src"]), named)
    except CacheError:
        raise
    except Exception as error:  # each format fails in its own way
        raise ValueError(f"{name}: {options['src']} cannot be read ({type(error).__name__}: {error}).") from error
    if not chosen:
        raise ValueError(f"{name}: {options['src']} holds no system.")
    for label in (keys.ENERGY, keys.FORCES):
        if any(label not in system for system in chosen):
            held = ", ".join(f"`{key}`" for key in sorted(chosen[0].keys()))
            raise ValueError(
                f"{name}: a system of {options['src']} has no `{label}`, without which there is no error to report; it "
                f"holds {held}. A label of another name is renamed by dataset.train.key_mapping of the training."
            )
    batch = data_list_collater(chosen, otf_graph=True)
    return Split(
        name=name,
        source=str(options["src"]),
        total=total,
        systems=chosen,
        natoms=batch.natoms.numpy(),
        atomic_numbers=batch.atomic_numbers.long().numpy(),
        mask=free_atoms(batch).numpy() if free_atoms_only else np.ones(batch.num_nodes, dtype=bool),
        adsorbates=_adsorbates(chosen),
        energy=torch.as_tensor(batch.energy).view(-1).float().numpy(),
        forces=batch.forces.view(-1, 3).float().numpy(),
    )


def batches(systems: list[Data], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """The systems in their order, `batch_size` at a time."""
    for start in range(0, len(systems), batch_size):
        yield data_list_collater(systems[start : start + batch_size], otf_graph=True).to(device)


def _adsorbates(systems: list[Data]) -> np.ndarray:
    if not any("tags" in system and (system.tags == ADSORBATE).any() for system in systems):
        return np.array([], dtype=str)
    formulas = []
    for system in systems:
        numbers = system.atomic_numbers[system.tags == ADSORBATE].long().tolist() if "tags" in system else []
        hill = Formula.from_list([chemical_symbols[number] for number in numbers]).format("hill")
        formulas.append(hill or "none")
    return np.array(formulas)
