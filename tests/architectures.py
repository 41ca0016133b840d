"""A toy model of every architecture that has an adapter: the conformance check runs on each."""

from __future__ import annotations

import copy
import functools
import json

import torch
from torch import nn

# More neighbors than any atom has, see fairchem_crack.testing.
GRAPH = {"otf_graph": True, "max_neighbors": 200}
CUTOFF = 5.0

EQUIFORMER_V2_WIDTHS = {
    "sphere_channels": 16,
    "attn_hidden_channels": 8,
    "num_heads": 2,
    "attn_alpha_channels": 8,
    "attn_value_channels": 8,
    "ffn_hidden_channels": 16,
    "edge_channels": 8,
}
EQUIFORMER_V2 = {
    **GRAPH,
    **EQUIFORMER_V2_WIDTHS,
    "num_layers": 1,
    "lmax_list": [2],
    "mmax_list": [2],
    "max_radius": CUTOFF,
}
ESCN = {
    **GRAPH,
    "num_layers": 2,
    "sphere_channels": 16,
    "hidden_channels": 16,
    "lmax_list": [2],
    "mmax_list": [2],
    "edge_channels": 8,
    "num_sphere_samples": 16,
    "distance_resolution": 0.2,
    "cutoff": CUTOFF,
}
ESEN = {
    **GRAPH,
    "sphere_channels": 16,
    "lmax": 2,
    "mmax": 2,
    "edge_channels": 8,
    "num_distance_basis": 16,
    "num_layers": 1,
    "hidden_channels": 16,
    "cutoff": CUTOFF,
}
PAINN = {**GRAPH, "hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": CUTOFF}
GEMNET_T = {
    **GRAPH,
    "num_spherical": 3,
    "num_radial": 6,
    "num_blocks": 2,
    "emb_size_atom": 16,
    "emb_size_edge": 16,
    "emb_size_trip": 8,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_bil_trip": 8,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "cutoff": CUTOFF,
    "direct_forces": True,
}
GEMNET_OC = {
    **GRAPH,
    "num_spherical": 3,
    "num_radial": 6,
    "num_blocks": 2,
    "emb_size_atom": 16,
    "emb_size_edge": 16,
    "emb_size_trip_in": 8,
    "emb_size_trip_out": 8,
    "emb_size_quad_in": 8,
    "emb_size_quad_out": 8,
    "emb_size_aint_in": 8,
    "emb_size_aint_out": 8,
    "emb_size_rbf": 4,
    "emb_size_cbf": 4,
    "emb_size_sbf": 4,
    "num_before_skip": 1,
    "num_after_skip": 1,
    "num_concat": 1,
    "num_atom": 1,
    "num_output_afteratom": 1,
    "rbf": {"name": "gaussian"},
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "qint_tags": [0, 1, 2],
    "cutoff": CUTOFF,
    "direct_forces": True,
}
SCHNET = {
    "otf_graph": True,
    "hidden_channels": 16,
    "num_filters": 16,
    "num_interactions": 2,
    "num_gaussians": 10,
    "cutoff": CUTOFF,
}
DIMENET = {
    "otf_graph": True,
    "hidden_channels": 16,
    "num_blocks": 2,
    "int_emb_size": 8,
    "basis_emb_size": 4,
    "out_emb_channels": 16,
    "num_spherical": 3,
    "num_radial": 4,
    "cutoff": 4.0,  # its triplets grow as the sixth power
}


def _hydra(backbone: str, options: dict, **heads: dict) -> dict:
    return {
        "name": "hydra",
        "otf_graph": True,
        "pass_through_head_outputs": True,
        "backbone": {"model": backbone, **options},
        "heads": heads,
    }


MODELS: dict[str, dict] = {
    "equiformer_v2": {"name": "equiformer_v2", **EQUIFORMER_V2},
    "equiformer_v2 hydra": _hydra(
        "equiformer_v2_backbone",
        EQUIFORMER_V2,
        energy={"module": "equiformerV2_scalar_head"},
        forces={"module": "equiformerV2_vector_head"},
    ),
    "escn": {"name": "escn", **ESCN},
    "escn hydra": _hydra("escn_backbone", ESCN, energy={"module": "escn_energy_head"}, forces={"module": "escn_force_head"}),
    "esen hydra": _hydra(
        "esen_backbone", ESEN, energy={"module": "esen_mlp_energy_head"}, forces={"module": "esen_linear_force_head"}
    ),
    "esen hydra, gradient forces": _hydra("esen_backbone", ESEN, energy={"module": "esen_mlp_efs_head"}),
    "painn": {"name": "painn", **PAINN},
    "painn hydra": _hydra(
        "painn_backbone", PAINN, energy={"module": "painn_energy_head"}, forces={"module": "painn_force_head"}
    ),
    "painn hydra, gradient of its energy": _hydra(
        "painn_backbone",
        {**PAINN, "direct_forces": False},
        energy_and_forces={"module": "fairchem_crack.heads.PaiNNEnergyGradient"},
    ),
    "gemnet_t": {"name": "gemnet_t", **GEMNET_T},
    "gemnet_t hydra": _hydra(
        "gemnet_t_backbone",
        GEMNET_T,
        energy={"module": "gemnet_t_energy_and_grad_force_head"},
        forces={"module": "gemnet_t_force_head"},
    ),
    "gemnet_oc": {"name": "gemnet_oc", **GEMNET_OC},
    "gemnet_oc hydra": _hydra(
        "gemnet_oc_backbone",
        GEMNET_OC,
        energy={"module": "gemnet_oc_energy_and_grad_force_head", "num_global_out_layers": 1},
        forces={"module": "gemnet_oc_force_head", "num_global_out_layers": 1},
    ),
    "schnet": {"name": "schnet", **SCHNET},
    "dimenetplusplus": {"name": "dimenetplusplus", **DIMENET},
    "dimenetplusplus hydra": _hydra(
        "dimenetplusplus_backbone", DIMENET, energy={"module": "dimenetplusplus_energy_and_force_head"}
    ),
}


def build(name: str, **options) -> nn.Module:
    """A toy model of `MODELS`, always with the same weights; `options` replace some of its own, or of its backbone."""
    attributes = copy.deepcopy(MODELS[name])
    attributes.get("backbone", attributes).update(options)
    return copy.deepcopy(_built(name, json.dumps(attributes)))


@functools.cache  # DimeNet++ derives its basis by symbolic algebra, which takes a second
def _built(name: str, described: str) -> nn.Module:
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    attributes = json.loads(described)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = registry.get_model_class(attributes.pop("name"))(**attributes)
        if name.startswith("dimenet"):  # starts with zero energies and forces, which would hide any mistake
            for block in getattr(model, "backbone", model).output_blocks:
                nn.init.xavier_uniform_(block.lin.weight)
    return model
