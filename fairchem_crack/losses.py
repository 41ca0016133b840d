"""The losses registered with fairchem, and the reduction that keeps a term's weight with any number of ranks."""

from __future__ import annotations

from typing import Any, Optional

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.modules.loss import DDPLoss
from torch import Tensor, nn

from fairchem_crack.contrastive import CrackTerms, crack_terms
from fairchem_crack.distributed import gather_rows


@registry.register_loss("crack")
class CrackLoss(nn.Module):
    """Elementwise CRACK loss, one value per anchor pair, to be reduced by fairchem's `DDPLoss`.

    fairchem constructs losses without arguments and calls them with prediction, target and natoms alone; so the pairs of
    the batch are set before the call, as `pairs`, and read after it, as `terms`. Without pairs, all pairs of each system
    are taken.

    Attributes:
        options: keyword arguments of `fairchem_crack.contrastive.crack_terms`.
        pairs: (2, P) long, of the next call; None for all pairs of each system.
        terms: loss and diagnostics of the last call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.options: dict = {}
        self.generator: Optional[torch.Generator] = None
        self.pairs: Optional[Tensor] = None
        self.terms: Optional[CrackTerms] = None

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """(P',) loss per anchor from the embeddings of student, pred (N, D), and teacher, target (N, D)."""
        systems = torch.repeat_interleave(torch.arange(natoms.numel(), device=pred.device), natoms.to(pred.device))
        pairs = _all_pairs(systems) if self.pairs is None else self.pairs
        given: dict[str, Any] = {"student": pred, "teacher": target, "pairs": pairs, "systems": systems}
        if self.options.get("negatives") == "world":
            given = _of_all_ranks(pred, target, pairs)
        self.terms = crack_terms(**given, generator=self.generator, **self.options)
        return self.terms.loss


class DistillationLoss(DDPLoss):
    """fairchem's `DDPLoss`, for terms that can be empty on one rank or on all: the mean over nothing is 0."""

    def _ddp_mean(self, num_samples: int, loss: Tensor) -> Tensor:
        global_samples = distutils.all_reduce(num_samples, device=loss.device)
        return loss * distutils.get_world_size() / max(global_samples, 1)


def _of_all_ranks(student: Tensor, teacher: Tensor, pairs: Tensor) -> dict[str, Any]:
    """The atoms and pairs of every rank; the anchors are this rank's pairs."""
    students, atoms = gather_rows(student)
    teachers, _ = gather_rows(teacher.detach())
    rank = distutils.get_rank()
    all_pairs, counts = gather_rows(pairs.T.contiguous() + sum(atoms[:rank]))
    anchors = torch.zeros(sum(counts), dtype=torch.bool, device=pairs.device)
    first = sum(counts[:rank])
    anchors[first : first + counts[rank]] = True
    return {"student": students, "teacher": teachers, "pairs": all_pairs.T.contiguous(), "anchors": anchors}


def _all_pairs(systems: Tensor) -> Tensor:
    same = systems[:, None] == systems  # (N, N), of the fallback only
    return torch.triu(same, diagonal=1).nonzero().T.contiguous()
