"""MACE (`mace-torch`): energy, forces, atom energies, scalars of its last product, pairs of its graph.

The last product has scalars only, as a rule: the l=1 embedding is the vectors of the product before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from ase import Atoms
from mace.calculators import MACECalculator
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.tools import torch_geometric
from mace.tools.torch_tools import default_dtype

from fairchem_crack.teacher.label.frameworks._torch import Kept, fingerprint, split
from fairchem_crack.teacher.label.frameworks._torch import default_device as device_of
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of


class MACE(Labeller):
    """A model by the path of its file; of one with several heads as `FILE@head`."""

    def __init__(self, model: str, device: Optional[str]) -> None:
        file, _, head = model.partition("@")
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: expected the file of a model")
        options = {"head": head} if head else {}
        self.device = device_of(device)
        self.calculator = MACECalculator(model_paths=file, device=self.device, default_dtype="float32", **options)
        (self.net,), self.kept = self.calculator.models, Kept()
        self.kept.output(self.net.products[-1], "last")
        self.kept.output(self.net.products[-2 if len(self.net.products) > 1 else -1], "before")
        self.scalars = self._count(-1, 0)
        self.scalars_before, self.vectors = (self._count(-2, degree) for degree in (0, 1))
        self.cutoff, self.elements = float(self.calculator.r_max), frozenset(self.calculator.z_table.zs)
        self.fingerprint, self.identity = fingerprint(self.net), {"model": Path(file).name, "head": self.calculator.head}

    def _count(self, product: int, degree: int) -> int:
        """Channels of this degree of a product's output; 0 where there is no such product."""
        if len(self.net.products) < -product:
            return 0
        return sum(each.mul for each in self.net.products[product].linear.irreps_out if each.ir.l == degree)

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        calculator = self.calculator
        with default_dtype("float32"):
            named = KeySpecification(calculator.info_keys, {**calculator.arrays_keys, calculator.charges_key: "charges"})
            configs = [config_from_atoms(atoms, named, head_name=calculator.head) for atoms in systems]
            graphs = [
                AtomicData.from_config(
                    config, z_table=calculator.z_table, cutoff=self.cutoff, heads=calculator.available_heads
                )
                for config in configs
            ]
        edges, sizes = [graph.edge_index.numpy() for graph in graphs], [len(atoms) for atoms in systems]
        batch = torch_geometric.Batch.from_data_list(graphs).to(self.device)
        out = self.net(batch.to_dict(), compute_stress=False)
        first, width = self.scalars_before, self.vectors
        parts = (
            out["energy"].detach().cpu(),
            split(out["forces"], sizes),
            split(out["node_energy"], sizes),
            self.kept.split("last", sizes),
            self.kept.split("before", sizes),
            edges,
        )
        return [
            Outputs(
                float(energy),
                forces,
                energies,
                last[:, : self.scalars],
                before[:, first : first + 3 * width].reshape(-1, width, 3).transpose(0, 2, 1) if width else None,
                pairs_of(edge),
            )
            for energy, forces, energies, last, before, edge in zip(*parts)
        ]


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of this file."""
    return MACE(model, device)
