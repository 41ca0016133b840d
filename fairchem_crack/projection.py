"""The trainable maps from the student's embeddings to the teacher's; they exist only while training."""

from __future__ import annotations

import torch
from torch import nn


def build_projection(kind: str, student_width: int, teacher_width: int, *, seed: int) -> nn.Module:
    """A projection (N, D_s) -> (N, D) whose initial weights depend on `seed` alone.

    The caller's random number stream is left as it was, so that a distilled and an undistilled run with the same seed see
    the same batches and initial weights.

    Args:
        kind: "linear", one affine map (what Kelvinius et al. 2023 found best); "mlp", two with SiLU between them.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if kind == "linear":
            return nn.Linear(student_width, teacher_width)
        return nn.Sequential(nn.Linear(student_width, teacher_width), nn.SiLU(), nn.Linear(teacher_width, teacher_width))


def build_vector_projection(student_width: int, teacher_width: int, *, seed: int) -> nn.Module:
    """A projection (N, 3, D_s) -> (N, 3, D_v), linear in the channels and without bias: it turns with the system."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Linear(student_width, teacher_width, bias=False)
