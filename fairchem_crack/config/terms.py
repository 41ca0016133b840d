"""The distillation terms of `loss_functions`, and all that a YAML says of distillation: read together, refused together."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Optional

from pydantic import PydanticUserError, TypeAdapter

from fairchem_crack import keys
from fairchem_crack.config.faults import Fault, listed, refuse, suggestion
from fairchem_crack.config.options import DistillConfig, TermConfig
from fairchem_crack.config.validation import UNKNOWN, read
from fairchem_crack.config.words import options_of
from fairchem_crack.shapes import SHAPES, loss_misfit

# Options that not every term has.
TERMS_WITH: dict[str, tuple[str, ...]] = {
    "temperature": (keys.RELATIONS, keys.NODE_CONTRAST),
    "lmax": (keys.RELATIONS, keys.NODE_EMBEDDINGS),
    "per_degree": (keys.RELATIONS,),
    "projected": (keys.NODE_EMBEDDINGS, keys.RELATION_LENGTHS),
    "standardize": (
        *keys.OF_PAIRS,
        keys.NODE_EMBEDDINGS,
        keys.VECTOR_EMBEDDINGS,
        keys.SYSTEM_EMBEDDING,
        keys.NODE_CONTRAST,
        keys.EMBEDDING_RESPONSE,
    ),
    "normalize": (keys.RELATION_VECTORS,),
    "degree_weights": (keys.RELATIONS, keys.NODE_EMBEDDINGS),
    "tag_weights": (
        *keys.OF_PAIRS,
        keys.NODE_EMBEDDINGS,
        keys.VECTOR_EMBEDDINGS,
        keys.NODE_CONTRAST,
        keys.EMBEDDING_RESPONSE,
        keys.ATOM_ENERGIES,
    ),
}
CONTRASTIVE = {keys.RELATIONS: "crack", keys.NODE_CONTRAST: "info_nce"}  # terms, and the only loss of each

# Terms of your own, by `terms.register_term`: the dataclass of a term's further options.
TERM_OPTIONS: dict[str, type] = {}


@dataclass
class Options:
    """What a YAML says of distillation.

    Attributes:
        own_losses: the student's own terms of `loss_functions`, as they are.
        terms: its distillation terms, without those that have a fault.
        distill: the `task.distill` of a training that distils or takes labels of the teacher; None with a fault in it.
        faults: of all of these.
    """

    own_losses: list[dict] = field(default_factory=list)
    terms: list[TermConfig] = field(default_factory=list)
    distill: Optional[DistillConfig] = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_distilling(self) -> bool:
        """Whether a distillation term has a coefficient above 0; one with a fault may have."""
        has_faulty_term = any("." in fault.path for fault in self.faults)
        return has_faulty_term or any(term.coefficient > 0 for term in self.terms)


def read_options(task: dict, loss_functions: Any) -> Options:
    """`task.distill` and the distillation terms, with every fault of both."""
    options = read_loss_functions(loss_functions)
    block = task.get("distill")
    takes_labels = isinstance(block, dict) and block.get("labels", "data") != "data"
    entries = loss_functions if isinstance(loss_functions, (list, tuple)) else []
    given = {key for entry in entries if isinstance(entry, dict) for key in entry}
    if given and given <= {*keys.DISTILLATION_TERMS}:
        sentence = "has only distillation terms; the student needs its own too, for example `energy`."
        options.faults.append(Fault("loss_functions", sentence))
    if not options.is_distilling and not takes_labels:
        return options
    if block is None:
        nearest = difflib.get_close_matches("distill", [str(name) for name in task if name != "distill"], n=1)
        advice = f"task has `{nearest[0]}`" if nearest else "expected at least `task.distill.teacher.checkpoint`"
        options.faults.append(Fault("task.distill", f"missing, but loss_functions has distillation terms; {advice}."))
    else:
        options.distill, faults = read(DistillConfig, block, "task.distill")
        options.faults += faults
    return options


def split_loss_functions(loss_functions: Any) -> tuple[list[dict], list[TermConfig]]:
    """Separate the student's own terms, returned as they are, from the distillation terms.

    Raises:
        ValueError: with every fault of the distillation terms, one a line.
    """
    options = read_loss_functions(loss_functions)
    refuse(options.faults)
    return options.own_losses, options.terms


def read_loss_functions(loss_functions: Any) -> Options:
    """The terms of `loss_functions`, and the faults of its distillation terms."""
    options, places = Options(), dict[str, str]()
    if not isinstance(loss_functions, (list, tuple, type(None))):
        sentence = f"expected a list with a mapping for each term, found {loss_functions!r}."
        options.faults.append(Fault("loss_functions", sentence))
        return options
    for index, entry in enumerate(loss_functions or []):
        path = f"loss_functions[{index}]"
        if not isinstance(entry, dict):
            options.faults.append(Fault(path, f"expected a mapping of one term, found {entry!r}."))
            continue
        for key, values in entry.items():
            if key not in keys.DISTILLATION_TERMS:
                options.own_losses.append({key: values})
                continue
            term, faults = read_term(key, values, f"{path}.{key}")
            if key in places:
                faults.insert(0, Fault(f"{path}.{key}", f"the term is given twice, in {places[key]} too. Keep one of them."))
            places.setdefault(key, path)
            options.faults += faults
            options.terms += [term] if term is not None and not faults else []
    return options


def read_term(key: str, values: Any, path: str) -> tuple[Optional[TermConfig], list[Fault]]:
    """A distillation term from its options in the YAML, and their faults; without a term where it has one."""
    further = TERM_OPTIONS.get(key)
    of_itself = [] if further is None else options_of(further)
    of_all = [name for name in options_of(TermConfig) if key in TERMS_WITH.get(name, (key,))]
    values = {} if values is None else values
    if not isinstance(values, dict):
        return None, [Fault(path, f"expected a mapping with the options {listed([*of_all, *of_itself])}, found {values!r}.")]
    faults: list[Fault] = []
    for name in (name for name in values if name not in (*of_all, *of_itself)):
        if name in TERMS_WITH:
            sentence = f"`{key}` has no such option; it is one of {listed(TERMS_WITH[name])}."
        else:
            sentence = f"{UNKNOWN} {suggestion(name, [*of_all, *of_itself])}"
        faults.append(Fault(f"{path}.{name}", sentence))
    common = {name: value for name, value in values.items() if name in of_all and name not in of_itself}
    term, of_common = read(TermConfig, {"key": key, **common}, path)
    faults += [*of_common, *_of_fn(key, values.get("fn"), f"{path}.fn")]
    if further is not None:
        options, of_options = read(further, {name: value for name, value in values.items() if name in of_itself}, path)
        faults += of_options
        term = None if term is None else replace(term, options=options)
    return (None if faults else term), sorted(faults)


def _of_fn(key: str, fn: Any, path: str) -> Iterator[Fault]:
    """A loss that cannot compare what the term compares."""
    if not isinstance(fn, str):
        return
    if CONTRASTIVE.get(key, fn) != fn or (fn in CONTRASTIVE.values() and key not in CONTRASTIVE):
        elementwise = "an elementwise loss of fairchem such as `mse`, `mae` or `l2mae`"
        expected = f"`{CONTRASTIVE[key]}`" if key in CONTRASTIVE else elementwise
        yield Fault(path, f"the term `{key}` cannot use `{fn}`; it takes {expected}.")
    elif misfit := loss_misfit(fn, SHAPES.get(key), key):
        yield Fault(path, misfit)


def add_term_options(key: str, options: type) -> None:
    """Let a term of your own have further options: the fields of a frozen dataclass, of types that pydantic reads.

    Raises:
        ValueError: not such a class, or it has an option that every term has.
    """
    if not (is_dataclass(options) and options.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ValueError(f"The options of the term `{key}`: expected a frozen dataclass, found {options!r}.")
    taken = {option.name for option in fields(TermConfig)} - TERMS_WITH.keys()
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        if name in taken:
            raise ValueError(f"The options of the term `{key}`: `{name}` is the name of one that every term has.")
        try:
            TypeAdapter(hint)
        except PydanticUserError as error:
            raise ValueError(
                f"The options of the term `{key}`: `{name}` is a {hint}; expected bool, int, float, str, a Literal, an "
                "Optional, a tuple[..., ...], a frozen dataclass of these, or another type that pydantic reads."
            ) from error
    TERM_OPTIONS[key] = options
