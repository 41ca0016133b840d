"""The `task.distill` block and the distillation terms of `loss_functions`, typed and checked. Standard library only."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Optional, Union

from fairchem_crack import keys

# Smaller ones would leave the range of float64: exp(1 / temperature) is summed over all relations.
SMALLEST_TEMPERATURE = 1 / 600

Anchor = Literal["student", "teacher", "symmetric"]
Negatives = Literal["batch", "system", "world"]
Reduction = Literal["mean", "sum"]
RelationGraph = Literal["teacher", "student"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TeacherConfig:
    """Where the frozen teacher, or what it said of the training data, comes from."""

    checkpoint: Optional[str] = None  # a fairchem checkpoint file, or a name in fairchem's registry of pretrained models
    cache: Optional[str] = None  # directory of a teacher cache; with it the teacher is not run, and its file may be gone
    local_cache: str = "pretrained_models"  # where a pretrained checkpoint is downloaded to
    use_ema: bool = True  # take the checkpoint's EMA weights when it has them
    precision: Precision = "auto"  # auto: the training's, float16 autocast with --amp; bfloat16: autocast

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.cache:
            raise ValueError("checkpoint: missing. Give the file of a teacher, or the directory of its `cache`.")


@dataclass(frozen=True)
class RelationsConfig:
    """Which relations are formed, and what each is contrasted with."""

    graph: RelationGraph = "teacher"  # whose edges make the pairs
    negatives: Negatives = "batch"  # what is contrasted: relations of the rank's batch, of the system, of all ranks
    anchor: Anchor = "student"  # as in the published code; teacher: as in the paper's text; symmetric: mean of both
    max_pairs: Optional[int] = None  # anchors of a step, a random subset; null takes all; every relation stays a negative
    false_negative_threshold: Optional[float] = None  # leave out negatives whose absolute cosine to the anchor exceeds it

    def __post_init__(self) -> None:
        if self.max_pairs is not None:
            _require(self.max_pairs > 0, "max_pairs", "a positive integer or null", self.max_pairs)
        if self.false_negative_threshold is not None:
            is_cosine = 0 < self.false_negative_threshold <= 1
            _require(is_cosine, "false_negative_threshold", "in (0, 1] or null", self.false_negative_threshold)


@dataclass(frozen=True)
class ProjectionConfig:
    """The trainable map from the student's width D_s to the teacher's width D; dropped after training."""

    kind: Literal["linear", "mlp"] = "linear"  # mlp: two layers with SiLU between them


@dataclass(frozen=True)
class InitConfig:
    """Start a student of the teacher's architecture and width from the teacher's own weights."""

    blocks: tuple[int, ...]  # for each block of the student, the number of the teacher's block to copy, from 0

    def __post_init__(self) -> None:
        is_list = len(self.blocks) > 0 and all(block >= 0 for block in self.blocks)
        _require(is_list, "blocks", "numbers of teacher blocks, from 0", list(self.blocks))


@dataclass(frozen=True)
class DistillConfig:
    """The whole `task.distill` block."""

    teacher: TeacherConfig
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    init_from_teacher: Optional[InitConfig] = None
    labels: Literal["data", "teacher"] = "data"  # teacher: the student's own terms train on its energies and forces
    resume: Literal["all", "student"] = "all"  # from a checkpoint: its projection too, or its student alone
    max_skipped_steps: int = 10  # steps in a row whose gradients are not finite before the run stops

    def __post_init__(self) -> None:
        _require(self.max_skipped_steps > 0, "max_skipped_steps", "a positive integer", self.max_skipped_steps)


@dataclass(frozen=True)
class ScheduleConfig:
    """How a coefficient changes during training: by a factor that goes from 1 to `final`."""

    kind: Literal["constant", "linear", "cosine", "off"] = "constant"  # off: 1, and `final` from `until` on
    until: float = 1.0  # fraction of the training after which the factor is `final`
    final: float = 0.0  # the coefficient's factor at the end

    def __post_init__(self) -> None:
        _require(0 < self.until <= 1, "until", "in (0, 1]", self.until)
        _require(0 <= self.final < math.inf, "final", ">= 0", self.final)

    def factor(self, progress: float) -> float:
        """The factor at `progress`, the fraction of the training that is over."""
        if self.kind == "constant":
            return 1.0
        if progress >= self.until:
            return self.final
        way = {"off": 0.0, "linear": progress / self.until, "cosine": (1 - math.cos(math.pi * progress / self.until)) / 2}
        return 1 + (self.final - 1) * way[self.kind]


# Options that not every term has.
TERMS_WITH = {
    "temperature": (keys.RELATIONS, keys.NODE_CONTRAST),
    "lmax": (keys.RELATIONS,),
    "standardize": (keys.RELATIONS, keys.NODE_EMBEDDINGS, keys.VECTOR_EMBEDDINGS, keys.NODE_CONTRAST),
}
CONTRASTIVE = {keys.RELATIONS: "crack", keys.NODE_CONTRAST: "info_nce"}  # terms and the one loss they take


@dataclass(frozen=True)
class TermConfig:
    """One distillation term of `loss_functions`: coefficient * fn(student's, teacher's)."""

    key: str
    fn: str  # `crack`, `info_nce`, or an elementwise loss of fairchem; each term says what it takes
    coefficient: float  # weight of the term; 0 leaves it out
    reduction: Optional[Reduction] = None  # fairchem's; null is its default, the mean
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    temperature: float = 0.15  # of `relations`, `node_contrast`; Lim et al. 2025: 0.05 to 0.2 makes no difference
    lmax: Literal[0, 1] = 0  # of `relations`; 1: of the invariant and the l=1 embedding together
    standardize: bool = True  # of the terms of embeddings: each channel of the teacher standardised; else in its own units

    def __post_init__(self) -> None:
        is_warm = math.isfinite(self.temperature) and self.temperature >= SMALLEST_TEMPERATURE
        _require(is_warm, "temperature", f"a number of at least {SMALLEST_TEMPERATURE:.4f}", self.temperature)
        _require(self.coefficient >= 0 and math.isfinite(self.coefficient), "coefficient", ">= 0", self.coefficient)
        if CONTRASTIVE.get(self.key, self.fn) != self.fn or (
            self.fn in CONTRASTIVE.values() and self.key not in CONTRASTIVE
        ):
            expected = (
                f"`{CONTRASTIVE[self.key]}`"
                if self.key in CONTRASTIVE
                else "an elementwise loss of fairchem such as `mse`, `mae` or `l2mae`"
            )
            raise ValueError(f"fn: the term `{self.key}` cannot use `{self.fn}`; it takes {expected}.")


def split_loss_functions(loss_functions: list[dict]) -> tuple[list[dict], list[TermConfig]]:
    """Separate the student's own terms, returned as they are, from the distillation terms.

    Raises:
        ValueError: a distillation term has an unknown option or an impossible value.
    """
    own: list[dict] = []
    terms: list[TermConfig] = []
    for index, entry in enumerate(loss_functions or []):
        if not isinstance(entry, dict):
            raise ValueError(f"loss_functions[{index}]: expected a mapping of one term, found {entry!r}.")
        for key, options in entry.items():
            if key not in keys.DISTILLATION_TERMS:
                own.append({key: options})
                continue
            parsed = _parse_term(key, {} if options is None else options, f"loss_functions[{index}].{key}")
            if any(term.key == key for term in terms):
                raise ValueError(f"loss_functions[{index}].{key}: the term is given twice.")
            terms.append(parsed)
    return own, terms


def _parse_term(key: str, options: Any, path: str) -> TermConfig:
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected a mapping, found {options!r}.")
    if "key" in options:
        raise ValueError(f"{path}.key: unknown option.")
    term = parse(TermConfig, {"key": key, **options}, path)
    for name, terms in TERMS_WITH.items():
        if name in options and key not in terms:
            raise ValueError(f"{path}.{name}: `{key}` has no such option; it is one of {_listed(terms)}.")
    return term


def parse(cls: type, values: Any, path: str) -> Any:
    """Build the frozen dataclass `cls` from a YAML mapping, or fail with the dotted path of what is wrong.

    Raises:
        ValueError: unknown or missing option, wrong type or value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping with the options {_names(cls)}, found {values!r}.")
    known = {one.name: one for one in fields(cls)}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in known:
            raise ValueError(f"{path}.{name}: unknown option. {suggestion(name, list(known))}")
    for name, one in known.items():
        is_required = one.default is MISSING and one.default_factory is MISSING
        if is_required and name not in values:
            raise ValueError(f"{path}.{name}: missing. `{path}` takes the options {_names(cls)}.")
    converted = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    if is_dataclass(hint):
        return parse(hint, value, path)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (Union, getattr(types, "UnionType", Union)):  # Optional[...] is the only union in use
        if value is None:
            return None
        return _convert(next(one for one in typing.get_args(hint) if one is not type(None)), value, path)
    if origin is tuple:  # tuple[item, ...]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{path}: expected a list, found {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{path}: expected one of {listed}, found {value!r}. {suggestion(str(value), choices)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{path}: expected {hint.__name__}, found {value!r}.")
    return value


def _require(condition: bool, option: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"{option}: expected {expected}, found {found!r}.")


def _names(cls: type) -> str:
    return _listed(one.name for one in fields(cls))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.5)
    if nearest:
        return f"Did you mean `{nearest[0]}`?"
    return f"Known are {_listed(known)}."
