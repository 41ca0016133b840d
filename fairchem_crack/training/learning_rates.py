"""Learning rates of parts of the student: `task.distill.learning_rates`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fairchem_crack.config import suggestion

_HYDRA = re.compile(r"^(module\.)*(backbone\.|output_heads\.[^.]+\.)?")


class LearningRates:
    """Multiplies the update that an optimizer makes of some parameters: p <- p_before + factor (p_after - p_before).

    A factor of 0 keeps them as they are, weight decay included. fairchem's groups of parameters, which are in every
    checkpoint, stay as they are: fairchem can resume and load it.

    Args:
        factors: by the name of a module or parameter of the model, at any depth.

    Raises:
        ValueError: no parameter has the name.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, factors: Mapping[str, float]) -> None:
        named = {_HYDRA.sub("", name): value for name, value in model.named_parameters()}
        self._factors: list[tuple[nn.Parameter, float]] = []
        for part, factor in factors.items():
            matched = [value for name, value in named.items() if f".{part}." in f".{name}."]
            if not matched:
                near = suggestion(part, sorted({name.partition(".")[0] for name in named}))
                raise ValueError(f"task.distill.learning_rates.{part}: no parameter of the student has this name. {near}")
            self._factors += [(value, factor) for value in matched]
        self._before: list[torch.Tensor] = []
        self._handles = [optimizer.register_step_pre_hook(self._keep), optimizer.register_step_post_hook(self._scale)]

    def _keep(self, *_: Any) -> None:
        self._before = [parameter.detach().clone() for parameter, _ in self._factors]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for (parameter, factor), before in zip(self._factors, self._before):
            parameter.copy_(torch.lerp(before, parameter, factor) if factor else before)
        self._before = []

    def close(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
