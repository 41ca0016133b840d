"""Everything a training step has beyond the student's own: teacher, projection, distillation terms."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import radius_graph_pbc
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.cached import CachedTeacher
from fairchem_crack.config import DistillConfig, TermConfig
from fairchem_crack.features import attach_features
from fairchem_crack.losses import CrackLoss, DistillationLoss
from fairchem_crack.projection import build_projection
from fairchem_crack.relations import unordered_pairs
from fairchem_crack.teacher import Teacher, TeacherOutputs

STUDENT_ALONE = "To go on with its student and a new projection, set task.distill.resume: student."


class Distillation:
    """Teacher, projection and terms of one training run.

    Attributes:
        log: what the last step has to report, by the names of `keys`.
    """

    def __init__(
        self,
        config: DistillConfig,
        terms: list[TermConfig],
        *,
        teacher: Teacher | CachedTeacher,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        seed: int,
    ) -> None:
        self.config, self.terms, self.seed, self.device = config, terms, seed, device
        self.student = student
        self.student_features = attach_features(student, "student")
        self.teacher = teacher
        widths = self.student_features.width, self.teacher.width
        projection = build_projection(config.projection.kind, *widths, seed=seed).to(device)
        self.projection = DistributedDataParallel(projection) if distutils.initialized() else projection
        self.optimizer = type(optimizer)(projection.parameters(), **optimizer.defaults)
        self.losses = {term.key: build_loss(term, config) for term in terms}
        self.log: dict[str, float] = {}

    def loss(self, batch: Batch, step: int, teacher: TeacherOutputs | None = None) -> Tensor:
        """Weighted sum of the distillation terms for the batch that has just gone through the student.

        Args:
            batch: B systems, on the student's device.
            step: number of the training step; with the seed and the rank it fixes the random subset of `max_pairs`.
            teacher: what the teacher says of the batch, where it is known; else the teacher is run.
        """
        teacher = self.teacher(batch) if teacher is None else teacher
        projected = self.projection(self.student_features.node_embedding).float()  # (N, D)
        edges = teacher.edge_index if self.config.relations.graph == "teacher" else self.student_features.edge_index
        self.log = {}
        total = projected.new_zeros(())
        for term in self.terms:
            loss = self.losses[term.key]
            if isinstance(loss.loss_fn, CrackLoss):
                loss.loss_fn.pairs = unordered_pairs(edges, projected.shape[0])
                loss.loss_fn.generator = torch.Generator().manual_seed(self.seed_of(step))
            value = loss(projected, teacher.node_embedding, natoms=batch.natoms)
            self.log[keys.LOSS_PREFIX + term.key] = value.item()
            if isinstance(loss.loss_fn, CrackLoss):
                self.log.update(_diagnostics(loss.loss_fn))
            total = total + term.coefficient * value
        self.student_features.clear()
        return total

    def seed_of(self, step: int) -> int:
        """Seed of all that is random in a training step, so that a resumed run draws what the uninterrupted one drew."""
        return hash((self.seed, step, distutils.get_rank())) % 2**63

    def step(self, lr: float, *, max_norm: float | None, loss_scale: float) -> None:
        """Update the projection from the gradients of the last backward pass.

        Args:
            lr: the student's learning rate of this step; the projection follows its schedule.
            max_norm: clip the gradient's norm, on its own, so that the student's clipping is what it is without us.
            loss_scale: what the loss was multiplied with (mixed precision); a non-finite gradient skips the step.
        """
        gradients = [parameter.grad for parameter in self.projection.parameters() if parameter.grad is not None]
        for gradient in gradients:
            gradient /= loss_scale
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            if max_norm:
                torch.nn.utils.clip_grad_norm_(self.projection.parameters(), max_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()

    def check_elements(self, atomic_numbers: Tensor, where: str) -> None:
        """Raise ValueError when the teacher or the student has no embedding for an element."""
        largest = int(atomic_numbers.max())
        limits = {"teacher": self.teacher.max_atomic_number, "student": self.student_features.max_atomic_number}
        for role, limit in limits.items():
            if largest > limit:
                raise ValueError(
                    f"{where} holds an atom of atomic number {largest}; the {role} knows elements up to "
                    f"{limit}. Leave such systems out"
                    + (", or raise the model's `num_elements`." if role == "student" else ", or take another teacher.")
                )

    def preflight(self, batch: Batch) -> None:
        """Check a sample of the training data before the first step.

        Raises:
            ValueError: an element that a model cannot represent, or a relation graph without any pair.
        """
        self.check_elements(batch.atomic_numbers, "dataset.train")
        batch = batch.to(self.device)
        self.check_neighbors(batch)
        edges = self.teacher(batch).edge_index
        if self.config.relations.graph == "student":
            with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self.student.eval()
                self.student(batch)
                edges = self.student_features.edge_index
                self.student_features.clear()
        pairs = unordered_pairs(edges, batch.num_nodes).shape[1]
        logging.info(f"{pairs / len(batch.natoms):.0f} pairs per system in a sample of {len(batch.natoms)} systems.")
        if pairs == 0 and keys.RELATIONS in self.losses:
            atoms = "each has one atom" if batch.natoms.max() == 1 else "no two atoms are within the model's cutoff"
            raise ValueError(
                f"task.distill.relations: the {self.config.relations.graph}'s graph joins no pair of atoms in a sample of "
                f"{len(batch.natoms)} systems of dataset.train: {atoms}. Relations need systems of several bonded atoms; "
                f"check dataset.train.src, or distil with `{keys.NODE_EMBEDDINGS}` alone."
            )

    def check_neighbors(self, batch: Batch) -> None:
        """Raise ValueError for a system without any edge, on which fairchem's models fail obscurely."""
        cutoffs = {"teacher": self.teacher.cutoff, "student": getattr(self.student_features.backbone, "cutoff", None)}
        for role, cutoff in cutoffs.items():
            if cutoff is None:
                continue
            _, _, edges = radius_graph_pbc(batch, cutoff, 1)  # (B,)
            if (edges == 0).any():
                alone = (edges == 0).nonzero()[:, 0].tolist()
                sids = ", ".join(str(int(batch.sid[index])) for index in alone[:8])
                raise ValueError(
                    f"dataset.train: in {len(alone)} of a sample of {len(edges)} systems (sid {sids}) no atom has a "
                    f"neighbor within the {role}'s cutoff, {cutoff} A. Leave such systems out; check the cells."
                )

    def state_dict(self) -> dict[str, Any]:
        """What a training checkpoint keeps under `keys.CHECKPOINT_KEY`."""
        return {
            keys.PROJECTION: _unwrap(self.projection).state_dict(),
            keys.PROJECTION_OPTIMIZER: self.optimizer.state_dict(),
            keys.TEACHER_FINGERPRINT: self.teacher.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the projection.

        Raises:
            ValueError: the state belongs to another teacher or projection.
        """
        if state[keys.TEACHER_FINGERPRINT] != self.teacher.fingerprint():
            raise ValueError(
                f"The checkpoint to resume was distilled from another teacher than {self.teacher.checkpoint}: the "
                f"fingerprints of their weights differ. Give the teacher it started with. {STUDENT_ALONE}"
            )
        try:
            _unwrap(self.projection).load_state_dict(state[keys.PROJECTION])
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint to resume has another task.distill.projection: {error}. {STUDENT_ALONE}"
            ) from error
        self.optimizer.load_state_dict(state[keys.PROJECTION_OPTIMIZER])

    def close(self) -> None:
        """Take every hook off the student and the teacher."""
        self.student_features.close()
        self.teacher.close()


def build_loss(term: TermConfig, config: DistillConfig) -> DistillationLoss:
    """The loss of one term.

    Raises:
        ValueError: fairchem has no loss `fn`.
    """
    try:
        loss = DistillationLoss(term.fn, reduction=term.reduction)
    except RuntimeError as error:  # fairchem's registry; its message lists the names
        raise ValueError(f"loss_functions, {term.key}.fn: {error}") from error
    if isinstance(loss.loss_fn, CrackLoss):
        relations = config.relations
        loss.loss_fn.options = {
            "temperature": term.temperature,
            "anchor": relations.anchor,
            "negatives": relations.negatives,
            "max_pairs": relations.max_pairs,
            "false_negative_threshold": relations.false_negative_threshold,
        }
    return loss


def _diagnostics(loss: CrackLoss) -> Iterable[tuple[str, float]]:
    terms = loss.terms
    assert terms is not None
    return [
        (keys.RELATION_TOP1, terms.top1.item()),
        (keys.RELATION_COSINE, terms.cosine.item()),
        (keys.RELATION_ENTROPY, terms.entropy.item()),
        (keys.NUM_PAIRS, float(terms.num_pairs)),
        (keys.NUM_DEGENERATE, float(terms.num_degenerate)),
    ]


def _unwrap(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module
