"""What decides the result of a training: its identity, kept in its checkpoints.

An identity is a mapping of plain values by the names of the YAML, `optim: {batch_size: 16, ...}`, which every reader of
checkpoints takes. Left out is what is not given, and what leads to the same weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any, Optional

from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, TeacherConfig, TermConfig

IN_BATCH = ("atomic_numbers", "pos", "cell", "pbc", "fixed", keys.ENERGY, keys.FORCES)
DEFAULTS = {"optimizer": "AdamW", "batch_size": 1}  # fairchem's, of `optim`
# Of `optim`: how fast a training is, and which of its steps are looked at.
WITHOUT_EFFECT = ("num_workers", "eval_batch_size", "checkpoint_every", "load_balancing_on_error")


def of_training(config: dict[str, Any], *, ranks: Optional[int], content: Optional[str] = None) -> dict[str, Any]:
    """The identity of a training without distillation.

    Args:
        config: fairchem's, of its trainer or of a checkpoint.
        ranks: None where that is not known.
        content: of the training data, see `content_of`; None where that is not known.
    """
    optim = {**DEFAULTS, **(config.get("optim") or {})}
    without_effect = [*WITHOUT_EFFECT, *([] if optim.get("scheduler") == "ReduceLROnPlateau" else ["eval_every"])]
    model, data, losses = config.get("model"), config.get("dataset"), config.get("loss_functions")
    return _plain(
        {
            "seed": (config.get("cmd") or {}).get("seed"),
            "amp": bool(config.get("amp")),
            "ranks": ranks,
            "model": _without(model, "use_pbc_single"),  # which follows from the data
            "outputs": config.get("outputs"),
            "optim": _without(optim, *without_effect),
            "loss_functions": {name: value for entry in losses for name, value in entry.items()} if losses else None,
            "evaluation_metrics": {"primary_metric": (config.get("evaluation_metrics") or {}).get("primary_metric")},
            "dataset": {"train": {**data, "content": content} if isinstance(data, dict) else None},
            "task": {"distill": "none"},
        }
    )


def of_distillation(config: DistillConfig, terms: list[TermConfig], *, cache: Optional[str]) -> dict[str, Any]:
    """What distillation adds to the identity. A teacher is identified by its fingerprint, wherever its file lies.

    Args:
        cache: the type of the numbers in the teacher's cache; None for a teacher that is run.
    """
    options = _without(asdict(config), "resume", "max_skipped_steps")
    of_teacher = _without(options["teacher"], "checkpoint", "command", "local_cache", "use_ema", "trust")
    options["teacher"] = {**of_teacher, "cache": cache}
    return _plain(
        {"task": {"distill": options}, "loss_functions": {term.key: _without(asdict(term), "key") for term in terms}}
    )


def content_of(batch: Batch, systems: int) -> str:
    """The training data by their number and a digest of a sample: the same wherever they lie."""
    digest = hashlib.sha256()
    for name in IN_BATCH:
        if name in batch:
            value = batch[name]
            digest.update(name.encode())
            digest.update(value.detach().cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return f"{systems} systems ({digest.hexdigest()[:12]})"


def recorded(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The identity of the training that wrote a checkpoint.

    A distillation of a version that did not keep it has no `task`, and its terms are not known.
    """
    entry, config = checkpoint.get(keys.CHECKPOINT_KEY) or {}, checkpoint.get("config") or {}
    if keys.DISTILL_CONFIG in entry:
        return joined(_defaults_of(entry[keys.DISTILL_CONFIG]), entry[keys.DISTILL_CONFIG])
    identity = of_training(config, ranks=config.get("gpus") or None)  # fairchem notes 0 on a CPU
    return _without(identity, "task") if keys.PROJECTION in entry else identity


def _defaults_of(stored: dict[str, Any]) -> dict[str, Any]:
    """Of all options of today's version, for those that are younger than a checkpoint."""
    terms = [
        TermConfig(key, options["fn"], options["coefficient"])
        for key, options in stored["loss_functions"].items()
        if key in keys.DISTILLATION_TERMS
    ]
    return of_distillation(DistillConfig(TeacherConfig(cache="any")), terms, cache=None)


def joined(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Two mappings of mappings as one; where both have a value, that of `override`."""
    both = {
        name: joined(base[name], value)
        for name, value in override.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **override, **both}


def _plain(value: Any) -> Any:
    """A copy without what is None or empty, with lists for tuples and words for other objects."""
    if isinstance(value, dict):
        plain = {str(name): _plain(item) for name, item in value.items()}
        return {name: item for name, item in plain.items() if item is not None and item != {}}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _without(options: Any, *names: str) -> Any:
    return {name: value for name, value in options.items() if name not in names} if isinstance(options, dict) else options
