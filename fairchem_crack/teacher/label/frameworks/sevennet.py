"""SevenNet (`sevenn`): energy, forces, atom energies, scalars and vectors of its gates, pairs of its graph.

The last layer has scalars only: the l=1 embedding is the vectors of the layer before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ase import Atoms
from sevenn.atom_graph_data import AtomGraphData
from sevenn.calculator import SevenNetCalculator
from sevenn.train.dataload import unlabeled_atoms_to_graph
from torch_geometric.data import Batch

from fairchem_crack.teacher.label.frameworks._torch import Kept, default_device, fingerprint, split
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of

GATE = "_equivariant_gate"


class SevenNet(Labeller):
    """A model by its name or the path of its checkpoint; of several levels of theory as `7net-mf-ompa@mpa`."""

    def __init__(self, model: str, device: Optional[str]) -> None:
        name, _, modal = model.partition("@")
        calculator = SevenNetCalculator(name, device=default_device(device), modal=modal or None)
        self.net, self.device, self.modal = calculator.model, calculator.device, calculator.modal
        self.net.set_is_batch_data(True)
        modules = dict(self.net.named_children())
        gates = sorted((key for key in modules if key.endswith(GATE)), key=lambda key: int(key.partition("_")[0]))
        self.kept, irreps = Kept(), modules[gates[-2]].gate.irreps_out
        self.kept.output(modules[gates[-1]], "last", lambda data: data["x"])
        self.kept.output(modules[gates[-2]], "before", lambda data: data["x"])
        self.scalars, self.vectors = (sum(each.mul for each in irreps if each.ir.l == degree) for degree in (0, 1))
        self.cutoff, self.elements = float(calculator.cutoff), frozenset(calculator.type_map)
        self.fingerprint = fingerprint(self.net)
        self.identity = {"model": name, "modal": self.modal}

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        graphs = [AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, self.cutoff)) for atoms in systems]
        if self.modal:
            for graph in graphs:
                graph["data_modality"] = self.modal
        edges, sizes = [graph.edge_index.numpy() for graph in graphs], [len(atoms) for atoms in systems]
        out = self.net(Batch.from_data_list(graphs).to(self.device))
        vectors = [
            rows[:, self.scalars : self.scalars + 3 * self.vectors].reshape(-1, self.vectors, 3).transpose(0, 2, 1)
            for rows in self.kept.split("before", sizes)
        ]
        return [
            Outputs(float(energy), forces, energies.reshape(-1), last, vector, pairs_of(edge))
            for energy, forces, energies, last, vector, edge in zip(
                out["inferred_total_energy"].detach().cpu().reshape(-1),
                split(out["inferred_force"][: sum(sizes)], sizes),
                split(out["atomic_energy"], sizes),
                self.kept.split("last", sizes),
                vectors,
                edges,
            )
        ]


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of this name."""
    return SevenNet(model, device)
