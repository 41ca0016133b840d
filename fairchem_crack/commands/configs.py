"""`fairchem-crack configs`: the YAMLs that come with the package, which commands with `--config-yml` find by name."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

import fairchem_crack
from fairchem_crack.config import suggestion

# How a YAML names a file beside it: from a clone's root, because fairchem reads it from the current directory.
FROM_CLONE = re.compile(r"\bconfigs/(?=oc20/)")
CHECKPOINT = re.compile(r"\bconfigs/(oc20/\S+\.pt)\b")


def configs(arguments: list[str]) -> None:
    """List the YAMLs, print one, or copy them."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack configs",
        description="List the YAMLs that come with the package, print one, or copy them. `--config-yml NAME` finds them.",
        allow_abbrev=False,
    )
    own.add_argument("name", nargs="?", metavar="NAME", help="print this YAML; with --copy, copy only it and its includes")
    own.add_argument("--copy", type=Path, metavar="DIR", help="copy into DIR; no existing file is overwritten")
    options = own.parse_args(arguments)
    if options.copy is not None:
        written = copy(files() if options.name is None else parts(options.name), options.copy)
        print(f"{len(written)} files copied into {options.copy}.")
    elif options.name is not None:
        print(path_of(options.name).read_text(encoding="utf-8").rstrip("\n"))
    else:
        width = max(map(len, names()))
        print("\n".join(f"{name:{width}}  {summary(name)}" for name in names()))


def directory() -> Path:
    """Where this installation has them: in the package, or beside it in a clone."""
    package = Path(fairchem_crack.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def files() -> list[str]:
    """All files, by their path below the directory: YAMLs, and the checkpoints of the demo's teachers."""
    return sorted(path.relative_to(directory()).as_posix() for path in directory().rglob("*.*") if path.is_file())


def names() -> list[str]:
    """The YAMLs among them."""
    return [name for name in files() if name.endswith(".yml")]


def path_of(name: str) -> Path:
    """The file of a YAML.

    Raises:
        ValueError: there is no such YAML.
    """
    if name not in names():
        raise ValueError(f"{name}: no such config. {suggestion(name, names())}")
    return directory() / name


def summary(name: str) -> str:
    """The first sentence of the comment that a YAML begins with."""
    return path_of(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").split(". ")[0].removesuffix(".")


def parts(name: str) -> list[str]:
    """The YAML, what it includes, directly or not, and the shipped checkpoints that these name; each once."""
    return sorted({name, *_named_by(name)})


def _named_by(name: str) -> Iterator[str]:
    text = path_of(name).read_text(encoding="utf-8")
    yield from CHECKPOINT.findall(text)
    for include in yaml.safe_load(text).get("includes", ()):
        included = os.path.normpath(Path(name).parent / include)
        yield included
        yield from _named_by(included)


def copy(chosen: Iterable[str], destination: Path) -> list[Path]:
    """Copy files, in the same folders; the copies of YAMLs name the copies of checkpoints, by their absolute paths.

    Raises:
        FileExistsError: one of the files is there already; nothing is written.
    """
    targets = {directory() / name: destination / name for name in chosen}
    existing = [str(target) for target in targets.values() if target.exists()]
    if existing:
        raise FileExistsError(f"{', '.join(existing)}: already there. Give another directory, or remove the file.")
    for source, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".yml":
            text = FROM_CLONE.sub(lambda _: f"{destination.resolve().as_posix()}/", source.read_text(encoding="utf-8"))
            target.write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    return list(targets.values())


def locate(config_yml: Path) -> Path:
    """The file of `--config-yml`: where there is no such file, the shipped one of that name."""
    if config_yml.exists() or config_yml.as_posix() not in names():
        return config_yml
    shipped = directory() / config_yml
    print(f"{config_yml}: the YAML that comes with fairchem-crack, {shipped}", file=sys.stderr)
    return shipped


def teacher_override(config_yml: Path, config: dict[str, Any]) -> list[str]:
    """The override that finds the shipped teacher of a shipped YAML from any directory, where one is needed."""
    checkpoint = (((config.get("task") or {}).get("distill") or {}).get("teacher") or {}).get("checkpoint")
    if directory() not in config_yml.parents or not isinstance(checkpoint, str) or Path(checkpoint).exists():
        return []
    shipped = directory().parent / checkpoint
    return [f"--task.distill.teacher.checkpoint={shipped}"] if shipped.is_file() else []
