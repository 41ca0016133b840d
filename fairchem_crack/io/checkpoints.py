"""Checkpoints, and any other file that torch wrote. Such a file is a pickle, which can run code when it is read.

Here it can not: everything is read with torch's `weights_only`, and what needs more than tensors, plain values and `SAFE`
is refused, unless the user trusts the file.
"""

from __future__ import annotations

import _codecs
import copy
import functools
import logging
import os
import pathlib
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from fairchem_crack.io.foreign_names import foreign_name
from fairchem_crack.io.trust import trusts_all

FORCED, UNRESTRICTED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # in the environment, for torch
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # what files of torch begin with, today's and those of before 1.6
ADVICE = (
    "Only if you trust where it comes from, give --trust (for the files of a training, task.distill.teacher.trust: True)."
)

_ONE_THREAD = threading.RLock()  # what is allowed is set for the whole process


class UntrustedError(ValueError):
    """A file that can run code when it is read, and has not been."""


def _named(function: Callable, module: str) -> Callable:
    """A function of numpy as one of this module, after which a file of numpy 1 or 2 names it."""

    @functools.wraps(function)
    def renamed(*arguments: Any) -> Any:
        return function(*arguments)

    renamed.__module__ = module
    return renamed


_OF_NUMPY: Any = (np.float64(0), np.zeros(0))  # restored by `scalar` and `_reconstruct`, which numpy 1 and 2 keep elsewhere
# Beyond what torch allows by itself. Each makes a value; none calls anything, or opens a file.
SAFE: list[Any] = [
    # numbers and arrays of numpy: `val_metrics` and `best_val_metric` of fairchem's evaluators, settings in a config
    *(_named(value.__reduce__()[0], f"numpy.{core}.multiarray") for value in _OF_NUMPY for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},  # numbers; none of objects
    _codecs.encode,  # the bytes of numpy's numbers, in the pickles that torch writes
    pathlib.PosixPath,  # paths in the config of a training that Python code has started
]


def read_checkpoint(path: Path, *, trust: bool = False) -> dict:
    """The content of a fairchem checkpoint, on the CPU; large tensors stay on disk until they are used.

    Args:
        trust: read it even if that can run code.

    Raises:
        UntrustedError: reading it can run code.
        ValueError: truncated, corrupt, or not a fairchem checkpoint.
    """
    try:
        checkpoint = read(path, trust=trust, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except UntrustedError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            f"It has {path.stat().st_size} bytes: was its download or copy cut short?"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config"} <= checkpoint.keys():
        content = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{path} is not a fairchem checkpoint: expected `state_dict` and `config`, found {content}.")
    if not (trust or trusts_all()):
        _refuse_names(checkpoint, path)
    return checkpoint


def model_config(checkpoint: dict, path: Path) -> tuple[str, dict[str, Any]]:
    """Registered name and arguments of the model, from a checkpoint's config in today's or the published OC20 format."""
    config = copy.deepcopy(checkpoint["config"])
    try:
        attributes = dict(config["model"]) if isinstance(config["model"], dict) else dict(config["model_attributes"])
        name = attributes.pop("name") if isinstance(config["model"], dict) else config["model"]
    except KeyError as error:
        raise ValueError(f"{path}: its config has no {error}, so the model cannot be built.") from error
    for part in (attributes, attributes.get("backbone")):  # the second, of a hydra
        if part is not None:
            part["otf_graph"] = True  # as OCPCalculator does: a student's data need not hold the teacher's edges
    return name, attributes


def read(path: Path, *, trust: bool = False, **options: Any) -> Any:
    """`torch.load` of a file; without `trust`, reading it runs no code.

    Args:
        options: of `torch.load`.

    Raises:
        UntrustedError: reading it can run code.
        Exception: it is damaged; torch's own, of any kind.
    """
    needs = _archive(path)
    if needs is None:
        try:
            with _safe_globals():
                return torch.load(path, **options, weights_only=True)
        except pickle.UnpicklingError as error:
            reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
            needs = _needed(reason)
            if needs is None or not _begins_with(path, ZIP, PICKLE):
                raise ValueError(reason) from error  # it is damaged
    if os.environ.get(FORCED, "0").lower() in ("1", "y", "yes", "true"):
        advice = f"{FORCED} is set in the environment, which forbids that: unset it. {ADVICE}"
    elif trust or trusts_all():
        logging.warning(f"{path} needs {needs}; it is trusted, and read as a pickle that can run code.")
        return torch.load(path, **options, weights_only=False)
    else:
        advice = ADVICE
    raise UntrustedError(
        f"{path} was not read: it needs {needs}, and a file with more than tensors and plain values can run any code when "
        f"it is read. {advice}"
    )


@contextmanager
def reading_safely(*configs: Any, trust: bool = False) -> Iterator[None]:
    """Context in which fairchem, which only has a path and no way to say how to read it, reads files as `read` does.

    Args:
        configs: those that fairchem is given; whatever file they name is tried first, since torch's own errors name none.
        trust: let it read them as it likes.

    Raises:
        UntrustedError: reading a file can run code.
    """
    if trust or trusts_all():
        yield
        return
    for path in _files_in(configs):
        _refuse_untrusted(path)
    with _safe_globals():
        before = {name: os.environ.pop(name) for name in (FORCED, UNRESTRICTED) if name in os.environ}
        os.environ[FORCED] = "1"
        try:
            yield
        except pickle.UnpicklingError as error:
            raise UntrustedError(f"{error}\n{ADVICE}") from error
        finally:
            del os.environ[FORCED]
            os.environ.update(before)


def _files_in(config: Any) -> Iterator[Path]:
    """The files that a config names, wherever."""
    if isinstance(config, (dict, list, tuple)):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _files_in(value)
    elif isinstance(config, (str, os.PathLike)) and os.path.isfile(config):
        yield Path(config)


def _refuse_untrusted(path: Path) -> None:
    try:
        read_checkpoint(path)
    except UntrustedError:
        raise
    except ValueError:
        logging.debug("", exc_info=True)  # damaged, or no checkpoint: whoever needs it says so


def _refuse_names(checkpoint: dict, path: Path) -> None:
    """Raise UntrustedError where fairchem would call, or read, what the content of a checkpoint names."""
    if name := foreign_name(checkpoint["config"]):
        raise UntrustedError(
            f"{path} was not taken: its config names `{name}`, which fairchem would import and call. It is no model, "
            f"dataset or trainer of fairchem, nor of a module that is imported (--import, task.distill.imports). {ADVICE}"
        )
    if isinstance(checkpoint.get("scale_dict"), (str, os.PathLike)):
        raise UntrustedError(f"{path} was not taken: its `scale_dict` names a file, and holds no scale factors. {ADVICE}")


@contextmanager
def _safe_globals() -> Iterator[None]:
    with _ONE_THREAD:
        before = list(torch.serialization.get_safe_globals())
        torch.serialization.add_safe_globals(SAFE)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _archive(path: Path) -> Optional[str]:
    """What a file needs that torch 2.4 reads unrestricted even with `weights_only`; None for any other."""
    if _begins_with(path, ZIP):
        reader: Any = torch._C.PyTorchFileReader(str(path))  # as torch.load sees it; other readers may see other entries
        if "constants.pkl" in reader.get_all_records():
            return "TorchScript"
    return "a tar archive" if tarfile.is_tarfile(path) else None


def _begins_with(path: Path, *beginnings: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)).startswith(beginnings)


def _needed(reason: str) -> Optional[str]:
    """What a file needs beyond what is allowed, of torch's message; None where the message is about something else."""
    if name := re.search(r"GLOBAL (\S+)", reason):
        return f"`{name[1]}`"
    if re.search("unsupported class|unrecognized function|Can only", reason):
        return f"a class that is not allowed ({reason})"
    return f"another kind of pickle, unless it is damaged ({reason})" if "Unsupported operand" in reason else None
