"""The methods that are compared, and the random problem that they solve."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fairchem_crack import crack_loss
from fairchem_crack.loss import tiles, triton_sums

WIDTH, TEMPERATURE = 128, 0.15
ATOMS_PER_SYSTEM, PAIRS_PER_ATOM = 80, 12.5


def batch(pairs: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings (N, D) of student and teacher, and P random pairs inside systems of 80 atoms."""
    generator = torch.Generator().manual_seed(pairs)
    atoms = round(pairs / PAIRS_PER_ATOM)
    student, teacher = (torch.randn(atoms, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    student = 0.7 * teacher + 0.7 * student  # correlated, as in training
    system = torch.arange(atoms) // ATOMS_PER_SYSTEM
    # within a system, close in number: every atom has the same expected number of pairs
    first, second = torch.combinations(torch.arange(atoms)).T if atoms <= 400 else _near(atoms)
    inside = torch.stack((first, second))[:, system[first] == system[second]]
    chosen = torch.randperm(inside.shape[1], generator=generator)[:pairs].sort().values
    return student.to(device, dtype), teacher.to(device, dtype), inside[:, chosen].to(device)


def _near(atoms: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(atoms).repeat_interleave(ATOMS_PER_SYSTEM - 1)
    second = first + torch.arange(1, ATOMS_PER_SYSTEM).repeat(atoms)
    return first[second < atoms], second[second < atoms]


def relations(embedding: Tensor, pairs: Tensor) -> Tensor:
    """(2P, D) unit relations of both directions, as published."""
    unit = normalize(embedding, dim=-1)
    forward = normalize(unit[pairs[0]] - unit[pairs[1]], dim=-1)
    return torch.cat((forward, -forward))


def dense(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The published formula: InfoNCE over a 2P x 2P matrix."""
    logits = relations(student, pairs) @ relations(teacher, pairs).T / TEMPERATURE
    return cross_entropy(logits, torch.arange(logits.shape[0], device=logits.device))


class _TiledLogSum(torch.autograd.Function):
    """log sum over the columns of exp(s t^T / tau), tile by tile, with dot products of length D."""

    ENTRIES = 1 << 22

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor) -> Tensor:
        rows = max(1, _TiledLogSum.ENTRIES // teacher.shape[0])
        sums = [torch.logsumexp(part @ teacher.T / TEMPERATURE, dim=1) for part in student.split(rows)]
        ctx.save_for_backward(student, teacher, torch.cat(sums))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher, sums = ctx.saved_tensors
        rows = max(1, _TiledLogSum.ENTRIES // teacher.shape[0])
        parts = zip(student.split(rows), sums.split(rows), grad.split(rows))
        weights = ((part @ teacher.T / TEMPERATURE - total[:, None]).exp_() * g[:, None] for part, total, g in parts)
        return torch.cat([weight @ teacher / TEMPERATURE for weight in weights]), None


def tiled(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The dense formula in tiles, without the two identities."""
    s, t = relations(student, pairs), relations(teacher, pairs)
    return (_TiledLogSum.apply(s, t) - (s * t).sum(-1) / TEMPERATURE).mean()


def ours(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The package's loss."""
    return crack_loss(student=student, teacher=teacher, pairs=pairs, temperature=TEMPERATURE)


def unfused(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The package's loss by torch's own operations."""
    kernels = mock.patch.object(tiles, "fused_kernels", lambda: None), mock.patch.object(triton_sums, "DEVICE_TYPES", ())
    with kernels[0], kernels[1]:
        return ours(student, teacher, pairs)


METHODS = {"dense": dense, "tiled": tiled, "unfused": unfused, "ours": ours}
