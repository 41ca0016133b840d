"""The commands of users, run in this process, which saves their imports."""

from __future__ import annotations

import gc
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import fairchem.core._cli
import pytest
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags

from fairchem_crack.commands import cli


def run_command(program: str, arguments: Sequence[str]) -> None:
    """Run `fairchem`, `fairchem-crack`, or a module as `python -m` does; on one rank."""
    gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
    if program == "python":  # -m module
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(Path.cwd())
            patch.setattr("sys.argv", list(arguments[1:]))
            runpy.run_module(arguments[1], run_name="__main__")
        here = [name for name, module in sys.modules.items() if _directory(module) == Path.cwd()]
        for name in here:  # another test has a module of that name elsewhere
            del sys.modules[name]
        return
    try:
        if program == "fairchem":
            fairchem.core._cli.main(*flags.get_parser().parse_known_args(arguments))
        else:
            cli.main(list(arguments))
    finally:
        if distutils.initialized():
            distutils.cleanup()


def _directory(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else None
