"""Numbers of a training step that the host needs, in one transfer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Union

import torch
from torch import Tensor


class Readout:
    """Numbers on a device. The host waits for them once, when the first of them is needed."""

    def __init__(self, values: Mapping[str, Union[Tensor, float]]) -> None:
        """Keep values by name: () tensors of one device, and numbers that the host has."""
        self._values = dict(values)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All of them, in the order in which they were given."""
        on_device = {name: value.detach().double() for name, value in self._values.items() if isinstance(value, Tensor)}
        known = {name: float(value) for name, value in self._values.items() if name not in on_device}
        read = dict(zip(on_device, torch.stack(list(on_device.values())).tolist())) if on_device else {}
        return {name: read[name] if name in read else known[name] for name in self._values}
