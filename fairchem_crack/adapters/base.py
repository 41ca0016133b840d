"""What an adapter provides, how it reads a model, and how the adapter of a model is chosen.

An adapter is attached to a model before its forward and read after it. Add an architecture by subclassing `Features`
and registering the class under the model's fairchem name, `@register_features("my_model")`; then let
`fairchem_crack.testing.FeaturesConformance` check it.
"""

from __future__ import annotations

import abc
import copy
import difflib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Callable, Optional

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch import Tensor, nn
from torch_geometric.data import Batch

_ADAPTERS: dict[str, type[Features]] = {}
Context = Callable[[], AbstractContextManager]


class _EverythingRead(Exception):
    """Ends a forward of which everything that is needed has been read."""


class Features(abc.ABC):
    """Reads node embeddings, atom energies and edges from each forward of one model.

    Attributes:
        version: of what it reads; raise it when that changes, so that caches of before are refused.
        width: D, channels of the invariant node embedding.
        vector_width: channels of the l=1 node embedding; 0 for a model that has none.
        higher_lmax: the largest degree l of `higher_embedding`; 0 for a model that has none above 1.
        has_gradient_forces: the model's forward needs autograd for its forces.
        has_position_gradients: autograd provides the derivative of its outputs with respect to the positions.
        max_atomic_number: the largest atomic number the model can represent.
        makes_edges: methods of the backbone that make its graph and the frames of its edges; (): its forward.
        rotations: modules whose `set_wigner` rotates the edges.
        backbone: the model; of a hydra, its backbone.
    """

    version: int = 1
    width: int
    vector_width: int = 0
    higher_lmax: int = 0
    has_gradient_forces: bool = False
    has_position_gradients: bool = True
    max_atomic_number: int
    makes_edges: tuple[str, ...] = ()
    rotations: Sequence[nn.Module] = ()

    def __init__(self, model: nn.Module, energies: Sequence[str] = ("energy",)) -> None:
        """Attach the adapter to a model.

        Args:
            energies: the names of its outputs of property energy; of a hydra with several heads, they tell whose it reads.
        """
        self.model = model
        self._energies = energies
        self.backbone: nn.Module = model.backbone if isinstance(model, HydraModel) else model
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._values: dict[str, Tensor] = {}
        self._awaited: set[str] = set()
        self._batch: Optional[Batch] = None
        self._handles.append(model.register_forward_pre_hook(lambda _, args: self._begin(args[0])))
        self.attach()

    @abc.abstractmethod
    def attach(self) -> None:
        """Set the widths and `max_atomic_number`, and say what to read by `on_input`, `on_output` and `on_energies`."""

    def on_input(self, module: nn.Module, read: Callable[[tuple], dict[str, Tensor]]) -> None:
        """Keep what `read(positional arguments)` names, at each call of `module`."""
        self._handles.append(module.register_forward_pre_hook(lambda _, args: self._keep(read(args))))

    def on_output(self, module: nn.Module, read: Callable[[Any], dict[str, Tensor]]) -> None:
        """Keep what `read(output)` names, at each call of `module`."""
        self._handles.append(module.register_forward_hook(lambda _, __, output: self._keep(read(output))))

    def on_energies(self, module: nn.Module, read: Callable[[Any], Tensor], *, mean: bool = False) -> None:
        """Add `read(output)`, (N, 1), to the atom energies, at each call of `module`.

        Args:
            mean: the model averages over the atoms of a system where others sum.
        """

        def add(_: nn.Module, __: tuple, output: Any) -> None:
            energies = read(output)
            if mean:
                energies = energies / self.batch.natoms[self.batch.batch][:, None]
            # out of place: some models add later blocks to the tensor read here
            self._values["atom_energies"] = energies + self._values.get("atom_energies", 0.0)

        self._handles.append(module.register_forward_hook(add))

    def owner(self, name: str) -> nn.Module:
        """The module that has the output block called `name`: the model, or the head of a hydra.

        Of several heads that have it, the head of the model's energy: by the head's name, or where the heads' outputs are
        passed through by the name of the output, of which the last is taken.
        """
        if not isinstance(self.model, HydraModel):
            return self.backbone
        heads = {key: head for key, head in self.model.output_heads.items() if getattr(head, name, None) is not None}
        if not heads:
            return self.backbone
        passed = self.model.pass_through_head_outputs
        outputs = {key: getattr(head, "output_name", "energy") if passed else key for key, head in heads.items()}
        return [*heads.values(), *(heads[key] for key, output in outputs.items() if output in self._energies)][-1]

    def _begin(self, batch: Batch) -> None:
        self.clear()
        self._batch = batch

    def _keep(self, values: dict[str, Tensor]) -> None:
        self._values.update(values)
        if self._awaited and self._awaited <= self._values.keys():
            raise _EverythingRead

    @contextmanager
    def stopping_after(self, *names: str) -> Iterator[None]:
        """Within this context the model's forward ends as soon as these have been read: its later blocks cost nothing.

        For values that a single call provides: node and vector embedding, edges.
        """
        self._awaited = set(names)
        try:
            yield
        except _EverythingRead:
            pass
        finally:
            self._awaited = set()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this context the model can run on another batch; after it, what was read before is there again."""
        values, batch = dict(self._values), self._batch
        try:
            yield
        finally:
            self._values.clear()
            self._values.update(values)
            self._batch = batch

    @contextmanager
    def making_edges(self, settled: Context, exact: Context) -> Iterator[None]:
        """Within this context the model makes its edges within `settled()`, and these and their rotations within `exact()`.

        An adapter without `makes_edges` has `settled()` for all of it.
        """
        with ExitStack() as stack:
            if not self.makes_edges:
                stack.enter_context(settled())
            for name in self.makes_edges:
                stack.enter_context(calling_within(self.backbone, name, settled, exact))
            for rotation in self.rotations:
                stack.enter_context(calling_within(rotation, "set_wigner", exact))
            yield

    @contextmanager
    def edges_at(self, positions: Tensor) -> Iterator[None]:
        """Within this context the model has the edges of these positions (N, 3), at the lengths that its batch gives them.

        A difference of outputs over a displacement is then one of the same edges, as a derivative is. Else it jumps where an
        atom beyond `max_neighbors` takes the place of a neighbor, which over 0.02 A can be all that there is of it.
        """
        make = getattr(self.backbone, "generate_graph", None)
        if make is None:
            yield
            return

        def generate_graph(data: Batch, *args: Any, **options: Any) -> Any:
            rest = copy.copy(data)
            rest.pos = positions
            return _lengthened(make(rest, *args, **options), data.pos - positions)

        with replaced(self.backbone, "generate_graph", generate_graph):
            yield

    @property
    def batch(self) -> Batch:
        """The batch of the current forward."""
        assert self._batch is not None
        return self._batch

    @property
    def node_embedding(self) -> Tensor:
        """(N, D) invariant node embedding of the last forward."""
        return self._values["node_embedding"]

    @property
    def vector_embedding(self) -> Tensor:
        """(N, 3, vector_width) l=1 node embedding, components x, y, z."""
        return self._values["vector_embedding"]

    @property
    def higher_embedding(self) -> Tensor:
        """(N, (L + 1)^2 - 4, vector_width) node embedding of the degrees 2 to L = `higher_lmax`, one after the other."""
        return self._values["higher_embedding"]

    @property
    def lmax(self) -> int:
        """L, the largest degree l of the node embedding."""
        return max(self.higher_lmax, int(self.vector_width > 0))

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
        self._batch = None

    def close(self) -> None:
        """Remove every hook: the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()


@contextmanager
def calling_within(owner: object, method: str, *contexts: Context) -> Iterator[None]:
    """Within this context each call of a method of `owner` is made within these."""
    original = getattr(owner, method)

    def call(*args: Any, **options: Any) -> Any:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return original(*args, **options)

    with replaced(owner, method, call):
        yield


@contextmanager
def replaced(owner: object, method: str, call: Callable) -> Iterator[None]:
    """Within this context `owner` has another method of this name, which hides that of its class."""
    hidden = vars(owner).get(method)  # by a context around this one
    setattr(owner, method, call)
    try:
        yield
    finally:
        delattr(owner, method) if hidden is None else setattr(owner, method, hidden)


def _lengthened(graph: Any, displacement: Tensor) -> Any:
    """fairchem's graph, GraphData or a dict, after a displacement of its atoms (N, 3); its vectors are x[0] - x[1]."""
    fields = graph if isinstance(graph, dict) else vars(graph)
    first, second = fields["edge_index"]
    vectors = fields["edge_distance_vec"] + displacement[first] - displacement[second]
    lengths = vectors.norm(dim=-1).clone()  # some models write into it
    fields.update(edge_distance_vec=vectors, edge_distance=lengths)
    return graph


def register_features(*model_names: str) -> Callable[[type[Features]], type[Features]]:
    """Class decorator: use this adapter for the fairchem models, or backbones of a hydra, registered by these names."""

    def register(cls: type[Features]) -> type[Features]:
        _ADAPTERS.update(dict.fromkeys(model_names, cls))
        return cls

    return register


def architecture(model: nn.Module) -> str:
    """The name under which the class of `model`, or of a hydra's backbone, is registered with fairchem."""
    cls = type(model.backbone) if isinstance(model, HydraModel) else type(model)
    registered: dict[str, type] = registry.mapping["model_name_mapping"]
    return next((name for name, candidate in registered.items() if candidate is cls), cls.__name__)


def attach_features(model: nn.Module, role: str, energies: Sequence[str] = ("energy",)) -> Features:
    """The adapter for `model`'s architecture, attached to it.

    Args:
        role: what the messages call the model.
        energies: see `Features`.

    Raises:
        ValueError: no adapter is registered for this architecture.
    """
    name = architecture(model)
    if name not in _ADAPTERS:
        nearest = difflib.get_close_matches(name, _ADAPTERS, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        raise ValueError(
            f"The {role} is a `{name}`, for which fairchem-crack has no adapter; it has those of "
            f"{', '.join(f'`{known}`' for known in sorted(_ADAPTERS))}.{hint} "
            "For an adapter of your own see fairchem_crack.adapters.Features."
        )
    return _ADAPTERS[name](model, energies)
