"""What the adapters of torch's frameworks have in common: the weights' fingerprint, and reading a module's output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn


def default_device(device: Optional[str]) -> str:
    """The one that is given, else a GPU where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(model: nn.Module) -> str:
    """Digest of the weights, wherever their file lies."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Kept:
    """Outputs of modules, by name; each can be taken once, so that none is of an earlier run."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}

    def output(self, module: nn.Module, name: str, of: Callable[[Any], Tensor] = lambda output: output) -> None:
        """Keep `of` a module's output. It is cloned at once: some modules write into what they were given."""
        module.register_forward_hook(lambda _, __, output: self._keep(name, of(output)))

    def input(self, module: nn.Module, name: str) -> None:
        """Keep the first input of a module."""
        module.register_forward_pre_hook(lambda _, inputs: self._keep(name, inputs[0]))

    def result(self, owner: Any, method: str, name: str, of: Callable[[Any], Tensor]) -> None:
        """Keep `of` what a method of an object returns."""
        function = getattr(owner, method)

        def kept(*arguments: Any) -> Any:
            result = function(*arguments)
            self._keep(name, of(result))
            return result

        setattr(owner, method, kept)

    def take(self, name: str) -> Tensor:
        """What was kept since it was last taken."""
        if name not in self._values:
            raise RuntimeError(f"the framework did not run the part of its model that gives `{name}`")
        return self._values.pop(name)

    def _keep(self, name: str, value: Tensor) -> None:
        self._values[name] = value.detach().clone()

    def split(self, name: str, sizes: list[int]) -> list[np.ndarray]:
        """(N, ...) rows of what is taken, for each system."""
        return split(self.take(name), sizes)


def split(values: Tensor, sizes: list[int]) -> list[np.ndarray]:
    """The rows of each system."""
    return [part.numpy() for part in values.detach().cpu().split(sizes)]
