"""How much each channel of the teacher's embeddings varies between atoms: the scale in which embeddings are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from fairchem_crack import keys
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
        higher_rms: (L - 1, D_v) likewise of each degree l = 2 to L; None where they are not compared.
    """

    channel_mean: Tensor
    channel_std: Tensor
    vector_rms: Optional[Tensor] = None
    higher_rms: Optional[Tensor] = None

    def standardize(self, embedding: Tensor, name: str = keys.NODE_EMBEDDING) -> Tensor:
        """An embedding of the teacher: (b - mean) / std, of vectors and higher degrees b / rms.

        Args:
            name: of `EMBEDDINGS`.
        """
        if name == keys.NODE_EMBEDDING:
            return (embedding - self.channel_mean) / self.channel_std
        return embedding / self._rms(embedding, name)

    def restore(self, standardized: Tensor, name: str = keys.NODE_EMBEDDING) -> Tensor:
        """The inverse of `standardize`: in the teacher's own units."""
        if name == keys.NODE_EMBEDDING:
            return standardized * self.channel_std + self.channel_mean
        return standardized * self._rms(standardized, name)

    def _rms(self, embedding: Tensor, name: str) -> Tensor:
        """(D_v,) of the vectors, (rows, D_v) of the coefficients of the higher degrees, as many as the embedding has."""
        rms = self.vector_rms if name == keys.VECTOR_EMBEDDING else self.higher_rms
        assert rms is not None
        if name == keys.VECTOR_EMBEDDING:
            return rms
        repeats = 2 * torch.arange(2, len(rms) + 2, device=rms.device) + 1
        rows = rms.repeat_interleave(repeats, dim=0, output_size=(len(rms) + 2) ** 2 - 4)  # without, a GPU is waited for
        return rows[: embedding.shape[1]]

    @classmethod
    def of_own_units(cls, width: int, device: torch.device) -> ChannelStatistics:
        """Statistics that leave node embeddings of `width` channels unchanged."""
        return cls(torch.zeros(width, device=device), torch.ones(width, device=device), None)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: value for name, value in asdict(self).items() if value is not None}

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
    rms = None if vectors is None else _lengths(vectors)
    higher = None if teacher.higher_embedding is None else [_lengths(part) for part in by_degree(teacher.higher_embedding)]
    return ChannelStatistics(
        mean.to(nodes.dtype),
        _bounded(std, exact.square().mean(dim=0).sqrt()).to(nodes.dtype),
        None if vectors is None or rms is None else _bounded(rms, rms).to(vectors.dtype),
        torch.stack([_bounded(own, own) for own in higher]).to(nodes.dtype) if higher else None,
    )


def degrees(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """The embeddings of each degree l = 0 to L, of some of the first of `EMBEDDINGS`, in their order."""
    return [*embeddings[:2], *(part for higher in embeddings[2:] for part in by_degree(higher))]


def by_degree(higher: Tensor) -> list[Tensor]:
    """(N, 2 l + 1, D_v) of each degree l = 2 to L, of coefficients (N, (L + 1)^2 - 4, D_v)."""
    largest = math.isqrt(higher.shape[1] + 4) - 1
    return list(higher.split([2 * degree + 1 for degree in range(2, largest + 1)], dim=1)) if largest > 1 else []


def _lengths(coefficients: Tensor) -> Tensor:
    """(D_v,) root mean square length, over the atoms, of coefficients (N, 2 l + 1, D_v)."""
    return coefficients.double().square().sum(dim=1).mean(dim=0).sqrt()


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
