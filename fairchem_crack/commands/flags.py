"""What a command with fairchem's flags is given: flags, the YAML, overrides of it; and whatever of these is misspelt."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairchem_crack.commands.configs import locate, teacher_override
from fairchem_crack.config import Fault, refuse, suggestion
from fairchem_crack.io.trust import TRUST_HELP
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.training.spelling import BLOCKS, SETTINGS, misspelt_names, nearest

OVERRIDE = re.compile(r"--([\w.\-]+)=([^=]*)", re.DOTALL)
NOT_PYTHON = {"true": "True", "false": "False", "null": "None"}  # fairchem takes them as text, which counts as true


@dataclass(frozen=True)
class Given:
    """The arguments of a command.

    Attributes:
        flags: fairchem's, and the command's own.
        overrides: of the YAML, those that can be understood.
        config: the YAML with the overrides, as fairchem's `build_config` makes it.
        problems: what is misspelt.
        warnings: what may be.
    """

    flags: argparse.Namespace
    overrides: list[str]
    config: dict[str, Any]
    problems: list[Fault]
    warnings: list[Fault]


def parser_of(command: str, description: str | None = None) -> argparse.ArgumentParser:
    """A parser of fairchem's flags and --trust, for a command to add its own; without argparse's abbreviations."""
    parser = argparse.ArgumentParser(
        prog=f"fairchem-crack {command}",
        description=description,
        parents=[_fairchem_parser()],
        add_help=False,  # fairchem's parser has it
        allow_abbrev=False,
        usage=f"fairchem-crack {command} --config-yml FILE [flags] [--block.option=value ...]",
    )
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return parser


def _fairchem_parser() -> argparse.ArgumentParser:
    """fairchem's own, read from its file: `--help` need not wait the seconds that importing fairchem takes."""
    package = importlib.util.find_spec("fairchem.core")
    assert package is not None and package.origin is not None  # `check_installed` has seen it
    file = Path(package.origin).parent / "common/flags.py"
    spec = importlib.util.spec_from_file_location("fairchem_flags", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.flags.get_parser()


def read(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Given:
    """Parse the arguments, read the YAML and import the plugins that it names.

    Raises:
        ValueError: the YAML cannot be read, or a plugin cannot be imported.
        FileNotFoundError: there is no such YAML.
    """
    options, rest = parser.parse_known_args(["--mode", "train", *arguments])
    from fairchem.core.common.utils import build_config, create_dict_from_args, merge_dicts

    options.config_yml = locate(options.config_yml)
    try:
        without_overrides = build_config(options, [])
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"--config-yml {options.config_yml}: cannot be read as a config of fairchem: {error}") from error
    known_flags = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    rest = [*teacher_override(options.config_yml, without_overrides), *rest]
    rest += ["--task.distill.teacher.trust=True"] if options.trust else []
    overrides, problems, warnings = examine_overrides(rest, without_overrides, known_flags)
    try:
        config, _ = merge_dicts(without_overrides, create_dict_from_args(overrides))
    except TypeError as error:
        raise ValueError(f"{' '.join(overrides)}: one of these overrides goes into the value of another.") from error
    of_names = misspelt_names(config)
    load_plugins(imports_of(config.get("task")))
    return Given(options, overrides, config, problems + of_names[0], warnings + of_names[1])


def read_or_refuse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> Given:
    """`read`, where a misspelling ends the command: ValueError. What may be one is logged as a warning."""
    given = read(parser, arguments)
    refuse(given.problems)
    for warning in given.warnings:
        logging.warning(warning)
    return given


def examine_overrides(
    arguments: Iterable[str], config: dict[str, Any], known_flags: Sequence[str]
) -> tuple[list[str], list[Fault], list[Fault]]:
    """Tell overrides of the YAML from what is no flag either.

    Args:
        arguments: those that are no known flag.
        config: the YAML without them.
        known_flags: with their dashes.

    Returns:
        The overrides that can be applied, the problems of the others, and warnings.
    """
    overrides: list[str] = []
    problems: list[Fault] = []
    warnings: list[Fault] = []
    for argument in arguments:
        path = argument.removeprefix("--").partition("=")[0].split(".")
        fault = _fault_of(argument, path, config, known_flags)
        if fault is not None:
            problems.append(fault)
        else:
            overrides.append(argument)
            warnings += _new_beside_a_like_name(path, config)
    return overrides, problems, warnings


def _fault_of(argument: str, path: list[str], config: dict[str, Any], known_flags: Sequence[str]) -> Fault | None:
    """What is wrong with an argument as an override of the YAML."""
    name, matched = ".".join(path), OVERRIDE.fullmatch(argument)
    if not argument.startswith("--"):
        return Fault(argument, "expected a flag, or an override of the YAML, --block.option=value.")
    if path[0] not in (*BLOCKS, *SETTINGS, *config):
        choices = [*(known_flags if len(path) == 1 else ()), *(f"--{block}" for block in BLOCKS)]
        near = suggestion(f"--{path[0]}", choices)
        return Fault(f"--{name}", f"neither a flag nor an option of a block that fairchem reads. {near}")
    if "=" not in argument:
        return Fault(argument, f"expected --{name}=value, with `=` and no space.")
    if matched is None:
        return Fault(argument, "fairchem takes no override whose value holds `=`; write it into the YAML.")
    if matched[2] in NOT_PYTHON:
        return Fault(argument, f"fairchem reads the value as Python; give --{name}={NOT_PYTHON[matched[2]]}.")
    parent = _no_mapping(path, config)
    if parent is not None:
        return Fault(argument, f"`{parent}` of the YAML is no mapping, and would be replaced. Edit the YAML.")
    return None


def _no_mapping(path: Sequence[str], config: dict[str, Any]) -> str | None:
    """The part of a dotted path that is a list or a value in the config, though the path leads further."""
    block: Any = config
    for depth, name in enumerate(path[:-1]):
        block = block.get(name)
        if block is None:
            return None
        if not isinstance(block, dict):
            return ".".join(path[: depth + 1])
    return None


def _new_beside_a_like_name(path: Sequence[str], config: dict[str, Any]) -> list[Fault]:
    """A warning for an override that the YAML has not, where it has one of nearly the same name."""
    block: Any = config
    for depth, name in enumerate(path):
        if not isinstance(block, dict) or not block:
            return []
        if name not in block:
            near = nearest(name, block) if depth else None
            here = ".".join(path[:depth])
            sentence = f"the YAML has no `{here}.{name}`. Did you mean `{here}.{near}`?"
            return [Fault(f"--{'.'.join(path)}", sentence)] if near else []
        block = block[name]
    return []
