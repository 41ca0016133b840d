"""The options of `task.distill` and of the distillation terms: types, bounds, defaults, and after each what it means.

docs/configuration.md is generated from this file, and `validation` reads a YAML by it.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import Field

from fairchem_crack.config.words import HIDDEN

# Smaller ones would leave the range of float64: exp(1 / temperature) is summed over all relations.
SMALLEST_TEMPERATURE = 1 / 600

Anchor = Literal["student", "teacher", "symmetric"]
Negatives = Literal["batch", "system", "world", "alike"]
Targets = Literal["own", "soft"]
Reduction = Literal["mean", "sum"]
RelationGraph = Literal["teacher", "student"]
Precision = Literal["auto", "float32", "bfloat16"]
Labels = Literal["data", "teacher", "fill"]
Count = Annotated[int, Field(ge=1)]
BlockNumbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(ge=SMALLEST_TEMPERATURE)]
Degree = Union[Literal["all"], Annotated[int, Field(ge=0)]]
DegreeWeights = tuple[Weight, ...]


@dataclass(frozen=True)
class TeacherConfig:
    """Where the frozen teacher, or its outputs for the training data, come from."""

    checkpoint: Optional[str] = None  # a fairchem checkpoint file, or a name in fairchem's registry of pretrained models
    cache: Optional[str] = None  # directory of a teacher cache; with it, the teacher is not run and not needed
    command: Optional[str] = None  # labels systems in another environment, for `generate` and `explore`: docs/teachers.md
    val_cache: Optional[str] = None  # a teacher cache of dataset.val, which then has labels as `labels` says
    local_cache: str = "pretrained_models"  # where a pretrained checkpoint is downloaded to
    use_ema: bool = True  # take the checkpoint's EMA weights when it has them
    precision: Precision = "auto"  # auto: the training's (float16 autocast with --amp); bfloat16: autocast
    trust: bool = False  # read torch files without restriction, which can run code: only for files that you trust

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.cache and not self.command:
            raise ValueError("checkpoint: missing. Give the file of a teacher, or the directory of its `cache`.")
        if self.checkpoint and self.command:
            raise ValueError("command: a second teacher beside `checkpoint`. Give one of them.")

    @property
    def cache_precision(self) -> str:
        """In which the teacher runs for a cache, where no training says it."""
        return "float32" if self.precision == "auto" else self.precision


@dataclass(frozen=True)
class RelationsConfig:
    """Which relations are formed, and what each is contrasted with."""

    graph: RelationGraph = "teacher"  # whose edges define the pairs
    negatives: Negatives = "batch"  # of the rank's batch, of its system, of all ranks, of pairs of its elements and length
    anchor: Anchor = "student"  # student: as in the published code; teacher: as in the paper's text; symmetric: mean of both
    max_pairs: Optional[Count] = None  # random subset of anchors per step; null: all; every relation stays a negative
    false_negative_threshold: Optional[Fraction] = None  # leave out negatives whose absolute cosine to the anchor exceeds it
    targets: Targets = "own"  # own: each relation's counterpart; soft: the teacher's own similarities, anchor: student

    def __post_init__(self) -> None:
        if self.targets == "soft" and (self.anchor != "student" or self.false_negative_threshold is not None):
            raise ValueError("targets: `soft` needs `anchor: student`, and no false_negative_threshold.")


@dataclass(frozen=True)
class ProjectionConfig:
    """The trainable map from the student's width D_s to the teacher's width D; dropped after training."""

    kind: Literal["linear", "mlp", "equivariant"] = "linear"  # mlp: SiLU between two layers; equivariant: of all l together


@dataclass(frozen=True)
class InitConfig:
    """Start a student of the teacher's architecture and width from the teacher's own weights."""

    blocks: BlockNumbers  # for each block of the student, the number of the teacher's block to copy, from 0


@dataclass(frozen=True)
class ShuffleConfig:
    """An epoch in blocks of neighbouring systems, for caches and datasets larger than memory; see docs/cache.md."""

    buffer: Count = 4096  # systems of a rank that are mixed; without the block `shuffle` all are, as fairchem does
    block: Count = 256  # neighbouring systems, which are read together; a divisor of `buffer`

    def __post_init__(self) -> None:
        if self.buffer % self.block:
            raise ValueError(f"buffer: {self.buffer} systems are no whole number of blocks of {self.block}.")


@dataclass(frozen=True)
class DistillConfig:
    """The whole `task.distill` block."""

    teacher: TeacherConfig
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    init_from_teacher: Optional[InitConfig] = None
    learning_rates: dict[str, Weight] = field(default_factory=dict)  # factors, by module of the student; 0: frozen
    shuffle: Optional[ShuffleConfig] = None
    labels: Labels = "data"  # of the student's own terms; teacher: its energies and forces; fill: where the data have none
    data_label_weight: Weight = 1.0  # of a label of the data in the student's own terms, with `labels: fill`
    resume: Literal["all", "student"] = "all"  # what is read from a checkpoint: student and projection, or only the student
    max_skipped_steps: Count = 10  # non-finite steps in a row that stop the run; with --amp, counted at a loss scale below 1
    imports: tuple[str, ...] = ()  # your own modules with terms, losses or adapters; imported before the options are read

    def __post_init__(self) -> None:
        if self.teacher.val_cache and self.labels == "data":
            raise ValueError("labels: teacher.val_cache gives labels; expected `teacher` or `fill`, found `data`.")
        if self.data_label_weight != 1 and self.labels != "fill":
            raise ValueError(
                "data_label_weight: weighs the labels of the data against the teacher's; expected `labels: fill`, found "
                f"`{self.labels}`."
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """How a coefficient changes during training: by a factor that goes from 1 to `final`."""

    kind: Literal["constant", "linear", "cosine", "off"] = "constant"  # off: 1 before `until`, `final` after it
    until: Fraction = 1.0  # fraction of the training after which the factor is `final`
    final: Weight = 0.0  # factor of the coefficient at the end

    def factor(self, progress: float) -> float:
        """The factor at `progress`, the fraction of the training that is over."""
        if self.kind == "constant":
            return 1.0
        if progress >= self.until:
            return self.final
        way = {"off": 0.0, "linear": progress / self.until, "cosine": (1 - math.cos(math.pi * progress / self.until)) / 2}
        return 1 + (self.final - 1) * way[self.kind]


@dataclass(frozen=True)
class TagWeights:
    """By what the loss of an atom is multiplied, by its tag in OC20's data; that of a pair by the mean of its atoms'."""

    subsurface: Weight = 1.0  # of atoms of tag 0
    surface: Weight = 1.0  # of tag 1
    adsorbate: Weight = 1.0  # of tag 2

    def __post_init__(self) -> None:
        if not any(astuple(self)):
            raise ValueError("all weights are 0; the term would have no effect. Leave the term out.")


@dataclass(frozen=True)
class TermConfig:
    """One distillation term of `loss_functions`: coefficient * fn(student's, teacher's)."""

    key: str = field(metadata=HIDDEN)  # the term's name in loss_functions
    fn: str  # `crack`, `info_nce`, or an elementwise loss of fairchem; see the table of the terms
    coefficient: Weight  # weight of the term; 0 leaves it out
    reduction: Optional[Reduction] = None  # as in fairchem; null: its default, the mean
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    every: Count = 1  # the term counts in one of so many steps, at its coefficient; for terms that cost time
    temperature: Temperature = 0.15  # of `relations` and `node_contrast`; in Lim et al. 2025, 0.05 to 0.2 made no difference
    lmax: Degree = 0  # of `relations` and `node_embeddings`: largest degree l of the embeddings; all: the teacher's
    per_degree: bool = False  # of `relations`; True: the sum of a loss for each l; False: one loss, every l of unit length
    standardize: bool = True  # of embedding terms: standardise each channel of the teacher; False: its own units
    projected: bool = True  # of `node_embeddings`, `relation_lengths`; False: the student's embedding as it is
    normalize: bool = True  # of `relation_vectors`: unit(â_i - â_j); False: a_i - a_j, which has a length
    degree_weights: Optional[DegreeWeights] = None  # of terms with `lmax`: weights of squared lengths, l = 0 to lmax
    tag_weights: TagWeights = field(default_factory=TagWeights)
    options: Any = field(default=None, metadata=HIDDEN)  # of a term of your own: the dataclass that it registered, read

    def __post_init__(self) -> None:
        if self.degree_weights is None:
            return
        if self.degree_weights and not any(self.degree_weights):
            raise ValueError("degree_weights: all weights are 0; the term would have no effect. Leave the term out.")
        if isinstance(self.lmax, int) and len(self.degree_weights) != self.lmax + 1:
            raise ValueError(
                f"degree_weights: expected {self.lmax + 1}, of the degrees l = 0 to {self.lmax}; found "
                f"{len(self.degree_weights)}."
            )
