"""The trainable maps from the student's embeddings to the teacher's; they exist only while training.

They give the teacher's embedding as it is standardised by `channels`, and take the student's divided by what its size was
before the first step: whatever the scales of both models, a term starts at a value of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from fairchem.core.common import distutils
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Grid
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fairchem_crack import keys
from fairchem_crack.adapters import Features
from fairchem_crack.teacher.channels import by_degree
from fairchem_crack.teacher.frozen import EMBEDDINGS

ALL = "all"  # the name of a projection of all degrees together
STATES = dict(zip((*EMBEDDINGS, ALL), (keys.PROJECTION, keys.VECTOR_PROJECTION, keys.HIGHER_PROJECTION, keys.PROJECTION)))
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
        """Take shift and scale from the student's embedding of a sample: (N, D_s), or (N, rows, D_s), which has no mean.

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


class DegreeLinear(nn.Module):
    """A linear map of the channels for each degree l = 2 to L, so that the coefficients rotate with the system.

    Attributes:
        weight: (L - 1, D_v, D_s).
    """

    def __init__(self, lmax: int, student_width: int, teacher_width: int) -> None:
        super().__init__()
        bound = student_width**-0.5  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(lmax - 1, teacher_width, student_width).uniform_(-bound, bound))

    def forward(self, coefficients: Tensor) -> Tensor:
        """(N, (L + 1)^2 - 4, D_s) to (N, (L + 1)^2 - 4, D_v)."""
        parts = zip(by_degree(coefficients), self.weight)
        return torch.cat([part @ weight.T for part, weight in parts], dim=1)


def build_higher_projection(lmax: int, student_width: int, teacher_width: int, *, seed: int) -> Projection:
    """A projection (N, (L + 1)^2 - 4, D_s) -> (N, (L + 1)^2 - 4, D_v) of the degrees 2 to L, linear in the channels."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Projection(DegreeLinear(lmax, student_width, teacher_width), student_width)


class EquivariantProjection(Projection):
    """A projection of all degrees together: a feed-forward network of EquiformerV2, with its non-linearity on a grid.

    fairchem's own class, as Lim et al. 2025 take it. A degree l > 0 of what it gives depends on all degrees of the student,
    and rotates as exactly as their grid resolves it: to 1e-3 for lmax 2, to 2e-2 for l = 6 of lmax 6. l = 0, which passes
    by the grid, is an "mlp" of the student's l = 0.
    """

    def __init__(self, lmax: int, student_width: int, teacher_width: int) -> None:
        grid = SO3_Grid(lmax, lmax, normalization="component", resolution=2 * (lmax + 1) + 4)  # 18 for lmax 6, as published
        network = FeedForwardNetwork(
            *(student_width, teacher_width, teacher_width),
            *([lmax], [lmax], {lmax: {lmax: grid}}),
            use_grid_mlp=True,
        )
        super().__init__(network, student_width)
        self.lmax, self.grid = lmax, grid  # which is no module of the network, but moves with this one

    def forward(self, coefficients: Tensor) -> Tensor:
        """(N, (lmax + 1)^2, D_s) to (N, (lmax + 1)^2, D)."""
        coefficients = coefficients.to(self.scale.dtype)
        invariant, rest = coefficients[:, :1] - self.shift, coefficients[:, 1:]
        inputs = SO3_Embedding(0, [self.lmax], coefficients.shape[-1], coefficients.device, coefficients.dtype)
        inputs.set_embedding(torch.cat((invariant, rest), dim=1) / self.scale)
        return self.trainable(inputs).embedding

    @torch.no_grad()
    def observe(self, coefficients: Tensor) -> None:
        """As of any projection; only l = 0 has a mean."""
        shift = coefficients.double()[:, 0].mean(dim=0)
        super().observe(torch.cat((coefficients[:, :1] - shift, coefficients[:, 1:].double()), dim=1))
        if shift.isfinite().all():
            self.shift.copy_(shift)


def build_equivariant_projection(lmax: int, student_width: int, teacher_width: int, *, seed: int) -> Projection:
    """A projection of all degrees together, (N, (lmax + 1)^2, D_s) -> (N, (lmax + 1)^2, D)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return EquivariantProjection(lmax, student_width, teacher_width)


def projection_of(state: Mapping[str, Any]) -> Projection:
    """The projection of the node embeddings that a checkpoint keeps, of whatever kind and widths."""
    if "grid.to_grid_mat" in state:
        lmax = math.isqrt(state["grid.to_grid_mat"].shape[-1]) - 1
        widths = len(state["shift"]), state["trainable.so3_linear_2.bias"].shape[0]
        projection = build_equivariant_projection(lmax, *widths, seed=0)
        projection.load_state_dict(state)
        return projection
    kind = "linear" if "trainable.weight" in state else "mlp"
    first, last = ("trainable.weight",) * 2 if kind == "linear" else ("trainable.0.weight", "trainable.2.weight")
    projection = build_projection(kind, state[first].shape[1], state[last].shape[0], seed=0)
    projection.load_state_dict(state)
    return projection


class Widths(Protocol):
    """Of a teacher's embeddings, and their largest degree."""

    width: int
    vector_width: int
    lmax: int


class Projections:
    """The projections that the terms of a training need; an `Identity`, without parameters, in place of the others.

    Attributes:
        modules: by the names of `EMBEDDINGS`; the same on all ranks. That of the higher degrees is of all that both have; an
            equivariant one is of all degrees of the student, and called `ALL`.
        reads: which embeddings of the student, fields of `teacher.TeacherOutputs`.

    Args:
        kind: of the projection of the node embeddings, see `build_projection`.
        compared: fields of `teacher.TeacherOutputs` that the terms compare with the student's projected ones.
    """

    def __init__(
        self, kind: str, compared: Collection[str], student: Features, teacher: Widths, *, seed: int, device: torch.device
    ) -> None:
        self.reads = [name for name in EMBEDDINGS if name in compared]
        if kind == "equivariant" and self.reads:
            self.reads = list(EMBEDDINGS[: student.lmax + 1])
            widths = student.width, teacher.width
            self.modules = {ALL: _on_all_ranks(build_equivariant_projection(student.lmax, *widths, seed=seed).to(device))}
            return
        vector_widths = student.vector_width, teacher.vector_width
        modules: dict[str, nn.Module] = {name: nn.Identity() for name in EMBEDDINGS}
        if keys.NODE_EMBEDDING in compared:
            modules[keys.NODE_EMBEDDING] = build_projection(kind, student.width, teacher.width, seed=seed)
        if keys.VECTOR_EMBEDDING in compared:
            modules[keys.VECTOR_EMBEDDING] = build_vector_projection(*vector_widths, seed=seed + 1)
        if keys.HIGHER_EMBEDDING in compared:
            lmax = min(student.lmax, teacher.lmax)
            modules[keys.HIGHER_EMBEDDING] = build_higher_projection(lmax, *vector_widths, seed=seed + 2)
        self.modules = {name: _on_all_ranks(module.to(device)) for name, module in modules.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Of all, in the order in which their optimizer counts them."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def observe(self, student: Features) -> None:
        """Take the size of the student's embeddings, before the first step, from the forward that was just read."""
        if ALL in self.modules:
            unwrapped(self.modules[ALL]).observe(all_degrees(student))
            return
        for name in self.reads:
            unwrapped(self.modules[name]).observe(getattr(student, name))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {STATES[name]: unwrapped(module).state_dict() for name, module in self.modules.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume all; RuntimeError where they have other parameters."""
        for name, module in self.modules.items():
            unwrapped(module).load_state_dict(state.get(STATES[name]) or {})  # earlier versions had no higher degrees


def all_degrees(student: Features) -> Tensor:
    """(N, (L + 1)^2, D_s) the student's embeddings of all its degrees."""
    embeddings = [getattr(student, name) for name in EMBEDDINGS[: student.lmax + 1]]
    return torch.cat([embeddings[0][:, None], *embeddings[1:]], dim=1)


def _on_all_ranks(module: nn.Module) -> nn.Module:
    has_parameters = any(True for _ in module.parameters())
    return DistributedDataParallel(module) if has_parameters and distutils.initialized() else module


def unwrapped(module: nn.Module) -> Any:
    """A projection without DDP."""
    return module.module if isinstance(module, DistributedDataParallel) else module
