"""A module of a user's: a term with options, a loss and a trainer. Tests copy it to where a user would have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from torch import nn

from fairchem_crack import CrackDistillTrainer, keys
from fairchem_crack.training.terms import register_term


@dataclass(frozen=True)
class LengthOptions:
    power: float = 1.0


@register_term("own_lengths", keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING, options=LengthOptions, shape=("N", "1"))
def own_lengths(context, term):
    student, teacher = context.projected, context.teacher.node_embedding
    return student.norm(dim=1, keepdim=True) ** term.options.power, teacher.norm(dim=1, keepdim=True) ** term.options.power


@registry.register_loss("own_cubes")
class Cubes(nn.Module):
    def forward(self, pred, target, natoms):
        return (pred - target).abs() ** 3


@registry.register_trainer("own_distill")
class OwnTrainer(CrackDistillTrainer):
    def train(self, *arguments, **options) -> None:
        Path(self.config["cmd"]["checkpoint_dir"], f"rank-{distutils.get_rank()}").touch()
        super().train(*arguments, **options)

    def _compute_metrics(self, out, batch, evaluator, metrics=None):
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        return evaluator.update("own_atoms", int(batch.natoms.sum()), metrics)
