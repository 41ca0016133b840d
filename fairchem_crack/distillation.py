"""Everything a training step has beyond the student's own: teacher, projections, distillation terms."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.agreement import energy_agreement, explanation
from fairchem_crack.boundaries import count_edges
from fairchem_crack.cached import CachedTeacher
from fairchem_crack.channels import ChannelStatistics, channel_statistics
from fairchem_crack.config import DistillConfig, TermConfig
from fairchem_crack.distributed import Gathering
from fairchem_crack.features import architecture, attach_features
from fairchem_crack.guard import teacher_faults
from fairchem_crack.losses import CrackLoss, Part, build_loss, check_compared, reduce_parts
from fairchem_crack.named_records import check_cells, listed
from fairchem_crack.outputs import ModelOutputs
from fairchem_crack.projection import Projections
from fairchem_crack.projection_state import FORMAT, upgraded
from fairchem_crack.relations import unordered_pairs
from fairchem_crack.teacher import Teacher, TeacherOutputs, own
from fairchem_crack.terms import COMPARED_AS, COMPARISONS, Step, wanted

STUDENT_ALONE = "To go on with its student and a new projection, set task.distill.resume: student."


class Distillation:
    """Teacher, projections and terms of one training run.

    Attributes:
        wanted: what the terms ask of the teacher, fields of `TeacherOutputs`.
        log: what the last step has to report, by the names of `keys`: numbers, or () tensors on the device.

    Args:
        outputs: the student's, with its normalizers and references.
        total_steps: of the whole training; the coefficients' schedules go by it.

    Raises:
        ValueError: a term needs what the student or the teacher does not have.
    """

    def __init__(
        self,
        config: DistillConfig,
        terms: list[TermConfig],
        *,
        teacher: Teacher | CachedTeacher,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        outputs: ModelOutputs,
        total_steps: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.config, self.terms, self.seed, self.device = config, terms, seed, device
        self.total_steps, self.outputs = max(total_steps, 1), outputs
        self.student = student
        self.student_features = attach_features(student, "student", outputs.names(keys.ENERGY))
        self.teacher = teacher
        self.wanted = wanted_fields(config, terms)
        for term in terms:
            self._check_term(term)
        compared = set().union(*(wanted(term) for term in terms))
        widths = (self.student_features, teacher)
        self.projections = Projections(config.projection.kind, compared, *widths, seed=seed, device=device)
        self._parameters = self.projections.parameters()
        # some optimizers have defaults that are not theirs to be given: `decoupled_weight_decay` of AdamW since torch 2.7
        accepted = inspect.signature(type(optimizer)).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
        self.optimizer = type(optimizer)(self._parameters, **options) if self._parameters else None
        self.losses = {term.key: build_loss(term, config) for term in terms}
        self.log: dict[str, Tensor | float] = {}
        self._said: TeacherOutputs | None = None
        self._gathering: Gathering | None = None
        self._statistics: ChannelStatistics | None = None

    def _check_term(self, term: TermConfig) -> None:
        name, needs = architecture(self.student), wanted(term)
        for property_, fields in COMPARED_AS.items():
            if not needs.isdisjoint(fields):
                _ = self.outputs[property_]  # the student has one such output
        if keys.VECTOR_EMBEDDING in needs:
            for role, model, width in (
                ("student", name, self.student_features.vector_width),
                ("teacher", self.teacher.name, self.teacher.vector_width),
            ):
                if not width:
                    raise ValueError(
                        f"loss_functions: `{term.key}` needs an l=1 embedding, which the {role}, `{model}`, has not"
                        + (" in its cache: write one with --vectors" if isinstance(self.teacher, CachedTeacher) else "")
                        + ". Leave the term out."
                    )
        if term.key == keys.FORCE_JACOBIAN and not self.student_features.has_position_gradients:
            raise ValueError(
                f"loss_functions: `{term.key}` needs a student whose forces can be differentiated; `{name}` detaches the "
                "rotations of its edges from the positions. Leave the term out, or take another student."
            )

    def ask(self, batch: Batch, step: int) -> None:
        """Ask the teacher what the terms of this step need.

        Before the student runs: the teacher's activations are gone by then, and the embeddings that other ranks need are
        on their way while it does.

        Args:
            batch: B systems, on the student's device; with `labels: teacher` its labels become the teacher's.
        """
        self._said = self._gathering = None
        active = self._active_terms(step)
        fields = wanted_fields(self.config, [term for term, _ in active])
        if not fields:
            return
        self._said = self.teacher(batch, fields, self.seed_of(step))
        if self.config.labels == "teacher":
            for property_ in (keys.ENERGY, keys.FORCES):
                if self.outputs.names(property_):
                    batch[self.outputs[property_].name] = self._said[property_]
        if keys.FORCE_JACOBIAN in fields:
            batch.pos.requires_grad_(True)
        for term, _ in active:
            if term.key == keys.RELATIONS and term.lmax == 0 and self.config.relations.negatives == "world":
                embedding = self._said.node_embedding
                self._gathering = Gathering(self._measured().standardize(embedding) if term.standardize else embedding)

    def _measured(self) -> ChannelStatistics:
        """The statistics of the teacher's channels, which `preflight` measures."""
        assert self._statistics is not None
        return self._statistics

    def _active_terms(self, step: int) -> list[tuple[TermConfig, float]]:
        """The terms of a step and their coefficients, without those whose schedule is at 0."""
        progress = (step - 1) / self.total_steps
        weighted = [(term, term.coefficient * term.schedule.factor(progress)) for term in self.terms]
        return [(term, coefficient) for term, coefficient in weighted if coefficient > 0]

    def loss(self, batch: Batch, step: int, outputs: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the distillation terms for the batch that has just gone through the student, behind `ask`.

        Args:
            batch: B systems, on the student's device.
            step: number of the training step; with the seed and the rank it fixes the random subset of `max_pairs`.
            outputs: the student's energy (B, 1) and forces (N, 3), normalised, by the names of its outputs.
        """
        self.log = {}
        total = torch.zeros((), device=self.device)
        if self._said is not None:
            seen = Step(
                batch,
                self.student_features,
                self.outputs.by_property(outputs, keys.ENERGY, keys.FORCES),
                self._said,
                self.projections.node,
                self.projections.vector,
                self._measured(),
                self.outputs,
            )
            active = self._active_terms(step)
            values = reduce_parts([self._part(term, seen, step) for term, _ in active])
            for (term, coefficient), value in zip(active, values):
                total = total + coefficient * value
                self._report(term, value)
        self.student_features.clear()
        return total

    def _part(self, term: TermConfig, seen: Step, step: int) -> Part:
        loss = self.losses[term.key]
        if isinstance(loss.loss_fn, CrackLoss):
            loss.loss_fn.pairs = self._pairs(seen)
            loss.loss_fn.generator = torch.Generator().manual_seed(self.seed_of(step))
            loss.loss_fn.gathering, self._gathering = self._gathering, None
        with torch.autocast(self.device.type, enabled=False):
            compared = COMPARISONS[term.key].pair(seen, term)
            check_compared(term, *compared, systems=len(seen.batch.natoms))
            return loss.part(*compared, natoms=seen.batch.natoms)

    def _pairs(self, seen: Step) -> Tensor:
        if self.config.relations.graph == "student":
            return unordered_pairs(self.student_features.edge_index, seen.batch.num_nodes)
        if isinstance(self.teacher, CachedTeacher):
            return seen.teacher.edge_index  # a cache holds pairs, each once
        return unordered_pairs(seen.teacher.edge_index, seen.batch.num_nodes)

    def _report(self, term: TermConfig, value: Tensor) -> None:
        self.log[keys.LOSS_PREFIX + term.key] = value.detach()
        loss_fn = self.losses[term.key].loss_fn
        if isinstance(loss_fn, CrackLoss):
            self.log.update(loss_fn.diagnostics())

    def seed_of(self, step: int) -> int:
        """Seed of all that is random in a training step, so that a resumed run draws what the uninterrupted one drew."""
        return hash((self.seed, step, distutils.get_rank())) % 2**63

    def step(self, lr: float, *, max_norm: float | None) -> None:
        """Update the projection from the gradients of the last backward pass, which are finite and of the unscaled loss.

        Args:
            lr: the student's learning rate of this step; the projection follows its schedule.
            max_norm: clip the gradient's norm, on its own, so that the student's clipping is what it is without us.
        """
        if self.optimizer is None:
            return
        if max_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop_gradients(self) -> None:
        """Forget the gradients of a step that is skipped."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def faults(self, batch: Batch) -> list[str]:
        """What of the teacher's outputs makes a term of this step not finite, and of which systems."""
        spoiled = [term for term in self.terms if not math.isfinite(float(self.log.get(keys.LOSS_PREFIX + term.key, 0.0)))]
        fields = wanted_fields(self.config, spoiled)
        if self._said is None or not spoiled:
            return []
        found = teacher_faults(((name, self._said[name]) for name in sorted(fields)), batch)
        return [f"{fault}, by {self.teacher.checkpoint}" for fault in found]

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
        """Check a sample of the training data before the first step, and measure the scale of the embeddings on it.

        Raises:
            ValueError: an element that a model cannot represent, embeddings that are not finite, or a relation graph without
                any pair.
        """
        self.check_elements(batch.atomic_numbers, "dataset.train")
        batch = batch.to(self.device)
        self.check_neighbors(batch)
        said = self.teacher(batch, self.wanted or {keys.NODE_EMBEDDING})
        self._check_embeddings(said, batch)
        self._judge_energies(batch, said)
        self._statistics, edges = channel_statistics(said), said.edge_index
        edges_of_student = self._observe_student(batch)
        if self.config.relations.graph == "student":
            edges = edges_of_student
        pairs = unordered_pairs(edges, batch.num_nodes).shape[1]
        logging.info(f"{pairs / len(batch.natoms):.0f} pairs per system in a sample of {len(batch.natoms)} systems.")
        if pairs == 0 and keys.RELATIONS in self.losses:
            atoms = "each has one atom" if batch.natoms.max() == 1 else "no two atoms are within the model's cutoff"
            raise ValueError(
                f"task.distill.relations: the {self.config.relations.graph}'s graph joins no pair of atoms in a sample of "
                f"{len(batch.natoms)} systems of dataset.train: {atoms}. Relations need systems of several bonded atoms; "
                f"check dataset.train.src, or distil without `{keys.RELATIONS}`."
            )

    def _check_embeddings(self, outputs: TeacherOutputs, batch: Batch) -> None:
        """Raise ValueError where the unit of embeddings would not be finite, and with it every step."""
        embeddings = {name: getattr(outputs, name) for name in (keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING)}
        if faults := teacher_faults(((name, value) for name, value in embeddings.items() if value is not None), batch):
            raise ValueError(
                f"Teacher {self.teacher.checkpoint}: in a sample of dataset.train, not finite are the {'; '.join(faults)}. "
                "Leave such systems out, or try task.distill.teacher.precision: float32."
            )

    def _judge_energies(self, batch: Batch, teacher: TeacherOutputs) -> None:
        """Warn where a term and the label of the same energy would pull apart."""
        compared = [term.key for term in self.terms if keys.ENERGY in wanted(term)]
        if compared and self.config.labels == "data" and (label := self.outputs[keys.ENERGY].name) in batch:
            found = energy_agreement(batch[label], teacher[keys.ENERGY], batch)
            if not found.is_plausible and distutils.is_master():
                logging.warning(f"dataset.train: in a sample {explanation(found, compared)}")

    @torch.no_grad()
    def _observe_student(self, batch: Batch) -> Tensor:
        """Run the student as far as its embeddings, from whose size the projections start; its edges."""
        self.student.eval()
        unrecorded = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        with unrecorded, self.student_features.stopping_after("edge_index", keys.NODE_EMBEDDING, *self.projections.reads):
            self.student(own(batch))
        self.projections.observe(self.student_features)
        edges = self.student_features.edge_index
        self.student_features.clear()
        return edges

    def check_neighbors(self, batch: Batch) -> None:
        """Raise ValueError for a system without any edge, or without images, on which fairchem's models fail obscurely."""
        backbone = self.student_features.backbone
        graphs = {
            "teacher": (self.teacher.cutoff, self.teacher.use_pbc),
            "student": (getattr(backbone, "cutoff", None), getattr(backbone, "use_pbc", True)),
        }
        for role, (cutoff, use_pbc) in graphs.items():
            if cutoff is None:
                continue
            if use_pbc:
                check_cells(batch, "dataset.train")
            edges = count_edges(batch, cutoff, use_pbc=use_pbc)  # (B,)
            if (edges == 0).any():
                alone = (edges == 0).nonzero()[:, 0].tolist()
                raise ValueError(
                    f"dataset.train: in {len(alone)} of a sample of {len(edges)} systems ({listed(batch, alone)}) no atom "
                    f"has a neighbor within the {role}'s cutoff, {cutoff} A. Leave such systems out; check the cells."
                )

    def state_dict(self) -> dict[str, Any]:
        """What a training checkpoint keeps under `keys.CHECKPOINT_KEY`."""
        return {
            keys.STATE_FORMAT: FORMAT,
            **self.projections.state_dict(),
            keys.PROJECTION_OPTIMIZER: {} if self.optimizer is None else self.optimizer.state_dict(),
            keys.CHANNEL_STATISTICS: self._measured().state_dict(),
            keys.TEACHER_FINGERPRINT: self.teacher.fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the projection, and the scale in which embeddings are compared, after `preflight`.

        Raises:
            ValueError: the state belongs to another teacher or projection, or to a later version.
        """
        if state[keys.TEACHER_FINGERPRINT] != self.teacher.fingerprint():
            raise ValueError(
                f"The checkpoint to resume was distilled from another teacher than {self.teacher.checkpoint}: the "
                f"fingerprints of their weights differ. Give the teacher it started with. {STUDENT_ALONE}"
            )
        state = upgraded(state, self._measured())
        try:
            self.projections.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint to resume has another task.distill.projection, or other terms: {error}. {STUDENT_ALONE}"
            ) from error
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state[keys.PROJECTION_OPTIMIZER])
        self._statistics = ChannelStatistics.from_state(state[keys.CHANNEL_STATISTICS], self.device)

    def close(self) -> None:
        """Take every hook off the student and the teacher."""
        self.student_features.close()
        self.teacher.close()


def wanted_fields(config: DistillConfig, terms: list[TermConfig]) -> set[str]:
    """All that a training asks of its teacher, fields of `TeacherOutputs`."""
    labels = {keys.ENERGY, keys.FORCES} if config.labels == "teacher" else set()
    return labels.union(*(wanted(term) for term in terms))
