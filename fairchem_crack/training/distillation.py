"""Everything a training step has beyond the student's own: teacher, projections, distillation terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters import architecture, attach_features
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TermConfig
from fairchem_crack.io.boundaries import pbc_of
from fairchem_crack.io.labels import is_of_teacher
from fairchem_crack.io.named_records import NAMED, listed
from fairchem_crack.loss.alike import groups_of_pairs
from fairchem_crack.loss.gather import Gathering
from fairchem_crack.loss.relations import unordered_pairs
from fairchem_crack.teacher.cache import differences
from fairchem_crack.teacher.cached import CachedTeacher
from fairchem_crack.teacher.frozen import Teacher, TeacherOutputs, own
from fairchem_crack.training import preflight
from fairchem_crack.training.coefficients import WeightedTerm, active_terms
from fairchem_crack.training.guard import teacher_faults
from fairchem_crack.training.labels import check_origins, take_teachers_labels
from fairchem_crack.training.losses import LossContext, build_loss, check_compared
from fairchem_crack.training.projection import Projections
from fairchem_crack.training.projection_training import RESUME_STUDENT, ProjectionTraining
from fairchem_crack.training.reduction import Part, StepLosses, weighted_sum
from fairchem_crack.training.terms import (
    TermContext,
    element_weights,
    inputs_of,
    is_of_positions,
    requested_fields,
    resolved,
    teacher_fields,
)


@dataclass(frozen=True)
class Student:
    """The model that is trained, as fairchem's trainer has made it.

    Attributes:
        outputs: its outputs, with their normalizers and references.
    """

    model: nn.Module
    outputs: ModelOutputs
    optimizer: torch.optim.Optimizer
    device: torch.device


@dataclass(frozen=True)
class TeacherStep:
    """What a training step has before the student runs.

    Attributes:
        global_step: of the training, counted from 1.
        seed: of all that is random in the step, so that a resumed run draws what the uninterrupted one drew.
        batch: B systems, on the student's device.
        terms: those of the step, with their coefficients.
        teacher: the teacher's outputs; None where nothing is requested.
        replaced: (B,) bool of each output, the systems whose label is the teacher's.
        gathering: the embeddings of all ranks on their way, for `negatives: world`.
    """

    global_step: int
    seed: int
    batch: Batch
    terms: Sequence[WeightedTerm]
    teacher: TeacherOutputs | None = None
    gathering: Gathering | None = None
    replaced: Mapping[str, Tensor] = field(default_factory=dict)


class Distillation:
    """Teacher, projections and terms of one training run.

    A step calls `run_teacher`, then the student, then `loss`; `update_projection` after the student's update.

    Attributes:
        requested: the fields of `TeacherOutputs` that the whole training requests.

    Args:
        total_steps: of the whole training; the coefficients' schedules go by it.

    Raises:
        ValueError: a term needs what the student or the teacher does not have.
    """

    def __init__(
        self,
        config: DistillConfig,
        terms: list[TermConfig],
        teacher: Teacher | CachedTeacher,
        student: Student,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        terms = [resolved(term, teacher.lmax) for term in terms]
        self.config, self.terms, self.teacher = config, terms, teacher
        self.student, self.outputs, self.device = student.model, student.outputs, student.device
        self.total_steps, self.seed = total_steps, seed
        self.requested = requested_fields(config, terms)
        self.student_features = attach_features(self.student, "student", self.outputs.names(keys.ENERGY))
        name = architecture(self.student)
        for term in terms:
            preflight.check_term(term, self.student_features, name, teacher, self.outputs)
        compared: set[str] = set().union(*(teacher_fields(term) for term in terms if term.projected))
        preflight.check_projection(config.projection, compared, self.student_features, name, teacher)
        widths = (self.student_features, teacher)
        self.projections = Projections(config.projection.kind, compared, *widths, seed=seed, device=self.device)
        self.projection_training = ProjectionTraining(self.projections, student.optimizer)
        self.losses = {term.key: build_loss(term, config, widths=(teacher.width, teacher.vector_width)) for term in terms}

    def check_batch(self, batch: Batch) -> None:
        """Refuse atoms that a model or a weight does not know, in a batch that is still on the host."""
        where = f"dataset.train, systems of {listed(batch)},"
        preflight.check_elements(batch.atomic_numbers, self.student_features, self.teacher, where)
        preflight.check_tags(self.terms, batch, where)

    def run_teacher(self, batch: Batch, global_step: int) -> TeacherStep:
        """Run the teacher, as far as the terms of this step request it.

        Before the student runs: the teacher's activations are gone by then, and the embeddings that other ranks need are
        on their way while it does.

        Args:
            batch: B systems, on the student's device; labels become the teacher's as `task.distill.labels` has it.
        """
        seed = self.seed_of(global_step)
        terms = active_terms(self.terms, global_step, self.total_steps)
        fields = requested_fields(self.config, [term for term, _ in terms])
        if not fields and not terms:
            return TeacherStep(global_step, seed, batch, terms)
        outputs = self.teacher(batch, fields, seed)
        replaced = take_teachers_labels(batch, self.outputs, outputs, self.config.labels)
        if any(is_of_positions(term) for term, _ in terms):
            batch.pos.requires_grad_(True)
        gathering = self._send_to_all_ranks(terms, outputs)
        return TeacherStep(global_step, seed, batch, terms, outputs, gathering, replaced)

    def _send_to_all_ranks(self, terms: Sequence[WeightedTerm], outputs: TeacherOutputs) -> Gathering | None:
        """With `negatives: world`, the embeddings as the relations compare them."""
        if self.config.relations.negatives != "world":
            return None
        for term, _ in terms:
            if term.key == keys.RELATIONS and term.lmax == 0:
                embedding = outputs.node_embedding
                return Gathering(
                    self.projection_training.statistics.standardize(embedding) if term.standardize else embedding
                )
        return None

    def seed_of(self, global_step: int) -> int:
        """The seed of a step on this rank."""
        return hash((self.seed, global_step, distutils.get_rank())) % 2**63

    def loss(self, step: TeacherStep, outputs: dict[str, Tensor]) -> StepLosses:
        """The distillation terms for the batch that has just gone through the student.

        Args:
            step: what `run_teacher` returned for the batch.
            outputs: the student's energy (B, 1) and forces (N, 3), normalised, by the names of its outputs.
        """
        parts: list[Part] = []
        if step.teacher is not None:
            loss_context = self._loss_context(step, step.teacher)
            context = self._term_context(step, step.teacher, outputs, loss_context.pairs)
            parts = [self._part(term, context, loss_context) for term, _ in step.terms]
        self.student_features.clear()
        return weighted_sum(step.terms, parts, self.device)

    def _term_context(
        self, step: TeacherStep, teacher: TeacherOutputs, outputs: dict[str, Tensor], pairs: Tensor | None
    ) -> TermContext:
        return TermContext(
            step.batch,
            self.student_features,
            self.outputs.by_property(outputs, keys.ENERGY, keys.FORCES),
            teacher,
            self.projections.modules,
            self.projection_training.statistics,
            self.outputs,
            pairs,
        )

    def _loss_context(self, step: TeacherStep, teacher: TeacherOutputs) -> LossContext:
        has_relations = any(term.key in keys.OF_PAIRS for term, _ in step.terms)
        pairs = self._pairs(teacher.edge_index, step.batch.num_nodes) if has_relations else None
        groups = None
        if pairs is not None and self.config.relations.negatives == "alike":
            batch = step.batch
            pbc = pbc_of(batch)
            periodic = torch.ones_like(batch.cell[:, 0], dtype=torch.bool) if pbc is None else pbc.to(self.device)
            atoms = (batch.atomic_numbers, batch.pos.detach())
            groups = groups_of_pairs(pairs, *atoms, batch.cell, periodic, batch.batch)
        return LossContext(step.batch.natoms, pairs, step.seed, step.gathering, groups)

    def _pairs(self, teacher_edges: Tensor, num_atoms: int) -> Tensor:
        """(2, P) the atom pairs of the relation graph, after both models have run."""
        if self.config.relations.graph == "student":
            return unordered_pairs(self.student_features.edge_index, num_atoms)
        if isinstance(self.teacher, CachedTeacher):
            return teacher_edges  # a cache holds pairs, each once
        return unordered_pairs(teacher_edges, num_atoms)

    def _part(self, term: TermConfig, context: TermContext, loss_context: LossContext) -> Part:
        with torch.autocast(self.device.type, enabled=False):
            inputs = inputs_of(term, context)
            check_compared(term, *inputs, systems=len(context.batch.natoms))
            return self.losses[term.key].part(*inputs, replace(loss_context, weights=element_weights(term, context)))

    def update_projection(self, lr: float, *, max_norm: float | None) -> None:
        """Update the projections at the student's learning rate, see `ProjectionTraining.update`."""
        self.projection_training.update(lr, max_norm=max_norm)

    def faults(self, step: TeacherStep, log: Mapping[str, float]) -> list[str]:
        """What of the teacher's outputs makes a term of a step not finite, and of which systems.

        Args:
            log: the values of the step's terms.
        """
        spoiled = [term for term in self.terms if not math.isfinite(log.get(keys.LOSS_PREFIX + term.key, 0.0))]
        if step.teacher is None or not spoiled:
            return []
        outputs = ((name, step.teacher[name]) for name in sorted(requested_fields(self.config, spoiled)))
        return [f"{fault}, by {self.teacher.checkpoint}" for fault in teacher_faults(outputs, step.batch)]

    def preflight(self, batch: Batch) -> int:
        """Check a sample of the training data before the first step, and measure the scale of the embeddings on it.

        Returns:
            P, the atom pairs of the sample.

        Raises:
            ValueError: an element that a model cannot represent, embeddings that are not finite, or a relation graph without
                any pair.
        """
        preflight.check_elements(batch.atomic_numbers, self.student_features, self.teacher, "dataset.train")
        preflight.check_tags(self.terms, batch, "a sample of dataset.train")
        preflight.check_tag_weights(self.terms, batch)
        batch = batch.to(self.device)
        preflight.check_neighbors(batch, self.student_features, self.teacher)
        outputs = self.teacher(batch, self.requested or {keys.NODE_EMBEDDING})
        preflight.check_embeddings(outputs, batch, self.teacher)
        if self.config.data_label_weight != 1:
            check_origins(batch, self.outputs)
        mixes = self.config.labels == "fill" or bool(is_of_teacher(batch, keys.ENERGY).any())
        preflight.warn_of_another_zero(self.terms, self._energy_label(batch), outputs, batch, mixes=mixes)
        self._run_student(batch)
        self.projection_training.measure(outputs, self.student_features)
        pairs = self._pairs(outputs.edge_index, batch.num_nodes).shape[1]
        self.student_features.clear()
        logging.info(f"{pairs / len(batch.natoms):.0f} pairs per system in a sample of {len(batch.natoms)} systems.")
        if of_pairs := [key for key in keys.OF_PAIRS if key in self.losses]:
            preflight.check_pairs(pairs, batch, self.config.relations.graph, of_pairs)
        return pairs

    def _energy_label(self, batch: Batch) -> Tensor | None:
        """The energies of the data on which the student trains, NaN where they are the teacher's; None without any."""
        names = self.outputs.names(keys.ENERGY) if self.config.labels != "teacher" else []
        if len(names) != 1 or names[0] not in batch:
            return None
        label = batch[names[0]].view(-1).masked_fill(is_of_teacher(batch, keys.ENERGY), math.nan)
        return None if label.isnan().all() else label

    @torch.no_grad()
    def _run_student(self, batch: Batch) -> None:
        """As far as its edges and embeddings, from whose size the projections start."""
        self.student.eval()
        unrecorded = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        with unrecorded, self.student_features.stopping_after("edge_index", keys.NODE_EMBEDDING, *self.projections.reads):
            self.student(own(batch))

    def state_dict(self) -> dict[str, Any]:
        """What a training checkpoint keeps under `keys.CHECKPOINT_KEY`."""
        of_teacher = {
            keys.TEACHER_FINGERPRINT: self.teacher.fingerprint(),
            keys.TEACHER_SETTINGS: self.teacher.settings(),
        }
        return {**self.projection_training.state_dict(), **of_teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the projections, and the scale in which embeddings are compared, after `preflight`.

        Raises:
            ValueError: the state belongs to another teacher or projection, or to a later version.
        """
        if state[keys.TEACHER_FINGERPRINT] != self.teacher.fingerprint():
            raise ValueError(
                f"The checkpoint to resume was distilled from another teacher than {self.teacher.checkpoint}: the "
                f"fingerprints of their weights differ. Give the teacher it started with. {RESUME_STUDENT}"
            )
        settings = self.teacher.settings()
        changed = differences(state.get(keys.TEACHER_SETTINGS, settings), settings)  # earlier versions kept none
        if changed:
            named = "; ".join(f"{name} {before} (before), {now} (now)" for name, before, now in changed[:NAMED])
            raise ValueError(
                f"The checkpoint to resume was distilled from a teacher with other settings than {self.teacher.checkpoint}: "
                f"{named}. Give the teacher it started with. {RESUME_STUDENT}"
            )
        self.projection_training.load_state_dict(state, self.device)

    def close(self) -> None:
        """Take every hook off the student and the teacher."""
        self.student_features.close()
        self.teacher.close()
