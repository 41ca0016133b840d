"""The projections in a training: their optimizer, the scale of the embeddings, and what a checkpoint keeps of them."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from fairchem_crack import keys
from fairchem_crack.adapters import Features
from fairchem_crack.teacher.channels import ChannelStatistics, channel_statistics
from fairchem_crack.teacher.frozen import TeacherOutputs
from fairchem_crack.training.projection import Projections
from fairchem_crack.training.projection_state import FORMAT, upgraded

RESUME_STUDENT = "To resume its student with a new projection, set task.distill.resume: student."


class ProjectionTraining:
    """Trains the projections with an optimizer of the student's kind and options, at the student's learning rate.

    Attributes:
        projections: the modules.
        optimizer: torch's, apart from the student's, whose checkpoints stay fairchem's own; None where nothing is projected.
    """

    def __init__(self, projections: Projections, student: torch.optim.Optimizer) -> None:
        """Make an optimizer like the student's."""
        self.projections = projections
        self._statistics: ChannelStatistics | None = None
        # some defaults are no arguments of the constructor: `decoupled_weight_decay` of AdamW since torch 2.7
        accepted = inspect.signature(type(student)).parameters
        options = {name: value for name, value in student.defaults.items() if name in accepted}
        # fairchem gives it to the last group; its other options may be a scheduler's already, as OneCycleLR's betas
        options.update({name: value for name, value in student.param_groups[-1].items() if name == "weight_decay"})
        parameters = projections.parameters()
        self.optimizer = type(student)(parameters, **options) if parameters else None

    @property
    def statistics(self) -> ChannelStatistics:
        """Statistics of the teacher's channels, from `measure` or a checkpoint."""
        if self._statistics is None:
            raise RuntimeError("The preflight has to measure the teacher's channels before the first step.")
        return self._statistics

    def measure(self, teacher: TeacherOutputs, student: Features) -> None:
        """Take the scales of both models' embeddings, before the first step, from a sample that both have just run on."""
        self._statistics = channel_statistics(teacher)
        self.projections.observe(student)

    def update(self, lr: float, *, max_norm: float | None) -> None:
        """Update from the gradients of the last backward pass, which are finite and of the unscaled loss.

        Args:
            lr: the student's learning rate of this step.
            max_norm: clip the gradient's norm, by itself, so that the student's clipping is what it is without us.
        """
        if self.optimizer is None:
            return
        if max_norm:
            torch.nn.utils.clip_grad_norm_(self.projections.parameters(), max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop_gradients(self) -> None:
        """Drop the gradients of a step that is skipped."""
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            keys.STATE_FORMAT: FORMAT,
            **self.projections.state_dict(),
            keys.PROJECTION_OPTIMIZER: {} if self.optimizer is None else self.optimizer.state_dict(),
            keys.CHANNEL_STATISTICS: self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Resume after `measure`, whose statistics convert a state of a former format.

        Raises:
            ValueError: the state belongs to other projections, or to a later version.
        """
        state = upgraded(state, self.statistics)
        try:
            self.projections.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"The checkpoint to resume has another task.distill.projection, or other terms: {error}. {RESUME_STUDENT}"
            ) from error
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state[keys.PROJECTION_OPTIMIZER])
        kept = {**self.statistics.state_dict(), **state[keys.CHANNEL_STATISTICS]}
        self._statistics = ChannelStatistics.from_state(kept, device)
