"""Whether the fields of a system have the shapes, types and values that fairchem takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Union

import torch
from torch import Tensor
from torch_geometric.data import Data

from fairchem_crack.training.host_options import columns_of

Size = Union[int, str]
# Of every system: the shape, N for its atoms, and whether its numbers enter the model as they are, in float32.
INPUTS: dict[str, tuple[tuple[Size, ...], bool]] = {
    "pos": (("N", 3), True),
    "cell": ((1, 3, 3), True),
    "atomic_numbers": (("N",), False),
    "tags": (("N",), False),
    "fixed": (("N",), False),
}
Fault = tuple[str, str]  # its kind, and the message


def field_faults(system: Data, outputs: dict[str, dict[str, Any]], by_mse: Collection[str] = ()) -> Iterator[Fault]:
    """What is wrong with a system, those of its fields that are there.

    Args:
        outputs: fairchem's options of each whose labels are read, those of its parts too.
        by_mse: those that torch's `mse` compares, which takes no other type than the model's.
    """
    atoms = int(system.natoms)
    for name, (shape, is_float) in INPUTS.items():
        if name in system:
            yield from _input_faults(
                name, system[name], tuple(atoms if size == "N" else int(size) for size in shape), is_float
            )
    for name, options in outputs.items():
        if name in system:
            yield from _label_faults(name, system[name], atoms if options.get("level") == "atom" else 1, options)
            if name in by_mse and isinstance(system[name], Tensor) and system[name].dtype == torch.float64:
                yield f"{name} type", f"`{name}` is float64, expected float32 for `fn: mse`"


def _input_faults(name: str, value: Any, expected: tuple[int, ...], is_float: bool) -> Iterator[Fault]:
    if not isinstance(value, Tensor):
        yield f"{name} type", f"`{name}` is a {type(value).__name__}, expected a tensor"
        return
    if tuple(value.shape) != expected:
        yield f"{name} shape", f"`{name}` has the shape {tuple(value.shape)}, expected {expected}"
    if is_float and value.dtype != torch.float32:
        yield f"{name} type", f"`{name}` is {_dtype(value)}, expected float32"
    yield from _value_faults(name, value)


def _label_faults(name: str, value: Any, rows: int, options: dict[str, Any]) -> Iterator[Fault]:
    if isinstance(value, float):
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        yield f"{name} type", f"`{name}` is a {type(value).__name__}, expected a tensor of float32"
        return
    columns = columns_of(name, options)
    expected = (rows, columns or "any")
    is_filled = columns is None or value.numel() == rows * columns
    if not is_filled or (rows > 1 and value.shape[:1] != (rows,)):
        yield f"{name} shape", f"`{name}` has the shape {tuple(value.shape)}, expected {expected}"
    if not value.is_floating_point():
        yield f"{name} type", f"`{name}` is {_dtype(value)}, expected float32"
    yield from _value_faults(name, value)


def _value_faults(name: str, value: Tensor) -> Iterator[Fault]:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        yield f"{name} value", f"`{name}` has values that are not finite"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
