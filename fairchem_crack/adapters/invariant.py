"""Models of invariants only, whose forces are the energy's gradient: SchNet, DimeNet++."""

from __future__ import annotations

import torch

from fairchem_crack.adapters.base import Features, register_features


@register_features("schnet")
class SchNetFeatures(Features):
    """Embedding: the atoms' after the last interaction block, which is what enters the energy head."""

    makes_edges = ("generate_graph",)

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone = self.backbone
        self.width = backbone.hidden_channels
        self.max_atomic_number = backbone.embedding.num_embeddings - 1
        self.has_gradient_forces = backbone.regress_forces
        self.on_input(backbone.interactions[0], lambda args: {"edge_index": args[1]})
        self.on_input(backbone.lin1, lambda args: {"node_embedding": args[0]})
        self.on_energies(backbone.lin2, lambda energies: energies, mean=backbone.reduce == "mean")


@register_features("dimenetplusplus", "dimenetplusplus_backbone")
class DimeNetPlusPlusFeatures(Features):
    """Embedding: what enters the last output block's linear map to the energy. Each block adds its share of the energies."""

    makes_edges = ("generate_graph",)

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone = self.backbone
        self.width = backbone.output_blocks[-1].lin.in_features
        self.max_atomic_number = backbone.emb.emb.num_embeddings - 1
        self.has_gradient_forces = backbone.regress_forces
        self.on_input(backbone.emb, lambda args: {"edge_index": torch.stack((args[3], args[2]))})  # j, i
        self.on_input(backbone.output_blocks[-1].lin, lambda args: {"node_embedding": args[0]})
        for block in backbone.output_blocks:
            self.on_energies(block, lambda energies: energies)
