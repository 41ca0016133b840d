"""What fairchem would import and call by the names in a checkpoint's config: they may be any function's, `os.system`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Optional

from fairchem.core.trainers.base_trainer import BaseTrainer
from torch import nn
from torch.utils.data import Dataset

OURS = ("fairchem", "fairchem_crack")  # packages whose modules may be imported


def foreign_name(config: Any) -> Optional[str]:
    """The first dotted name that is no model, dataset or trainer of fairchem, nor of a module that is imported already."""
    for name, base in _names(config):
        module, _, attribute = name.rpartition(".")
        if module.partition(".")[0] in OURS:
            with suppress(ImportError):
                importlib.import_module(module)
        value = getattr(sys.modules.get(module), attribute, None)
        if module and not (isinstance(value, type) and issubclass(value, base)):
            return name
    return None


def _names(config: Any) -> Iterator[tuple[str, type]]:
    """The names, in today's or the published OC20 format, and of what they should be; without a dot, of the registry."""
    model, attributes, task = (_at(config, name) for name in ("model", "model_attributes", "task"))
    models = [model, _at(model, "name")]
    for part in (model, attributes):
        heads = _at(part, "heads")
        models += [_at(part, "backbone", "model")]
        models += [_at(head, "module") for head in heads.values()] if isinstance(heads, dict) else []
    data = _at(config, "dataset")
    splits = [data, _at(config, "val_dataset"), _at(config, "test_dataset")]
    splits += list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else []
    formats = [_at(split, "format") for split in splits] + [_at(task, "dataset")]
    for base, names in ((nn.Module, models), (Dataset, formats), (BaseTrainer, [_at(config, "trainer")])):
        yield from ((name, base) for name in names if isinstance(name, str))


def _at(value: Any, *path: str) -> Any:
    """The value at a path through mappings; None where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
