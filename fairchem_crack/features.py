"""Where each architecture keeps what is distilled: one small adapter per model, by forward hooks on the unmodified model.

An adapter is attached to a model before its forward and read after it. Add an architecture by subclassing `Features`
and registering the class under the model's fairchem name: `@register_features("my_model")`.
"""

from __future__ import annotations

import abc
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn

_ADAPTERS: dict[str, type[Features]] = {}


class _EverythingRead(Exception):
    """Leaves a forward from which nothing more is wanted."""


class Features(abc.ABC):
    """Reads node embeddings, atom energies and edges from each forward of one model.

    Attributes:
        width: D, channels of the invariant node embedding.
        max_atomic_number: the largest atomic number the model can represent.
    """

    width: int
    max_atomic_number: int

    def __init__(self, model: nn.Module) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._values: dict[str, Tensor] = {}
        self._awaited: set[str] = set()
        self.attach(model)

    @abc.abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Set `width` and `max_atomic_number`, and hook the modules to read by `on_input` and `on_output`."""

    def on_input(self, module: nn.Module, name: str, read: Callable[[tuple], Tensor]) -> None:
        """Keep `read(positional arguments)` of each call of `module` as `name`."""
        self._handles.append(module.register_forward_pre_hook(lambda _, args: self._keep(name, read(args))))

    def on_output(self, module: nn.Module, name: str, read: Callable[[Any], Tensor]) -> None:
        """Keep `read(output)` of each call of `module` as `name`."""
        self._handles.append(module.register_forward_hook(lambda _, __, output: self._keep(name, read(output))))

    def _keep(self, name: str, value: Tensor) -> None:
        self._values[name] = value
        if self._awaited and self._awaited <= self._values.keys():
            raise _EverythingRead

    @contextmanager
    def stopping_after(self, *names: str) -> Iterator[None]:
        """Within this context the model's forward ends as soon as these have been read: its later blocks cost nothing."""
        self._awaited = set(names)
        try:
            yield
        except _EverythingRead:
            pass
        finally:
            self._awaited = set()

    @property
    def node_embedding(self) -> Tensor:
        """(N, D) invariant node embedding of the last forward."""
        return self._values["node_embedding"]

    @property
    def atom_energies(self) -> Tensor:
        """(N, 1) contributions whose sum over a system is the model's (normalised) energy."""
        return self._values["atom_energies"]

    @property
    def edge_index(self) -> Tensor:
        """(2, E) edges the model passed messages along."""
        return self._values["edge_index"]

    def clear(self) -> None:
        """Forget the last forward, so that its graph can be freed."""
        self._values.clear()

    def close(self) -> None:
        """Remove every hook: the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()


def register_features(model_name: str) -> Callable[[type[Features]], type[Features]]:
    """Class decorator: use this adapter for the fairchem model registered as `model_name`."""

    def register(cls: type[Features]) -> type[Features]:
        _ADAPTERS[model_name] = cls
        return cls

    return register


def attach_features(model_name: str, model: nn.Module, role: str) -> Features:
    """The adapter of `model_name`, attached to `model`.

    Raises:
        ValueError: no adapter is registered for this architecture.
    """
    if model_name not in _ADAPTERS:
        nearest = difflib.get_close_matches(model_name, _ADAPTERS, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        raise ValueError(
            f"The {role} is a `{model_name}`, whose node embeddings fairchem-crack does not know; it knows "
            f"{', '.join(f'`{name}`' for name in sorted(_ADAPTERS))}.{hint} "
            "An adapter of your own needs a few lines: see fairchem_crack.features.Features."
        )
    return _ADAPTERS[model_name](model)


@register_features("equiformer_v2")
class EquiformerV2Features(Features):
    """Embedding: l=0 coefficients behind the last norm; x is (N, (lmax + 1)^2, C) there."""

    def attach(self, model: nn.Module) -> None:
        """Hook the blocks named in the class's docstring."""
        self.width, self.max_atomic_number = model.sphere_channels, model.max_num_elements - 1
        self.on_input(model.edge_degree_embedding, "edge_index", lambda args: args[2])
        self.on_output(model.norm, "node_embedding", lambda x: x[:, 0])
        self.on_output(
            model.energy_block,
            "atom_energies",
            lambda x: x.embedding[:, 0] / model.avg_num_nodes,  # (N, 1)
        )


@register_features("painn")
class PaiNNFeatures(Features):
    """Embedding: the scalar channels that enter the energy head."""

    def attach(self, model: nn.Module) -> None:
        """Hook the blocks named in the class's docstring."""
        self.width, self.max_atomic_number = model.hidden_channels, model.atom_emb.embeddings.num_embeddings
        self.on_input(model.message_layers[0], "edge_index", lambda args: args[2])
        self.on_input(model.out_energy, "node_embedding", lambda args: args[0])
        self.on_output(model.out_energy, "atom_energies", lambda energies: energies)
