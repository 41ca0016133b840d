"""What decides a teacher's outputs besides its weights and its graph: kept in a cache, and compared with it by name."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from fairchem_crack.adapters import Features
from fairchem_crack.adapters.outputs import ModelOutputs

# Version of the code here that makes a teacher's outputs (edges, frames, autocast, units): raise it when they change.
CODE = 1
WITHOUT_EFFECT = ("scale_file", "otf_graph", "use_pbc_single")  # of a model's config: in the weights, or set by the data


def of_teacher(config: Mapping[str, Any], outputs: ModelOutputs, features: Features) -> dict[str, Any]:
    """Plain values by name.

    Args:
        config: the model's arguments.
    """
    return {
        "config": plain({name: value for name, value in config.items() if name not in WITHOUT_EFFECT}),
        "outputs": plain(outputs.declared or {}),
        "normalizers": {name: plain(outputs.normalizers[name].state_dict()) for name in sorted(outputs.normalizers)},
        "element_references": {name: _digest(outputs.references[name].state_dict()) for name in sorted(outputs.references)},
        "adapter": f"{type(features).__qualname__}, version {features.version}",
        "code": CODE,
    }


def of_calculator(calculator: Any, name: str) -> dict[str, Any]:
    """The parameters that an ASE calculator reports, and the source of its class and of the module that made it.

    Args:
        name: as on the command line, `package.module:function` or one that ASE knows.
    """
    parameters, module = getattr(calculator, "parameters", None), sys.modules.get(name.partition(":")[0])
    files = {file for part in (type(calculator), module) if (file := _source_of(part)) is not None}
    return {
        "parameters": plain(parameters) if isinstance(parameters, Mapping) else {},
        "source": hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files))).hexdigest()[:16],
    }


def _source_of(part: Any) -> Optional[str]:
    """The Python file of a class or a module; None for a compiled one."""
    try:
        return inspect.getsourcefile(part)
    except TypeError:
        return None


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dictionaries, as JSON has them; of anything else its text, without its address."""
    if isinstance(value, Mapping):
        return {str(name): plain(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Tensor):
        return value.detach().cpu().double().flatten().tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value).partition(" at 0x")[0]


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]
