"""GemNet-T and -dT, GemNet-OC: invariant embeddings of atoms and edges, no vectors of an atom."""

from __future__ import annotations

import torch

from fairchem_crack.adapters.base import Features, register_features


@register_features("gemnet_t", "gemnet_t_backbone")
class GemNetTFeatures(Features):
    """Embedding: the atoms' after the last interaction block. Each output block adds its share of the atom energies."""

    makes_edges = ("generate_graph",)

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone = self.backbone
        self.width = backbone.atom_emb.emb_size
        self.max_atomic_number = backbone.atom_emb.embeddings.num_embeddings  # row 0 stands for hydrogen
        self.has_gradient_forces = backbone.regress_forces and not backbone.direct_forces
        self.on_input(backbone.edge_emb, lambda args: {"edge_index": torch.stack(args[2:4])})  # idx_s, idx_t
        self.on_output(backbone.int_blocks[-1], lambda output: {"node_embedding": output[0]})
        for block in backbone.out_blocks:
            self.on_energies(block, lambda output: output[0], mean=not backbone.extensive)


@register_features("gemnet_oc", "gemnet_oc_backbone")
class GemNetOCFeatures(Features):
    """Embedding: what enters the last, linear map to the energy, which combines the outputs of all blocks."""

    makes_edges = ("get_graphs_and_indices",)

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone, head = self.backbone, self.owner("out_energy")
        self.width = backbone.atom_emb.emb_size
        self.max_atomic_number = backbone.atom_emb.embeddings.num_embeddings  # row 0 stands for hydrogen
        self.has_gradient_forces = backbone.regress_forces and not backbone.direct_forces
        self.on_input(backbone.edge_emb, lambda args: {"edge_index": args[2]})
        self.on_input(head.out_energy, lambda args: {"node_embedding": args[0]})
        self.on_energies(head.out_energy, lambda energies: energies, mean=not backbone.extensive)
