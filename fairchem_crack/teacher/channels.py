"""How much each channel of the teacher's embeddings varies between atoms: the scale in which embeddings are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from fairchem_crack.teacher.frozen import TeacherOutputs

SMALLEST_SCALE = 0.01  # of the median channel's: a channel that hardly varies is not magnified without bound
CONSTANT = 1e-6  # of its size: a channel that varies by less varies by rounding


@dataclass(frozen=True)
class ChannelStatistics:
    """Measured once, over the atoms of a sample of the training data.

    Attributes:
        channel_mean: (D,) of the node embedding.
        channel_std: (D,) standard deviation, see `_bounded`.
        vector_rms: (D_v,) root mean square length of the vector embedding, which has no mean: it rotates with the system;
            None for a teacher without.
    """

    channel_mean: Tensor
    channel_std: Tensor
    vector_rms: Optional[Tensor]

    def standardize(self, embedding: Tensor) -> Tensor:
        """(N, D) node embedding of the teacher, (b - mean) / std."""
        return (embedding - self.channel_mean) / self.channel_std

    def restore(self, standardized: Tensor) -> Tensor:
        """(N, D) the inverse of `standardize`: in the teacher's own units."""
        return standardized * self.channel_std + self.channel_mean

    @classmethod
    def of_own_units(cls, width: int, device: torch.device) -> ChannelStatistics:
        """Statistics that leave node embeddings of `width` channels unchanged."""
        return cls(torch.zeros(width, device=device), torch.ones(width, device=device), None)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> ChannelStatistics:
        """The statistics that a checkpoint kept."""
        moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in state.items()}
        return cls(**moved)


def channel_statistics(teacher: TeacherOutputs) -> ChannelStatistics:
    """The statistics over the atoms of a batch, whose embeddings are finite."""
    nodes, vectors = teacher.node_embedding, teacher.vector_embedding
    exact = nodes.double()
    mean = exact.mean(dim=0)
    std = (exact - mean).square().mean(dim=0).sqrt()
    rms = None if vectors is None else vectors.double().square().sum(dim=1).mean(dim=0).sqrt()
    return ChannelStatistics(
        mean.to(nodes.dtype),
        _bounded(std, exact.square().mean(dim=0).sqrt()).to(nodes.dtype),
        None if vectors is None or rms is None else _bounded(rms, rms).to(vectors.dtype),
    )


def _bounded(deviation: Tensor, size: Tensor) -> Tensor:
    """(D,) by what to divide each channel, so that none is magnified by more than `1 / SMALLEST_SCALE` times the median.

    A channel that is constant in the sample counts as the median one, and where all are constant, as in a sample of one
    atom, as large as the embedding.

    Args:
        deviation: (D,) standard deviation or root mean square length.
        size: (D,) root mean square.
    """
    varies = deviation > CONSTANT * size
    if not varies.any():
        typical = size.square().mean().sqrt() if size.numel() else 0.0
        return torch.full_like(deviation, float(typical) or 1.0)
    median = deviation[varies].median()
    return torch.where(varies, deviation.clamp(min=SMALLEST_SCALE * median), median)
