"""Orb (`orb-models`): energy, forces, the last node features, pairs of its graph; no atom energies, no l=1 embedding.

Its energy is a function of the mean of the node features, so that no atom has a part of it. Nothing in the network makes
the outputs turn with the system: it has learned so, nearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
from ase import Atoms
from orb_models.forcefield import pretrained

from fairchem_crack.teacher.label.frameworks._torch import Kept, default_device, fingerprint, split
from fairchem_crack.teacher.label.protocol import Labeller, Outputs, pairs_of


class Orb(Labeller):
    """A model by its name, `orb-v3-conservative-inf-omat`; of other weights as `orb-v3-direct-20-omat@FILE.ckpt`."""

    is_invariant = False

    def __init__(self, model: str, device: Optional[str]) -> None:
        name, _, weights = model.partition("@")
        if name not in pretrained.ORB_PRETRAINED_MODELS:
            raise ValueError(f"{name}: expected one of {', '.join(sorted(pretrained.ORB_PRETRAINED_MODELS))}")
        options = {"weights_path": weights} if weights else {}
        self.device = default_device(device)
        make = pretrained.ORB_PRETRAINED_MODELS[name]
        self.net, self.adapter = make(device=self.device, precision="float32-highest", compile=False, **options)
        self.kept = Kept()
        self.kept.output(self.net.model, "last", lambda output: output["node_features"])
        self.forces = getattr(self.net, "grad_forces_name", "forces")
        self.needs_charge_and_spin = self.net.model.conditioner is not None
        self.cutoff, self.elements = float(self.adapter.radius), frozenset(range(1, 118))
        self.fingerprint, self.identity = fingerprint(self.net), {"model": name}

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        if self.needs_charge_and_spin and not all({"charge", "spin"} <= atoms.info.keys() for atoms in systems):
            raise ValueError("this model needs `charge` and `spin` in the data of each system")
        batch = self.adapter.from_ase_atoms_list(list(systems), device=self.device)
        out, sizes = self.net.predict(batch), [len(atoms) for atoms in systems]
        edges, firsts = np.stack([batch.senders.cpu().numpy(), batch.receivers.cpu().numpy()]), np.cumsum([0, *sizes])
        of_systems = np.split(edges, np.cumsum(batch.n_edge.tolist())[:-1], axis=1)
        parts = (out["energy"].detach().reshape(-1).tolist(), split(out[self.forces], sizes), self.kept.split("last", sizes))
        return [
            Outputs(energy, forces, None, last, None, pairs_of(edge - first))
            for energy, forces, last, edge, first in zip(*parts, of_systems, firsts)
        ]


def load(model: str, device: Optional[str]) -> Labeller:
    """The teacher of this name."""
    return Orb(model, device)
