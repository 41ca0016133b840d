"""fairchem 2 (`fairchem-core>=2`: UMA, eSEN): energy, forces, atom energies, l=0 and l=1 of its node embedding, pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from ase import Atoms
from fairchem.core import pretrained_mlip
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.units.mlip_unit import InferenceSettings, load_predict_unit

from fairchem_crack.teacher.label.frameworks._torch import Kept, default_device, fingerprint, split
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of

OF_SYSTEM = ("spin", "charge")  # of `Atoms.info`, as its own calculator reads them


class Fairchem2(Labeller):
    """A model by its name or its file; of one with several tasks as `uma-s-1p1@oc20`. A file is a pickle."""

    def __init__(self, model: str, device: Optional[str]) -> None:
        name, _, task = model.partition("@")
        device = default_device(device)
        settings = InferenceSettings(activation_checkpointing=False)
        load = load_predict_unit if Path(name).is_file() else pretrained_mlip.get_predict_unit
        self.unit = load(name, inference_settings=settings, device=device)
        tasks = self.unit.dataset_to_tasks
        if not task and len(tasks) == 1:
            (task,) = tasks
        if task not in tasks:
            raise ValueError(f"expected one of its tasks, {name}@{' or @'.join(sorted(tasks))}")
        self.task, self.energy = task, next(each for each in tasks[task] if each.property == "energy")
        net, self.kept = self.unit.model.module, Kept()
        self.kept.output(net.backbone, "nodes", lambda output: output["node_embedding"])
        blocks = [module for name, module in net.named_modules() if name.endswith("energy_block")]
        self.has_atom_energies = len(blocks) == 1
        if self.has_atom_energies:
            self.kept.output(blocks[0], "energies")
        self.kept.result(net.backbone, "_generate_graph", "edges", lambda graph: graph["edge_index"])
        self.cutoff, self.elements = float(net.backbone.cutoff), frozenset(range(1, int(net.backbone.max_num_elements)))
        self.fingerprint, self.identity = fingerprint(net), {"model": Path(name).name, "task": task}

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        for atoms in systems:
            self.unit.validate_atoms_data(atoms, self.task)
            if len(atoms) == 1 and not atoms.pbc.any() and not self.unit.model.module.supports_single_atoms:
                raise ValueError("fairchem 2 takes the energy of a single atom from a table, and does not run this model")
        graphs = [AtomicData.from_ase(atoms, task_name=self.task, r_data_keys=list(OF_SYSTEM)) for atoms in systems]
        out, sizes = self.unit.predict(atomicdata_list_to_batch(graphs)), [len(atoms) for atoms in systems]
        nodes, edges = self.kept.split("nodes", sizes), self.kept.take("edges").cpu().numpy()
        firsts = np.cumsum([0, *sizes])
        energies = self._atom_energies(systems) if self.has_atom_energies else [None] * len(systems)
        parts = (out["energy"].detach().reshape(-1).tolist(), split(out["forces"], sizes), energies, nodes, firsts)
        return [
            Outputs(
                energy,
                forces,
                parts_of_energy,
                rows[:, 0],
                rows[:, 1:4],
                pairs_of(edges[:, (edges[0] >= first) & (edges[0] < first + len(forces))] - first),
            )
            for energy, forces, parts_of_energy, rows, first in zip(*parts)
        ]

    def _atom_energies(self, systems: Sequence[Atoms]) -> list[np.ndarray]:
        """(N,) eV of each system: what its task makes of the energy of an atom, and the reference of its element."""
        normalizer, references = self.energy.normalizer, self.energy.element_references
        of_nodes = self.kept.take("energies").reshape(-1).double().cpu() * float(normalizer.rmsd)
        parts = []
        for atoms, own in zip(systems, of_nodes.split([len(atoms) for atoms in systems])):
            own = own + float(normalizer.mean) / len(atoms)
            if references is not None:
                own = own + references.element_references.cpu().double()[torch.from_numpy(atoms.numbers)]
            parts.append(own.numpy())
        return parts


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of this name."""
    return Fairchem2(model, device)
