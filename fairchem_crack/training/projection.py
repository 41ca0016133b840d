"""The trainable maps from the student's embeddings to the teacher's; they exist only while training.

They give the teacher's embedding as it is standardised by `channels`, and take the student's divided by what its size was
before the first step: whatever the scales of both models, a term starts at a value of order 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fairchem_crack import keys
from fairchem_crack.adapters import Features

SMALLEST_DEVIATION = (
    0.1  # of the mean's size: the embedding of a student that hardly tells atoms apart yet is not magnified without bound
)


class Projection(nn.Module):
    """trainable((a - shift) / scale).

    Attributes:
        trainable: from the student's width to the teacher's.
        shift: (D_s,) fixed, see `observe`; 0 until then.
        scale: () fixed; 1 until then.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trainable: nn.Module, student_width: int) -> None:
        super().__init__()
        self.trainable = trainable
        self.register_buffer("shift", torch.zeros(student_width))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., D_s) of any floating type to (..., D) of the projection's own."""
        return self.trainable((embedding.to(self.scale.dtype) - self.shift) / self.scale)

    @torch.no_grad()
    def observe(self, embedding: Tensor) -> None:
        """Take shift and scale from the student's embedding of a sample: (N, D_s), or (N, 3, D_s), which has no mean.

        shift is the mean of each channel, scale the root mean square of all entries about it. Of an embedding that is not
        finite they stay as they are.
        """
        exact = embedding.double()
        mean = exact.mean(dim=0) if exact.dim() == 2 else exact.new_zeros(exact.shape[-1])
        deviation, size = (exact - mean).square().mean().sqrt(), mean.square().mean().sqrt()
        scale = deviation.maximum(SMALLEST_DEVIATION * size)
        if scale.isfinite() and scale > 0:
            self.shift.copy_(mean)
            self.scale.copy_(scale)


def build_projection(kind: str, student_width: int, teacher_width: int, *, seed: int) -> Projection:
    """A projection (N, D_s) -> (N, D) whose initial weights depend only on `seed`.

    The caller's random number stream is left as it was, so that a distilled and an undistilled run with the same seed see
    the same batches and initial weights.

    Args:
        kind: "linear", one affine map (what Kelvinius et al. 2023 found best); "mlp", two with SiLU between them.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trainable: nn.Module = nn.Linear(student_width, teacher_width)
        if kind == "mlp":
            trainable = nn.Sequential(trainable, nn.SiLU(), nn.Linear(teacher_width, teacher_width))
    return Projection(trainable, student_width)


def build_vector_projection(student_width: int, teacher_width: int, *, seed: int) -> Projection:
    """A projection (N, 3, D_s) -> (N, 3, D_v), linear in the channels and without bias: it rotates with the system."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Projection(nn.Linear(student_width, teacher_width, bias=False), student_width)


def projection_of(state: Mapping[str, Any]) -> Projection:
    """The projection of the node embeddings that a checkpoint keeps, of whatever kind and widths."""
    kind = "linear" if "trainable.weight" in state else "mlp"
    first, last = ("trainable.weight",) * 2 if kind == "linear" else ("trainable.0.weight", "trainable.2.weight")
    projection = build_projection(kind, state[first].shape[1], state[last].shape[0], seed=0)
    projection.load_state_dict(state)
    return projection


class Widths(Protocol):
    """Of a teacher's embeddings."""

    width: int
    vector_width: int


class Projections:
    """The projections that the terms of a training need; an `Identity`, without parameters, in place of the others.

    Attributes:
        node: of the node embeddings; the same on all ranks.
        vector: of the vector embeddings.
        reads: which embeddings of the student, fields of `teacher.TeacherOutputs`.

    Args:
        kind: of the projection of the node embeddings, see `build_projection`.
        compared: fields of `teacher.TeacherOutputs` that the terms compare.
    """

    def __init__(
        self, kind: str, compared: Collection[str], student: Features, teacher: Widths, *, seed: int, device: torch.device
    ) -> None:
        node: nn.Module = nn.Identity()
        vector: nn.Module = nn.Identity()
        self.reads = [name for name in (keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING) if name in compared]
        if keys.NODE_EMBEDDING in compared:
            node = build_projection(kind, student.width, teacher.width, seed=seed)
        if keys.VECTOR_EMBEDDING in compared:
            vector = build_vector_projection(student.vector_width, teacher.vector_width, seed=seed + 1)
        self.node, self.vector = (_on_all_ranks(module.to(device)) for module in (node, vector))

    def parameters(self) -> list[nn.Parameter]:
        """Of both, in the order in which their optimizer counts them."""
        return [*self.node.parameters(), *self.vector.parameters()]

    def observe(self, student: Features) -> None:
        """Take the size of the student's embeddings, before the first step, from the forward that was just read."""
        modules = {keys.NODE_EMBEDDING: self.node, keys.VECTOR_EMBEDDING: self.vector}
        for name in self.reads:
            _unwrap(modules[name]).observe(getattr(student, name))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {keys.PROJECTION: _unwrap(self.node).state_dict(), keys.VECTOR_PROJECTION: _unwrap(self.vector).state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume both; RuntimeError where they have other parameters."""
        _unwrap(self.node).load_state_dict(state[keys.PROJECTION])
        _unwrap(self.vector).load_state_dict(state[keys.VECTOR_PROJECTION])


def _on_all_ranks(module: nn.Module) -> nn.Module:
    has_parameters = any(True for _ in module.parameters())
    return DistributedDataParallel(module) if has_parameters and distutils.initialized() else module


def _unwrap(module: nn.Module) -> Any:
    return module.module if isinstance(module, DistributedDataParallel) else module
