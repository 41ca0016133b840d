"""Where the records of a teacher cache come from: a teacher, or an ASE calculator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Optional, Protocol

import numpy as np
import torch
from fairchem.core.datasets import data_list_collater
from torch import Tensor
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.io.atoms import atoms_at
from fairchem_crack.io.calculators import calculator_of, energy_and_forces
from fairchem_crack.io.named_records import NamedRecords, check_cells
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.loss.relations import unordered_pairs
from fairchem_crack.teacher.cache import CacheError, Plan, Record
from fairchem_crack.teacher.cached import SAMPLE, digest_of
from fairchem_crack.teacher.force_jacobian import draw_coordinates, kept_coordinates, to_keep
from fairchem_crack.teacher.frozen import EMBEDDINGS, Teacher
from fairchem_crack.teacher.identity import of_calculator
from fairchem_crack.teacher.responses import draw_displacement
from fairchem_crack.teacher.responses import to_keep as response_to_keep

OF_ATOMS = (keys.FORCES, keys.ATOM_ENERGIES, *EMBEDDINGS)  # one row for each atom


class Source(Protocol):
    """Makes records of the systems of a dataset."""

    def __call__(self, indices: Sequence[int]) -> list[Record]:
        """The records of these systems, made together."""

    def recompute(self, index: int, kept: Record) -> Record:
        """The record of one system, in a batch by itself, with the coordinates of the Jacobian of `kept`."""


class TeacherSource:
    """Runs a teacher; the fields of the plan."""

    def __init__(self, teacher: Teacher, dataset: NamedRecords, device: torch.device, plan: Plan) -> None:
        self.teacher, self.dataset, self.device, self.plan = teacher, dataset, device, plan

    def __call__(self, indices: Sequence[int]) -> list[Record]:
        """See `Source`; the systems are one batch of the teacher."""
        return self._records([self.dataset[index] for index in indices])

    def recompute(self, index: int, kept: Record) -> Record:
        """See `Source`."""
        rows = kept.values.get(keys.FORCE_JACOBIAN)
        coordinates = None if rows is None else kept_coordinates(torch.from_numpy(np.array(rows)))
        responses = [torch.from_numpy(np.array(kept.values[name])) for name in keys.RESPONSES if name in kept.values]
        displacement = responses[0][:, :3] if responses else None
        return self._records([self.dataset[index]], coordinates, displacement)[0]

    def _records(
        self, systems: list[Data], coordinates: Optional[list[Tensor]] = None, displacement: Optional[Tensor] = None
    ) -> list[Record]:
        plan, teacher = self.plan, self.teacher
        batch = data_list_collater([system.clone() for system in systems], otf_graph=True).to(self.device)
        if teacher.use_pbc:
            check_cells(batch, self.dataset.name)
        outputs = teacher(batch, set(plan.fields) - {keys.FORCE_JACOBIAN, *keys.RESPONSES})
        pairs = unordered_pairs(outputs.edge_index, batch.num_nodes).cpu()
        sizes = batch.natoms.tolist()
        values = {name: _split(outputs[name], sizes) for name in plan.fields if name in OF_ATOMS}
        values[keys.ENERGY] = list(outputs[keys.ENERGY].cpu().numpy())
        if plan.jacobian_rows:
            coordinates = coordinates or [draw_coordinates(batch, seed) for seed in range(plan.jacobian_rows)]
            rows = [to_keep(teacher.jacobian_at(batch, chosen.to(self.device)), batch) for chosen in coordinates]
            values[keys.FORCE_JACOBIAN] = _split(torch.stack(rows, dim=1), sizes)
        if not set(keys.RESPONSES).isdisjoint(plan.fields):
            displacement = draw_displacement(batch, 0) if displacement is None else displacement.to(self.device)
            responses = teacher.responses_to(batch, displacement, plan.fields)
            values |= {name: _split(response_to_keep(response), sizes) for name, response in responses.items()}
        records, owner, first = [], batch.batch.cpu()[pairs[0]], 0
        for index, (system, atoms) in enumerate(zip(systems, sizes)):
            own = (pairs[:, owner == index] - first).numpy()
            records.append(Record(digest_of(system), atoms, {name: value[index] for name, value in values.items()}, own))
            first += atoms
        return records


class CalculatorSource:
    """Energies and forces of an ASE calculator."""

    def __init__(self, name: str, dataset: NamedRecords) -> None:
        self.name, self.dataset, self.calculator = name, dataset, calculator_of(name)

    def __call__(self, indices: Sequence[int]) -> list[Record]:
        """See `Source`."""
        return [self._record(index) for index in indices]

    def recompute(self, index: int, kept: Record) -> Record:
        """See `Source`."""
        return self._record(index)

    def _record(self, index: int) -> Record:
        system, atoms = self.dataset[index], atoms_at(self.dataset, index)
        try:
            energy, forces = energy_and_forces(self.calculator, atoms)
        except Exception as error:  # a calculator can raise anything
            raise CacheError(
                f"--calculator {self.name}: system {index} of {self.dataset.name}, {atoms.get_chemical_formula()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        pairs = np.zeros((2, 0), dtype=int)
        return Record(digest_of(system), len(atoms), {keys.ENERGY: energy, keys.FORCES: forces}, pairs)

    def plan(self) -> Plan:
        """Of its cache."""
        return Plan(
            teacher=self.name,
            fingerprint=hashlib.sha256(self.name.encode()).hexdigest(),
            systems=len(self.dataset),
            sample=sample_digest(self.dataset),
            width=0,
            fields=(keys.ENERGY, keys.FORCES),
            has_pairs=False,
            identity=of_calculator(self.calculator, self.name),
        )


def sample_digest(dataset: NamedRecords) -> str:
    """Digest of some of the systems, evenly spaced."""
    digest = hashlib.blake2b(digest_size=16)
    for index in evenly_spaced(len(dataset), SAMPLE):
        digest.update(digest_of(dataset[index]))
    return digest.hexdigest()


def _split(values: Tensor, sizes: list[int]) -> list[np.ndarray]:
    return [part.numpy() for part in values.cpu().split(sizes)]
