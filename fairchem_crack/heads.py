"""A head for fairchem's hydra that fairchem lacks: a PaiNN whose forces are the gradient of its energy."""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.utils import conditional_grad
from fairchem.core.models.painn.painn import PaiNNEnergyHead
from torch import Tensor
from torch_geometric.data import Batch


class PaiNNEnergyGradient(PaiNNEnergyHead):
    """Energy and forces of a `painn_backbone`: E = sum_i e(x_i), F = -dE/dr.

    Without direct forces, fairchem's own PaiNN and `painn_force_head` have -d(sum of the scalars x)/dr instead, which no
    energy of theirs conserves. `configs/oc20/demo/painn_gradient.yml` has it, with one normalizer scale for both outputs.

    Raises:
        ValueError: the backbone does not provide gradients.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        if not backbone.regress_forces or backbone.direct_forces:
            raise ValueError("fairchem_crack.heads.PaiNNEnergyGradient: set direct_forces: False in the backbone.")
        self.regress_forces, self.direct_forces = True, False  # read by conditional_grad

    @conditional_grad(torch.enable_grad())
    def forward(self, data: Batch, emb: dict[str, Tensor]) -> dict[str, Tensor]:
        """`energy` (B,) and `forces` (N, 3), normalized."""
        energy = super().forward(data, emb)["energy"]
        (slope,) = torch.autograd.grad(energy.sum(), data.pos, create_graph=self.training)
        return {"energy": energy, "forces": -slope}
