"""The student of a round: averaged weights without the state of a training, from which dynamics and training begin."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_state_dict, match_state_dict
from torch import nn

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig, split_loss_functions
from fairchem_crack.io.checkpoints import read_checkpoint, reading_safely
from fairchem_crack.io.files import write_bytes
from fairchem_crack.io.progress import trained_progress
from fairchem_crack.io.trust import trusts
from fairchem_crack.teacher.cache import TeacherCache, differences
from fairchem_crack.teacher.cached import settings_of
from fairchem_crack.teacher.frozen import Teacher, load_teacher

OF_CHECKPOINT = ("normalizers", "elementrefs", "config")  # with the weights, all that a model needs


def load_student(path: Path, config: dict[str, Any], device: torch.device) -> Teacher:
    """A student, frozen, with its averaged weights where it has them."""
    return load_teacher(TeacherConfig(checkpoint=str(path), trust=trusts(config.get("task"))), device)


def write_student(source: Path, destination: Path, config: dict[str, Any], cache: TeacherCache) -> None:
    """Write a checkpoint from which a training by `config` begins anew: at step 0, with a new optimizer and schedule.

    It has the averaged weights, as a new average too (after a checkpoint without one fairchem trains without one), and the
    projections where they are those of the config's terms and of the same teacher.

    Args:
        source: a checkpoint of a training, or one for inference.
        cache: of the teacher of the training.

    Raises:
        ValueError: it does not exist, cannot be read, is untrained, or is another student than the config's `model`.
    """
    if not source.is_file():
        raise ValueError(f"--checkpoint {source}: does not exist (looked in {Path.cwd()}).")
    checkpoint = read_checkpoint(source, trust=trusts(config.get("task")))
    progress = trained_progress(checkpoint, source)
    student = load_student(source, config, torch.device("cpu"))
    weights = student.model.state_dict()
    student.close()
    content = {name: checkpoint[name] for name in OF_CHECKPOINT if name in checkpoint}
    content |= {"state_dict": weights, "amp": None, "ema": _new_average(weights, config, source)}
    entry = checkpoint.get(keys.CHECKPOINT_KEY) or {}
    if _has_projections(entry, config, cache):
        content[keys.CHECKPOINT_KEY] = entry
    else:
        content[keys.CHECKPOINT_KEY] = {keys.STEP: progress.step, keys.EPOCH: progress.epoch}
        logging.info(f"{source}: the projections start anew; it has none of these terms and this teacher.")
    file = io.BytesIO()  # to a file, torch would hide in a RuntimeError that a disk is full
    torch.save(content, file)
    write_bytes(destination, file.getvalue())


def _new_average(weights: Mapping[str, torch.Tensor], config: dict[str, Any], source: Path) -> dict[str, Any] | None:
    """fairchem's state of an average that begins at these weights; None where the config has none.

    Raises:
        ValueError: the weights are not those of the config's model.
    """
    model = _model_of(config)
    try:
        load_state_dict(model, match_state_dict(model.state_dict(), weights), strict=True)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"--checkpoint {source} is another student than the YAML's `model`, a `{config['model'].get('name')}`: "
            f"{' '.join(str(error).split()[:40])} ... Give the YAML that it was trained with."
        ) from error
    decay = (config.get("optim") or {}).get("ema_decay")
    parameters = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    return {"decay": decay, "num_updates": None, "shadow_params": parameters, "collected_params": []} if decay else None


def _model_of(config: dict[str, Any]) -> nn.Module:
    attributes = copy.deepcopy(config["model"])
    name = attributes.pop("name")
    with torch.random.fork_rng([]), reading_safely(attributes, trust=trusts(config.get("task"))):
        return registry.get_model_class(name)(**attributes)


def _has_projections(entry: Mapping[str, Any], config: dict[str, Any], cache: TeacherCache) -> bool:
    """Whether the entry of a checkpoint can be resumed by a training of this config with this teacher."""
    before = entry.get(keys.DISTILL_CONFIG) or {}
    _, terms = split_loss_functions(config["loss_functions"])
    kinds = [((block.get("task") or {}).get("distill") or {}).get("projection") or {} for block in (before, config)]
    return (
        keys.PROJECTION in entry
        and entry.get(keys.TEACHER_FINGERPRINT) == cache.plan.fingerprint
        and not differences(entry.get(keys.TEACHER_SETTINGS), settings_of(cache))
        and {term.key for term in terms if term.coefficient > 0}
        == set(before.get("loss_functions") or {}) & set(keys.DISTILLATION_TERMS)
        and kinds[0].get("kind", "linear") == kinds[1].get("kind", "linear")
    )
