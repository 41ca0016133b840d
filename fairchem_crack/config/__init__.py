"""The `task.distill` block and the distillation terms of `loss_functions`: options, and what refuses them."""

from fairchem_crack.config.faults import Fault, nearest_of, refuse, suggestion
from fairchem_crack.config.options import (
    SMALLEST_TEMPERATURE,
    Anchor,
    DistillConfig,
    Labels,
    Negatives,
    Precision,
    ProjectionConfig,
    RelationsConfig,
    ScheduleConfig,
    ShuffleConfig,
    TagWeights,
    Targets,
    TeacherConfig,
    TermConfig,
)
from fairchem_crack.config.terms import CONTRASTIVE, TERM_OPTIONS, add_term_options, read_options, split_loss_functions
from fairchem_crack.config.validation import parse, unknown_options

__all__ = [
    "CONTRASTIVE",
    "SMALLEST_TEMPERATURE",
    "TERM_OPTIONS",
    "Anchor",
    "DistillConfig",
    "Fault",
    "Labels",
    "Negatives",
    "Precision",
    "ProjectionConfig",
    "RelationsConfig",
    "ScheduleConfig",
    "ShuffleConfig",
    "TagWeights",
    "Targets",
    "TeacherConfig",
    "TermConfig",
    "add_term_options",
    "nearest_of",
    "parse",
    "read_options",
    "refuse",
    "split_loss_functions",
    "suggestion",
    "unknown_options",
]
