"""Periodic boundary conditions (pbc) of the systems of a batch: each system has its own.

fairchem 1.10 builds the graph of a whole batch with the pbc of its first system: those of shape (3,) collate to (3B,), of
which `radius_graph_pbc` reads the first three. Its models have an option, `use_pbc_single`, that builds the graph system by
system.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Optional

import numpy as np
import torch
from fairchem.core.common.utils import radius_graph_pbc
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys

OPTION = "use_pbc_single"
SMALLEST_VOLUME = 1e-6  # A^3, of a cell that is one


def as_pbc(value: Any) -> Tensor:
    """(3,) bool of a record's `pbc`: a tensor, an array, a list, or one value for all directions; of any type."""
    flags = np.asarray(value).astype(bool).reshape(-1)
    return torch.from_numpy(np.broadcast_to(flags, (3,)).copy())


def pbc_of(batch: Batch) -> Optional[Tensor]:
    """(B, 3) bool, the pbc of each system; None for data without, which fairchem takes as periodic in all directions."""
    if "pbc" not in batch:
        return None
    systems, pbc = len(batch.natoms), batch.pbc
    if not isinstance(pbc, Tensor):
        pbc = torch.stack([as_pbc(value) for value in pbc])
    return pbc.to(batch.pos.device, torch.bool).reshape(systems, -1).expand(systems, 3)


def pbc_differ(batch: Batch) -> bool:
    """Whether two systems have different pbc; on a GPU the host waits for the answer, unless the batch knows it."""
    if keys.PBC_DIFFER in batch:
        return batch[keys.PBC_DIFFER]
    pbc = pbc_of(batch)
    return pbc is not None and bool((pbc != pbc[0]).any())


def words(pbc: Tensor) -> str:
    """For example `T T F`."""
    return " ".join("FT"[bool(flag)] for flag in pbc)


def kinds(pbc: Tensor) -> list[str]:
    """In words, each pbc that some of the systems have, of (B, 3)."""
    return sorted({words(row) for row in pbc.cpu()}, reverse=True)


class OwnBoundaries:
    """Two hooks by which a model builds the graph of each system with the system's own pbc.

    Where the pbc of a batch differ, `use_pbc_single` is set for its forward. Any other batch goes through as it is.

    Attributes:
        has_met_several: a batch whose systems differ has been run.

    Args:
        model: any of fairchem's, or a hydra.
    """

    def __init__(self, model: nn.Module) -> None:
        self.has_met_several = False
        self._backbone: Any = getattr(model, "backbone", model)
        self._restore: list[Callable[[], None]] = []
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, model: nn.Module, arguments: tuple) -> None:
        batch = arguments[0]
        pbc = pbc_of(batch) if getattr(self._backbone, "use_pbc", True) else None
        if pbc is None:
            return
        differ = pbc_differ(batch)
        if differ:
            self._set_option(pbc)
        if differ or not isinstance(batch.pbc, Tensor) or batch.pbc.numel() != pbc.numel():
            self._restore.append(_separable(batch, pbc))

    def _set_option(self, pbc: Tensor) -> None:
        before = getattr(self._backbone, OPTION, None)
        if before is None:
            raise ValueError(
                f"A batch has systems with several pbc ({', '.join(kinds(pbc))}), and {type(self._backbone).__name__} has "
                f"no option `{OPTION}`, with which fairchem builds the graph of each system separately. Use a dataset with "
                "one pbc, or another model."
            )
        self.has_met_several = True
        setattr(self._backbone, OPTION, True)
        self._restore.append(lambda: setattr(self._backbone, OPTION, before))

    def _end(self, *_: Any) -> None:
        while self._restore:
            self._restore.pop()()

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _separable(batch: Batch, pbc: Tensor) -> Callable[[], None]:
    """Let `batch[index]` be what a graph is built of, with the system's row of `pbc` (B, 3); returns what undoes it."""
    before = batch.pbc if "pbc" in batch else None, batch._slice_dict, batch._inc_dict
    each = torch.arange(len(pbc) + 1)
    batch.pbc = pbc
    # new dictionaries, since copies of a batch share them; without what a model may have replaced, its edges for example
    batch._slice_dict = {"pos": before[1]["pos"], **dict.fromkeys(("cell", "natoms", "pbc"), each)}
    batch._inc_dict = dict.fromkeys(batch._slice_dict, torch.zeros_like(each))

    def undo() -> None:
        batch.pbc, batch._slice_dict, batch._inc_dict = before

    return undo


def set_option(model: dict) -> bool:
    """Set `use_pbc_single` in a config's `model`: wherever fairchem builds it, it honours each pbc. False if it was set."""
    if "backbone" in model:
        options = model["backbone"]
    elif "finetune_config" in model:  # a hydra that takes its backbone from a checkpoint
        options = model["finetune_config"].setdefault("override", {})
    else:
        options = model
    was_set, options[OPTION] = options.get(OPTION, False), True
    return not was_set


def count_edges(batch: Batch, cutoff: float, *, use_pbc: bool = True) -> Tensor:
    """(B,) edges of each system within a cutoff in A, of each atom only those to its nearest neighbors.

    Args:
        use_pbc: as the model's option; without it no system has images.
    """
    batch, systems, pbc = copy.copy(batch), len(batch.natoms), pbc_of(batch)
    if not use_pbc or pbc is None:
        pbc = torch.full((systems, 3), use_pbc, device=batch.pos.device)
    if not use_pbc:
        batch.cell = batch.pos.new_zeros((systems, 3, 3))
    _separable(batch, pbc)
    return torch.stack([radius_graph_pbc(batch.get_example(index), cutoff, 1)[2].sum() for index in range(systems)])


def without_volume(batch: Batch) -> Tensor:
    """(B,) bool, the periodic systems whose cell has no volume: they have no images to look for."""
    pbc = pbc_of(batch)
    is_periodic = torch.ones(len(batch.natoms), dtype=torch.bool) if pbc is None else pbc.any(dim=1)
    return is_periodic.to(batch.pos.device) & (torch.linalg.det(batch.cell.double()).abs() < SMALLEST_VOLUME)
