r"""Soft targets of relations: the teacher's own similarities, p_ef = exp(t_e . t_f / tau) / sum_g exp(t_e . t_g / tau).

f and g run over all 2P directed relations. A student's relation is then compared with all of the teacher's that are like its
own, as those of equivalent sites are, and not with its own only: KL(p_e || q_e), q_ef of s_e . t_f.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

TILE = 1 << 22  # logits in memory at once


class SoftTargets(NamedTuple):
    """Of each anchor: sum_f p_ef t_f, (P', D), and the entropy of p_e in nats, (P',)."""

    mean: Tensor
    entropy: Tensor


@torch.no_grad()
def soft_targets(
    relations: Tensor, temperature: float, *, chosen: Optional[Tensor] = None, systems: Optional[Tensor] = None
) -> SoftTargets:
    """The soft targets of the teacher, tile by tile.

    Args:
        relations: (P, D) unit relations; their reverses are candidates too.
        temperature: tau.
        chosen: (P',) the pairs that are anchors; None for all.
        systems: (P,) the system of each pair, where only its own relations are candidates.
    """
    anchors = torch.arange(len(relations), device=relations.device) if chosen is None else chosen
    mean, entropy = relations.new_zeros(len(anchors), relations.shape[1]), relations.new_zeros(len(anchors))
    for begin in range(0, len(anchors), tile := max(1, TILE // max(len(relations), 1))):
        rows = anchors[begin : begin + tile]
        logits = relations[rows] @ relations.T / temperature  # (rows, P)
        along, against = torch.exp(logits - 1 / temperature), torch.exp(-logits - 1 / temperature)
        if systems is not None:
            is_candidate = systems[rows, None] == systems
            along, against = along * is_candidate, against * is_candidate
        total, difference = (along + against).sum(dim=1), along - against
        mean[begin : begin + tile] = difference @ relations / total[:, None]
        expected = (difference * logits).sum(dim=1) / total
        entropy[begin : begin + tile] = total.log() + 1 / temperature - expected
    return SoftTargets(mean, entropy)
