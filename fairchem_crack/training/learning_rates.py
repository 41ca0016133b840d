"""Learning rates of parts of the student: `task.distill.learning_rates`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairchem_crack.config import suggestion


class LearningRates:
    """Multiplies the update that an optimizer makes of some parameters: p <- p_before + factor (p_after - p_before).

    A factor of 0 freezes: such parameters stay as they are, weight decay included, and their gradients are 0, so that they
    do not count in the norm that is clipped. fairchem's groups of parameters, which are in every checkpoint, stay as they
    are: fairchem can resume and load it.

    Args:
        factors: by the name of a module or parameter of the model, at any depth.

    Raises:
        ValueError: no parameter has the name, or one has two of them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, factors: Mapping[str, float]) -> None:
        parts = _parts_of(model, factors)
        named = dict(model.named_parameters())
        self._factors = [(named[name], factors[part]) for name, part in parts.items()]
        self._before: list[Tensor] = []
        frozen = [parameter for parameter, factor in self._factors if not factor]
        self._handles = [parameter.register_hook(torch.zeros_like) for parameter in frozen]
        self._handles += [optimizer.register_step_pre_hook(self._keep), optimizer.register_step_post_hook(self._scale)]

    def _keep(self, *_: Any) -> None:
        self._before = [parameter.detach().clone() for parameter, _ in self._factors]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for (parameter, factor), before in zip(self._factors, self._before):
            parameter.copy_(torch.lerp(before, parameter, factor) if factor else before)
        self._before = []

    def close(self) -> None:
        """Take the hooks off the optimizer and the parameters."""
        for handle in self._handles:
            handle.remove()


def _parts_of(model: nn.Module, names: Mapping[str, float]) -> dict[str, str]:
    """By the name of each parameter that is trained, which of some names of modules or parameters it is part of.

    Raises:
        ValueError: as `LearningRates`.
    """
    where = "task.distill.learning_rates"
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts: dict[str, str] = {}
    for part in names:
        matched = [name for name in trained if f".{part}." in f".{name}."]
        if not matched:
            known = sorted({piece for name in trained for piece in name.split(".") if not piece.isdigit()})
            raise ValueError(f"{where}.{part}: no parameter of the student has this name. {suggestion(part, known)}")
        for name in matched:
            if name in parts:
                raise ValueError(f"{where}: `{name}` is part of `{parts[name]}` and of `{part}`. Give one of them.")
            parts[name] = part
    return parts
