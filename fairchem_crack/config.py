"""The `task.distill` block and the distillation terms of `loss_functions`, typed and checked. Standard library only."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Optional, Union

from fairchem_crack import keys
from fairchem_crack.shapes import SHAPES, check_loss_fits

# Smaller ones would leave the range of float64: exp(1 / temperature) is summed over all relations.
SMALLEST_TEMPERATURE = 1 / 600

Anchor = Literal["student", "teacher", "symmetric"]
Negatives = Literal["batch", "system", "world"]
Reduction = Literal["mean", "sum"]
RelationGraph = Literal["teacher", "student"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TeacherConfig:
    """Where the frozen teacher, or its outputs for the training data, come from."""

    checkpoint: Optional[str] = None  # a fairchem checkpoint file, or a name in fairchem's registry of pretrained models
    cache: Optional[str] = None  # directory of a teacher cache; with it the teacher is not run, and its file may be gone
    local_cache: str = "pretrained_models"  # where a pretrained checkpoint is downloaded to
    use_ema: bool = True  # take the checkpoint's EMA weights when it has them
    precision: Precision = "auto"  # auto: the training's, float16 autocast with --amp; bfloat16: autocast
    trust: bool = False  # read checkpoints and other files of torch even where that can run code

    def __post_init__(self) -> None:
        if not self.checkpoint and not self.cache:
            raise ValueError("checkpoint: missing. Give the file of a teacher, or the directory of its `cache`.")

    @property
    def cache_precision(self) -> str:
        """In which the teacher runs for a cache, where no training says it."""
        return "float32" if self.precision == "auto" else self.precision


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
    max_skipped_steps: int = 10  # steps in a row that are not finite before the run stops; of --amp, at a loss scale below 1
    imports: tuple[str, ...] = ()  # modules of your own, with terms, losses, adapters: imported before anything is parsed

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


NOT_IN_YAML = ("key", "options")  # fields of `TermConfig` that are no options

# Options that not every term has.
TERMS_WITH: dict[str, tuple[str, ...]] = {
    "temperature": (keys.RELATIONS, keys.NODE_CONTRAST),
    "lmax": (keys.RELATIONS,),
    "standardize": (keys.RELATIONS, keys.NODE_EMBEDDINGS, keys.VECTOR_EMBEDDINGS, keys.NODE_CONTRAST),
}
CONTRASTIVE = {keys.RELATIONS: "crack", keys.NODE_CONTRAST: "info_nce"}  # terms and the one loss they take

# Terms of one's own, by `terms.register_term`: the dataclass of a term's further options.
TERM_OPTIONS: dict[str, type] = {}


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
    options: Any = None  # of a term of one's own: its further options, as the dataclass that it registered

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
        check_loss_fits(self.fn, SHAPES.get(self.key), self.key, "fn")


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
            parsed = parse_term(key, {} if options is None else options, f"loss_functions[{index}].{key}")
            if any(term.key == key for term in terms):
                raise ValueError(f"loss_functions[{index}].{key}: the term is given twice.")
            terms.append(parsed)
    return own, terms


def parse_term(key: str, options: Any, path: str) -> TermConfig:
    """One distillation term, from its options in the YAML.

    Raises:
        ValueError: unknown or missing option, wrong type or value.
    """
    if not isinstance(options, dict):
        raise ValueError(f"{path}: expected a mapping, found {options!r}.")
    further = TERM_OPTIONS.get(key)
    own_names = [] if further is None else [option.name for option in fields(further)]
    common_names = [option.name for option in fields(TermConfig) if option.name not in NOT_IN_YAML]
    for name in options:
        if name not in (*common_names, *own_names):
            known = [known for known in common_names if key in TERMS_WITH.get(known, (key,))]
            raise ValueError(f"{path}.{name}: unknown option. {suggestion(name, [*known, *own_names])}")
    common = {name: value for name, value in options.items() if name not in own_names}
    term = parse(TermConfig, {"key": key, **common}, path)
    for name in common:
        if key not in TERMS_WITH.get(name, (key,)):
            raise ValueError(f"{path}.{name}: `{key}` has no such option; it is one of {_listed(TERMS_WITH[name])}.")
    if further is None:
        return term
    return replace(term, options=parse(further, {name: options[name] for name in own_names if name in options}, path))


def add_term_options(key: str, options: type) -> None:
    """Let a term of one's own have further options: the fields of a frozen dataclass, of the types that ours have.

    Raises:
        ValueError: not such a class, or it has an option that every term has.
    """
    if not (is_dataclass(options) and options.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ValueError(f"The options of the term `{key}`: expected a frozen dataclass, found {options!r}.")
    taken = {option.name for option in fields(TermConfig)} - TERMS_WITH.keys()
    for name, hint in typing.get_type_hints(options).items():
        if name in taken:
            raise ValueError(f"The options of the term `{key}`: `{name}` is the name of one that every term has.")
        if not _is_convertible(hint):
            raise ValueError(
                f"The options of the term `{key}`: `{name}` is a {hint}; expected bool, int, float, str, a Literal, an "
                "Optional, a tuple[..., ...] or a frozen dataclass of these."
            )
    TERM_OPTIONS[key] = options


def _is_convertible(hint: Any) -> bool:
    if is_dataclass(hint):
        return all(map(_is_convertible, typing.get_type_hints(hint).values()))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, getattr(types, "UnionType", Union)):
        return (
            len(inner) == 2 and type(None) in inner and all(_is_convertible(one) for one in inner if one is not type(None))
        )
    if origin is tuple:
        return len(inner) == 2 and inner[1] is ... and _is_convertible(inner[0])
    return origin is Literal or hint in (bool, int, float, str)


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
    converted = {name: convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from None


def unknown_options(cls: type, values: Any, path: str) -> list[str]:
    """The message of `parse` for every option that the dataclass `cls`, or one inside of it, does not have."""
    if not isinstance(values, dict):
        return []
    hints, messages = typing.get_type_hints(cls), []
    for name, value in values.items():
        if name not in hints:
            messages.append(f"{path}.{name}: unknown option. {suggestion(name, hints)}")
            continue
        inner = [hint for hint in (hints[name], *typing.get_args(hints[name])) if is_dataclass(hint)]
        messages += [message for hint in inner for message in unknown_options(hint, value, f"{path}.{name}")]  # type: ignore[arg-type]
    return messages


def convert(hint: Any, value: Any, path: str) -> Any:
    """A value of a YAML as the type that a field of a dataclass has.

    Raises:
        ValueError: it is of another type, or none of the choices.
    """
    if is_dataclass(hint):
        return parse(hint, value, path)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (Union, getattr(types, "UnionType", Union)):  # Optional[...] is the only union in use
        if value is None:
            return None
        return convert(next(one for one in typing.get_args(hint) if one is not type(None)), value, path)
    if origin is tuple:  # tuple[item, ...]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{path}: expected a list, found {value!r}.")
        return tuple(convert(typing.get_args(hint)[0], item, f"{path}[{index}]") for index, item in enumerate(value))
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
    hidden = NOT_IN_YAML if cls is TermConfig else ()
    return _listed(option.name for option in fields(cls) if option.name not in hidden)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, or all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.5)
    if nearest:
        return f"Did you mean `{nearest[0]}`?"
    return f"Known are {_listed(known)}."
