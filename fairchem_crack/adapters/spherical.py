"""Models whose node embedding is spherical harmonic coefficients, (N, (lmax + 1)^2, C): EquiformerV2, eSCN, eSEN."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from fairchem_crack.adapters.base import Features, register_features


def _split(coefficients: Tensor, lmax_list: list[int]) -> dict[str, Tensor]:
    """Invariant, vector and higher part, the resolutions (sets of coefficients, one by one in dim 1) as more channels.

    The rows of l=1 are x, y, z: in e3nn's basis, which these models rotate in, they rotate as a position does.
    """
    starts = accumulate(((lmax + 1) ** 2 for lmax in lmax_list[:-1]), initial=0)
    shared = (min(lmax_list) + 1) ** 2  # coefficients that every resolution has
    parts = [coefficients[:, start : start + shared] for start in starts]  # (N, (L + 1)^2, C) each
    return {
        "node_embedding": torch.cat([part[:, 0] for part in parts], dim=-1),  # (N, D)
        "vector_embedding": torch.cat([part[:, 1:4] for part in parts], dim=-1),  # (N, 3, D)
        "higher_embedding": torch.cat([part[:, 4:] for part in parts], dim=-1),  # (N, (L + 1)^2 - 4, D)
    }


@register_features("equiformer_v2", "equiformer_v2_backbone")
class EquiformerV2Features(Features):
    """Embedding: the coefficients after the last norm."""

    has_position_gradients = False  # the rotations of the edges are detached
    makes_edges = ("generate_graph", "_init_edge_rot_mat")

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone, head = self.backbone, self.owner("energy_block")
        self.width = self.vector_width = backbone.sphere_channels
        self.higher_lmax = min(backbone.lmax_list)
        self.rotations = list(backbone.SO3_rotation)
        self.max_atomic_number = backbone.max_num_elements - 1
        mean = getattr(head, "reduce", "sum") == "mean"
        scale = 1.0 if mean else 1 / head.avg_num_nodes
        has_references = getattr(head, "use_energy_lin_ref", False) and getattr(head, "load_energy_lin_ref", False)

        def energies(output) -> Tensor:
            energy = output.embedding[:, 0] * scale  # (N, 1)
            return energy + head.energy_lin_ref[self.batch.atomic_numbers.long()][:, None] if has_references else energy

        self.on_input(backbone.edge_degree_embedding, lambda args: {"edge_index": args[2]})
        self.on_output(backbone.norm, lambda x: _split(x, backbone.lmax_list))
        self.on_energies(head.energy_block, energies, mean=mean)


@register_features("escn", "escn_backbone")
class ESCNFeatures(Features):
    """Embedding: the sum of the last layer's input and output, which is what the heads sample on the sphere."""

    has_position_gradients = False  # the rotations of the edges are detached
    makes_edges = ("generate_graph", "_init_edge_rot_mat")

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone, head = self.backbone, self.owner("energy_block")
        self.width = self.vector_width = backbone.sphere_channels_all
        self.higher_lmax = min(backbone.lmax_list)
        self.max_atomic_number = backbone.max_num_elements - 1
        mean = getattr(head, "reduce", "sum") == "mean"
        last = backbone.layer_blocks[-1]
        has_residual = backbone.num_layers > 1  # the first layer's output replaces its input
        self.on_input(backbone.layer_blocks[0], lambda args: {"edge_index": args[3]})
        self.on_input(last, lambda args: {"last_input": args[0].embedding} if has_residual else {})
        self.on_output(last, lambda x: _split(x.embedding + self._values.pop("last_input", 0.0), backbone.lmax_list))
        self.on_energies(head.energy_block, lambda energies: energies * (1.0 if mean else 0.001), mean=mean)


@register_features("esen_backbone")
class ESENFeatures(Features):
    """Embedding: the coefficients after the last norm."""

    makes_edges = ("generate_graph", "get_rotmat_and_wigner")

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone, head = self.backbone, self.owner("energy_block")
        self.width = self.vector_width = backbone.sphere_channels
        self.higher_lmax = backbone.lmax
        self.max_atomic_number = backbone.max_num_elements - 1
        self.has_gradient_forces = backbone.regress_forces and not backbone.direct_forces
        self.has_position_gradients = self.has_gradient_forces  # else the rotations of the edges are detached
        mean = getattr(head, "reduce", "sum") == "mean"
        self.on_input(backbone.edge_degree_embedding, lambda args: {"edge_index": args[3]})
        self.on_output(backbone.norm, lambda x: _split(x, [backbone.lmax]))
        self.on_energies(head.energy_block, lambda energies: energies.view(-1, 1), mean=mean)
