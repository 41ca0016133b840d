"""Models whose node embedding is a set of scalars and Cartesian vectors: PaiNN."""

from __future__ import annotations

from fairchem_crack.adapters.base import Features, register_features


@register_features("painn", "painn_backbone")
class PaiNNFeatures(Features):
    """Embedding: the scalar channels that enter the energy head, and the vectors after the last update."""

    makes_edges = ("generate_graph",)

    def attach(self) -> None:
        """Hook the blocks named in the class's docstring."""
        backbone, head = self.backbone, self.owner("out_energy")
        self.width = self.vector_width = backbone.hidden_channels
        self.max_atomic_number = backbone.atom_emb.embeddings.num_embeddings  # row 0 stands for hydrogen
        self.has_gradient_forces = backbone.regress_forces and not backbone.direct_forces
        last = backbone.update_layers[-1]
        self.on_input(backbone.message_layers[0], lambda args: {"edge_index": args[2]})
        self.on_input(last, lambda args: {"last_vectors": args[1]})
        self.on_output(last, lambda change: {"vector_embedding": self._values.pop("last_vectors") + change[1]})
        self.on_input(head.out_energy, lambda args: {"node_embedding": args[0]})
        self.on_energies(head.out_energy, lambda energies: energies)
