"""Scale factors of a student: which are fitted, and fitting them by fairchem's own function."""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.modules.scaling import ScaleFactor
from fairchem.core.modules.scaling.compat import _load_scale_dict
from fairchem.core.modules.scaling.fit import compute_scaling_factors
from torch import nn

from fairchem_crack.config import split_loss_functions
from fairchem_crack.io.checkpoints import read
from fairchem_crack.io.trust import trusting, trusts
from fairchem_crack.training.host_options import FITTED


def scale_factors(model: nn.Module) -> dict[str, ScaleFactor]:
    """The scale factors of a model, or of a hydra's backbone, by the names that `scale_file` uses."""
    model = getattr(model, "backbone", model)
    return {factor.name or path: factor for path, factor in model.named_modules() if isinstance(factor, ScaleFactor)}


def with_inline_scales(model: dict) -> dict:
    """The options of a model with what `scale_file` holds in place of its path: a checkpoint then needs no other file."""
    model = copy.deepcopy(model)
    for part in (model, model.get("backbone") or {}):
        file = part.get("scale_file")
        if isinstance(file, str) and Path(file).is_file():
            part["scale_file"] = {name: float(value) for name, value in (_load_scale_dict(file) or {}).items()}
    return model


def fit_scale_factors(config: dict) -> dict[str, float]:
    """Fit all scale factors of a training's student on its training data, by fairchem's function. No label is needed.

    Args:
        config: as of `build_config`; nothing is written to its run directory.

    Returns:
        what `model.scale_file` takes. fairchem's function saves the factors by the paths of their modules, which its
        loader refuses where they have names of their own, as in GemNet-dT.

    Raises:
        ValueError: the model has no scale factor, a factor comes out as none, or `dataset.train.src` is missing.
    """
    config = copy.deepcopy(config)
    task = config.get("task")
    if not (config.get("dataset") or {}).get("train", {}).get("src"):
        raise ValueError("dataset.train.src: missing; scale factors are fitted on training data.")
    for part in (config["model"], config["model"].get("backbone", {})):
        part.pop("scale_file", None)  # all are fitted anew
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "scale_factors.pt"
        config.update(
            trainer="fairchem_crack.training.forward_trainer.ForwardTrainer",
            task={},
            optim={**(config.get("optim") or {}), "scheduler": "Null"},  # `lambda_type` is our trainer's
            loss_functions=split_loss_functions(config["loss_functions"])[0],
            dataset={"train": _without_fits(config["dataset"]["train"])},
            checkpoint=str(file),  # where fairchem's function writes to
            is_debug=True,
            world_size=1,
        )
        distutils.setup_env_local()
        try:
            with trusting(trusts(task)):
                compute_scaling_factors(config)
        except (TypeError, KeyError, RuntimeError, AssertionError) as error:  # fairchem's, of a config it cannot use
            raise ValueError(
                f"the student cannot be run on its training data ({type(error).__name__}: {error}). `fairchem-crack check` "
                "says what is wrong with the config."
            ) from error
        by_path = read(file)
    attributes = dict(config["model"])
    if not by_path:
        raise ValueError(f"model: `{attributes['name']}` has no scale factor to fit.")
    if unusable := [f"{path} = {float(value)}" for path, value in by_path.items() if not 0 < float(value) < math.inf]:
        raise ValueError(
            f"model: scale factors come out as {', '.join(unusable)}; expected positive numbers. Are the positions of "
            "dataset.train finite, and its first systems of more than one atom?"
        )
    model = registry.get_model_class(attributes.pop("name"))(**attributes)
    model = getattr(model, "backbone", model)
    return {getattr(model.get_submodule(path), "name", None) or path: float(value) for path, value in by_path.items()}


def _without_fits(dataset: dict) -> dict:
    """The options of a dataset without what would be fitted to its labels."""
    dataset = copy.deepcopy(dataset)
    for transform in FITTED:
        ((dataset.get("transforms") or {}).get(transform) or {}).pop("fit", None)
    return dataset
