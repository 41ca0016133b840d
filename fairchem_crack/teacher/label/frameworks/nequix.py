"""Nequix (`nequix`, by torch): energy, forces, atom energies, scalars and vectors of its layers, pairs of its graph.

The last layer has scalars only: the l=1 embedding is the vectors of the layer before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional

from ase import Atoms
from e3nn.o3 import Irreps
from nequix.calculator import NequixCalculator
from nequix.data import dict_to_pytorch_geometric, preprocess_graph
from torch_geometric.data import Batch

from fairchem_crack.teacher.label.frameworks._torch import Kept, default_device, fingerprint, split
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of


class Nequix(Labeller):
    """A model by the path of its weights: those of torch (.pt), or of JAX (.nqx), which are converted."""

    def __init__(self, model: str, device: Optional[str]) -> None:
        file = Path(model)
        if not file.is_file():
            raise FileNotFoundError(f"{model}: expected the file of its weights, .pt or .nqx")
        with TemporaryDirectory() as place:  # Nequix writes converted weights beside those that it is given
            link = Path(place, file.name)
            link.symlink_to(file.resolve())
            calculator = NequixCalculator(file.stem, model_path=str(link), backend="torch", use_kernel=False)
        self.device = default_device(device)
        self.net, self.indices = calculator.model.to(self.device), calculator.atom_indices
        self.kept, irreps = Kept(), Irreps(calculator.config["hidden_irreps"])
        self.kept.output(self.net.layers[-1], "last")
        self.kept.output(self.net.layers[-2], "before")
        self.scalars, self.vectors = (sum(each.mul for each in irreps if each.ir.l == degree) for degree in (0, 1))
        self.cutoff, self.elements = float(calculator.cutoff), frozenset(calculator.config["atomic_numbers"])
        self.fingerprint, self.identity = fingerprint(self.net), {"model": file.stem}

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        for atoms in systems:
            if atoms.pbc.any() and not atoms.pbc.all():  # of which its torch model forgets the images
                raise ValueError(f"Nequix takes systems that are periodic in all directions or none: {atoms.pbc.tolist()}")
        if len({bool(atoms.pbc.all()) for atoms in systems}) > 1:
            return [self._run([atoms])[0] for atoms in systems]
        return self._run(systems)

    def _run(self, systems: Sequence[Atoms]) -> list[Outputs]:
        graphs = [dict_to_pytorch_geometric(preprocess_graph(atoms, self.indices, self.cutoff, False)) for atoms in systems]
        edges, sizes = [graph.edge_index.numpy() for graph in graphs], [len(atoms) for atoms in systems]
        batch = Batch.from_data_list(graphs).to(self.device)
        energies, forces, _ = self.net(
            *(batch.x, batch.positions, batch.edge_attr, batch.edge_index, batch.get("cell")),
            *(batch.n_node, batch.n_edge, batch.batch),
        )
        vectors = [
            rows[:, self.scalars : self.scalars + 3 * self.vectors].reshape(-1, self.vectors, 3).transpose(0, 2, 1)
            for rows in self.kept.split("before", sizes)
        ]
        parts = (split(energies, sizes), split(forces, sizes), self.kept.split("last", sizes), vectors, edges)
        return [
            Outputs(float(energy.sum(dtype="float64")), force, energy, last, vector, pairs_of(edge))
            for energy, force, last, vector, edge in zip(*parts)
        ]


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of these weights."""
    return Nequix(model, device)
