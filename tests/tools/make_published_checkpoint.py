"""Write a checkpoint with random weights, in the format and at the size of fairchem's published OC20 files.

    python tests/tools/make_published_checkpoint.py eqV2_31M eqV2_31M.pt
    python tests/tools/make_published_checkpoint.py escn_L4_M2_Lay12 toy.pt --set num_layers=1 sphere_channels=16

The published files are of the time before fairchem 1.0: `config["model"]` is a name and `config["model_attributes"]` its
arguments, keys of the state dict start with `module.module.`, the normalizers are `target` and `grad_target`, with a `std`.
Hyper-parameters are those of fairchem's configs/oc20/s2ef and configs/s2ef.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.modules.scaling import ScaleFactor
from torch import nn

EQUIFORMER_V2 = {
    "use_pbc": True,
    "regress_forces": True,
    "otf_graph": True,
    "max_neighbors": 20,
    "max_radius": 12.0,
    "max_num_elements": 90,
    "sphere_channels": 128,
    "attn_hidden_channels": 64,
    "num_heads": 8,
    "attn_alpha_channels": 64,
    "attn_value_channels": 16,
    "ffn_hidden_channels": 128,
    "norm_type": "layer_norm_sh",
    "grid_resolution": 18,
    "num_sphere_samples": 128,
    "edge_channels": 128,
    "use_atom_edge_embedding": True,
    "distance_function": "gaussian",
    "num_distance_basis": 512,
    "attn_activation": "silu",
    "use_s2_act_attn": False,
    "ffn_activation": "silu",
    "use_gate_act": False,
    "use_grid_mlp": True,
    "alpha_drop": 0.1,
    "drop_path_rate": 0.1,
    "proj_drop": 0.0,
    "weight_init": "uniform",
}
ESCN = {
    "max_neighbors": 20,
    "cutoff": 12.0,
    "num_sphere_samples": 128,
    "distance_function": "gaussian",
    "regress_forces": True,
    "use_pbc": True,
    "basis_width_scalar": 2.0,
    "otf_graph": True,
}
PAINN = {
    "hidden_channels": 512,
    "num_layers": 6,
    "num_rbf": 128,
    "cutoff": 12.0,
    "max_neighbors": 50,
    "regress_forces": True,
    "direct_forces": True,
    "use_pbc": True,
}
GEMNET = {
    "num_spherical": 7,
    "num_radial": 128,
    "emb_size_edge": 512,
    "emb_size_rbf": 16,
    "emb_size_cbf": 16,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 3,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"},
    "extensive": True,
    "output_init": "HeOrthogonal",
    "activation": "silu",
    "regress_forces": True,
    "direct_forces": True,
}
GEMNET_DT = {
    "num_blocks": 3,
    "emb_size_atom": 512,
    "emb_size_trip": 64,
    "emb_size_bil_trip": 64,
    "num_before_skip": 1,
    "cutoff": 6.0,
    "max_neighbors": 50,
    "otf_graph": False,
}
GEMNET_OC = {
    "num_blocks": 4,
    "emb_size_atom": 256,
    "emb_size_trip_in": 64,
    "emb_size_trip_out": 64,
    "emb_size_quad_in": 32,
    "emb_size_quad_out": 32,
    "emb_size_aint_in": 64,
    "emb_size_aint_out": 64,
    "emb_size_sbf": 32,
    "num_before_skip": 2,
    "num_output_afteratom": 3,
    "cutoff": 12.0,
    "cutoff_qint": 12.0,
    "cutoff_aeaint": 12.0,
    "cutoff_aint": 12.0,
    "max_neighbors": 30,
    "max_neighbors_qint": 8,
    "max_neighbors_aeaint": 20,
    "max_neighbors_aint": 1000,
    "sbf": {"name": "legendre_outer"},
    "forces_coupled": False,
    "quad_interaction": True,
    "atom_edge_interaction": True,
    "edge_atom_interaction": True,
    "atom_interaction": True,
    "num_atom_emb_layers": 2,
    "num_global_out_layers": 2,
    "qint_tags": [1, 2],
}

# Name of a published model: its name in fairchem's registry, and its arguments. Scale files, which lie on the machine that
# trained, are left out: the scale factors are in the checkpoint.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "eqV2_31M": ("equiformer_v2", {**EQUIFORMER_V2, "num_layers": 8, "lmax_list": [4], "mmax_list": [2]}),
    "eqV2_83M": (
        "equiformer_v2",
        {
            **EQUIFORMER_V2,
            "num_layers": 12,
            "lmax_list": [6],
            "mmax_list": [2],
            "drop_path_rate": 0.05,
            "share_atom_edge_embedding": False,
            "use_attn_renorm": True,
            "use_sep_s2_act": True,
        },
    ),
    "eqV2_153M": ("equiformer_v2", {**EQUIFORMER_V2, "num_layers": 20, "lmax_list": [6], "mmax_list": [3]}),
    "escn_L4_M2_Lay12": (
        "escn",
        {**ESCN, "num_layers": 12, "sphere_channels": 128, "hidden_channels": 256, "lmax_list": [4], "mmax_list": [2]},
    ),
    "escn_L6_M3_Lay20": (
        "escn",
        {**ESCN, "num_layers": 20, "sphere_channels": 160, "hidden_channels": 384, "lmax_list": [6], "mmax_list": [3]},
    ),
    "painn_h512": ("painn", PAINN),
    "gemnet_dT": ("gemnet_t", {**GEMNET, **GEMNET_DT}),
    "gemnet_oc": ("gemnet_oc", {**GEMNET, **GEMNET_OC}),
}

TARGET_MEAN, TARGET_STD = -0.7554450631141663, 2.887317180633545  # eV, of the energies of OC20's S2EF training data
EMA_DECAY = 0.999
STEP = 1000  # any: how long the imagined training went
# The EMA weights lie this fraction of each weight's size away from the weights, so that one cannot pass for the other.
EMA_DISTANCE = 0.05


def published_model(name: str, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """The published model `name` with random weights that depend only on `seed`.

    Args:
        name: one of `PUBLISHED`.
        overrides: arguments of the model to change, to make it smaller say.

    Raises:
        ValueError: no published model of this name, or no such argument.
    """
    setup_imports()
    registered, attributes = _model(name, overrides)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = registry.get_model_class(registered)(**attributes)
        for scale in _scale_factors(model).values():
            scale.set_(1.0)  # published models have fitted ones; none of ours is fitted
    return model


def write_published_checkpoint(name: str, path: Path, *, seed: int = 0, ema: bool = True, **overrides: Any) -> nn.Module:
    """Write the checkpoint of `published_model(name, seed=seed, **overrides)` to `path`, and return that model.

    Args:
        ema: keep EMA weights too, which differ from the model's; otherwise the entry is None.

    Raises:
        ValueError: no published model of this name, or no such argument.
    """
    model = published_model(name, seed=seed, **overrides)
    registered, attributes = _model(name, overrides)
    checkpoint = {
        "epoch": 1.0,
        "step": STEP,
        "state_dict": OrderedDict((f"module.module.{key}", value) for key, value in model.state_dict().items()),
        "normalizers": {
            "target": {"mean": torch.tensor(TARGET_MEAN), "std": torch.tensor(TARGET_STD)},
            "grad_target": {"mean": torch.tensor(0.0), "std": torch.tensor(TARGET_STD)},
        },
        "config": _config(registered, attributes, seed),
        "val_metrics": {"forces_mae": {"metric": 0.02, "total": 20.0, "numel": 1000}},
        "ema": _ema(model, seed) if ema else None,
        "amp": None,
    }
    scales = {key: scale.scale_factor.clone() for key, scale in _scale_factors(model).items()}
    if scales:
        checkpoint["scale_dict"] = scales
    partial = Path(f"{path}.partial")
    torch.save(checkpoint, partial)
    os.replace(partial, path)  # a kill while writing leaves no file that looks whole
    return model


def _model(name: str, overrides: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if name not in PUBLISHED:
        raise ValueError(f"No published model is called {name}; known are {', '.join(PUBLISHED)}.")
    registered, attributes = PUBLISHED[name]
    unknown = sorted(overrides.keys() - attributes.keys())
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(sorted(attributes))}.")
    return registered, copy.deepcopy({**attributes, **overrides})


def _scale_factors(model: nn.Module) -> dict[str, ScaleFactor]:
    """The model's scale factors, by the names a `scale_dict` gives them."""
    return {module.name or name: module for name, module in model.named_modules() if isinstance(module, ScaleFactor)}


def _ema(model: nn.Module, seed: int) -> dict[str, Any]:
    average = ExponentialMovingAverage(model.parameters(), EMA_DECAY)
    generator = torch.Generator().manual_seed(seed + 1)
    for value in average.shadow_params:
        value.add_(torch.randn(value.shape, generator=generator).mul_(EMA_DISTANCE * value.abs().mean()))
    return average.state_dict()


def _config(registered: str, attributes: dict[str, Any], seed: int) -> dict[str, Any]:
    normalization = {
        "normalize_labels": True,
        "target_mean": TARGET_MEAN,
        "target_std": TARGET_STD,
        "grad_target_mean": 0.0,
        "grad_target_std": TARGET_STD,
    }
    return {
        "task": {
            "dataset": "trajectory_lmdb",
            "description": "Regressing to energies and forces for DFT trajectories from OCP",
            "type": "regression",
            "metric": "mae",
            "primary_metric": "forces_mae",
            "labels": ["potential energy"],
            "grad_input": "atomic forces",
            "train_on_free_atoms": True,
            "eval_on_free_atoms": True,
        },
        "trainer": "equiformerv2_forces" if registered == "equiformer_v2" else "forces",
        "model": registered,
        "model_attributes": attributes,
        "optim": {
            "batch_size": 4,
            "eval_batch_size": 4,
            "load_balancing": "atoms",
            "num_workers": 8,
            "lr_initial": 0.0004,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 0.001},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine",
                "warmup_factor": 0.2,
                "warmup_epochs": 0.01,
                "lr_min_factor": 0.01,
                "epochs": 1000,
                "lr": 0.0004,
            },
            "max_epochs": 3,
            "force_coefficient": 100,
            "energy_coefficient": 4,
            "loss_energy": "mae",
            "loss_force": "l2mae",
            "clip_grad_norm": 100,
            "ema_decay": EMA_DECAY,
            "eval_every": 10000,
        },
        "logger": "wandb",
        "amp": False,
        "gpus": 1,
        "cmd": {"identifier": "", "print_every": 100, "seed": seed, "timestamp_id": "2023-01-01-00-00-00"},
        "dataset": {"src": "data/s2ef/all_md/train/", **normalization},
        "val_dataset": {"src": "data/s2ef/all/val_id/", **normalization},
        "slurm": {},
        "noddp": False,
    }


def main() -> None:
    """Write the file, and print its size and the model's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ema", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="change arguments of the model")
    options = parser.parse_args()
    pairs = [pair.partition("=") for pair in options.set]
    try:
        overrides = {option: ast.literal_eval(value) for option, _, value in pairs}
        model = write_published_checkpoint(
            options.name, options.path, seed=options.seed, ema=not options.no_ema, **overrides
        )
    except (SyntaxError, ValueError) as error:
        parser.error(str(error))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.path}: {parameters / 1e6:.2f}M parameters, {options.path.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
