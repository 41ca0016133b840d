"""CHGNet (`chgnet`): energy, forces, atom energies, the input of its energy head, pairs of its graph; no l=1 embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ase import Atoms
from chgnet.model import CHGNet as Net
from pymatgen.io.ase import AseAtomsAdaptor

from fairchem_crack.teacher.label.frameworks._torch import Kept, default_device, fingerprint
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of


class CHGNet(Labeller):
    """A model by its name. It takes every system as periodic in all directions."""

    def __init__(self, model: str, device: Optional[str]) -> None:
        self.net = Net.load(model_name=model, use_device=default_device(device), verbose=False)
        self.kept = Kept()
        self.kept.input(self.net.mlp, "last")
        self.cutoff, self.elements = float(self.net.graph_converter.atom_graph_cutoff), frozenset(range(1, 95))
        self.fingerprint, self.identity = fingerprint(self.net), {"model": model}

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        for atoms in systems:
            if not atoms.pbc.all():
                raise ValueError(
                    f"CHGNet takes systems that are periodic in all directions, and pbc is {atoms.pbc.tolist()}"
                )
        graphs = [self.net.graph_converter(AseAtomsAdaptor.get_structure(atoms)) for atoms in systems]
        predicted = self.net.predict_graph(graphs, task="ef", return_site_energies=True, batch_size=len(graphs))
        predicted = predicted if isinstance(predicted, list) else [predicted]
        sizes = [len(atoms) for atoms in systems]
        return [
            # its energy is one of an atom
            Outputs(float(out["e"]) * size, out["f"], out["site_energies"].reshape(-1), last, None, pairs_of(edges))
            for out, size, last, edges in zip(
                predicted, sizes, self.kept.split("last", sizes), (graph.atom_graph.cpu().numpy().T for graph in graphs)
            )
        ]


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of this name."""
    return CHGNet(model, device)
