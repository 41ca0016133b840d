"""What the distillation terms of a training step can read: both models' outputs, in one width and one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters import Features
from fairchem_crack.adapters.outputs import ModelOutputs, predicted
from fairchem_crack.teacher.channels import ChannelStatistics
from fairchem_crack.teacher.frozen import EMBEDDINGS, TeacherOutputs, own
from fairchem_crack.teacher.responses import displaced
from fairchem_crack.training.projection import ALL, all_degrees, unwrapped


@dataclass
class TermContext:
    """What the terms of a training step can read.

    Attributes:
        batch: B systems, after the student's forward.
        student: its features.
        outputs: its energy (B, 1) and forces (N, 3), normalised; by property, and by name where that is another.
        teacher: its outputs for the batch.
        projections: of the student's embeddings to the teacher's width, standardised as the teacher's; by the names of
            `EMBEDDINGS`. All but that of the node embeddings are linear in the channels: they rotate with the system.
        statistics: of the teacher's embeddings.
        targets: the conversion between eV and the student's normalised unit, by property.
        pairs: (2, P) long, the atom pairs of the relation graph; None where no term of `keys.OF_PAIRS` is trained.
    """

    batch: Batch
    student: Features
    outputs: dict[str, Tensor]
    teacher: TeacherOutputs
    projections: Mapping[str, nn.Module]
    statistics: ChannelStatistics
    targets: ModelOutputs
    pairs: Optional[Tensor] = None
    _projected: dict[str, Tensor] = field(default_factory=dict, init=False)
    _moved: dict[str, Tensor] = field(default_factory=dict, init=False)

    @property
    def projected(self) -> Tensor:
        """(N, D) the student's node embedding, projected, in the units of `teacher.node_embedding`."""
        return self.statistics.restore(self._project(keys.NODE_EMBEDDING))

    def embeddings(self, name: str, *, standardize: bool = True, projected: bool = True) -> tuple[Tensor, Tensor]:
        """An embedding to compare, student's and teacher's, of the teacher's width and the degrees that both have.

        Args:
            name: of `EMBEDDINGS`.
            standardize: as `ChannelStatistics.standardize` does; else both are in the teacher's own units.
            projected: the student's is projected; else it is as it is.
        """
        teacher = self._common(self.teacher[name], name)
        student = self._project(name) if projected else self._common(getattr(self.student, name), name).to(teacher.dtype)
        if standardize:
            own = student if projected else self.statistics.standardize(student, name)
            return own, self.statistics.standardize(teacher, name)
        return (self.statistics.restore(student, name) if projected else student), teacher

    def moved(self, key: str) -> dict[str, Tensor]:
        """The student after the displacement of the teacher's responses, by one run for all terms of the step.

        Args:
            key: of the term.

        Returns:
            (N, D) the projected node embedding, standardised, and (N, 3) the forces, normalised: those of them that the
            step's terms compare.

        Raises:
            ValueError: the student runs in too few digits for a difference.
        """
        dtype = self.student.node_embedding.dtype
        if torch.finfo(dtype).bits < 32:
            raise ValueError(
                f"loss_functions: `{key}` takes a difference of outputs, for which {dtype} has too few digits. Train "
                "without --amp, or leave the term out."
            )
        if not self._moved:
            self._moved.update(self._run_moved())
        return self._moved

    def _run_moved(self) -> dict[str, Tensor]:
        """As far as the step's terms need."""
        of_embedding, of_forces = self.teacher.embedding_response, self.teacher.force_response
        response = of_forces if of_embedding is None else of_embedding
        assert response is not None  # both are of one displacement
        batch, moved = displaced(own(self.batch), response.displacement), {}
        with self.student.aside(), self.student.edges_at(self.batch.pos.detach()):
            if of_forces is None:
                with self.student.stopping_after(*self._projected_together):
                    self.student.model(batch)
            else:
                raw = self.student.model(batch)
                moved[keys.FORCES] = predicted(raw, keys.FORCES, self.targets[keys.FORCES].name).view(-1, 3)
            if of_embedding is not None:
                moved[keys.NODE_EMBEDDING] = self._project_again()
        return moved

    @property
    def _projected_together(self) -> tuple[str, ...]:
        """Which of the student's embeddings the projected node embedding is made of."""
        return EMBEDDINGS[: self.student.lmax + 1] if ALL in self.projections else (keys.NODE_EMBEDDING,)

    def _project_again(self) -> Tensor:
        """(N, D) the projected node embedding of a further forward of the student; without DDP, which takes one a step."""
        if ALL in self.projections:
            return unwrapped(self.projections[ALL])(all_degrees(self.student))[:, 0]
        return unwrapped(self.projections[keys.NODE_EMBEDDING])(self.student.node_embedding)

    def _project(self, name: str) -> Tensor:
        """Once for all terms, as DDP requires."""
        if ALL in self.projections and not self._projected:
            coefficients = self.projections[ALL](all_degrees(self.student))
            parts = coefficients[:, 0], coefficients[:, 1:4], coefficients[:, 4:]
            self._projected.update(zip(EMBEDDINGS[: self.student.lmax + 1], parts))
        if name not in self._projected:
            self._projected[name] = self.projections[name](self._common(getattr(self.student, name), name))
        return self._common(self._projected[name], name)

    def _common(self, embedding: Tensor, name: str) -> Tensor:
        """Of higher degrees, those that both models have."""
        if name != keys.HIGHER_EMBEDDING:
            return embedding
        return embedding[:, : min(self.student.higher_embedding.shape[1], self.teacher[name].shape[1])]

    def normalize(self, property_: str, values: Tensor, batch: Batch) -> Tensor:
        """Energies (B,) in eV or forces (N, 3) in eV/A, in the student's normalised unit."""
        return self.targets[property_].in_own_unit(values, batch)
