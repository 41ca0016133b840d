"""Numbers that are 0 to a float32 result, and slow to compute with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from unittest.mock import MagicMock

import pytest
import torch

from fairchem_crack.commands import cli
from fairchem_crack.commands.cache_teacher import job as cache_teacher
from fairchem_crack.evaluation.s2ef import runs
from fairchem_crack.explore import exploration
from fairchem_crack.generate import making
from fairchem_crack.io.denormals import without_denormals

SEEN: list[bool] = []


def are_flushed() -> bool:
    return float(torch.tensor(1e-40) * 1) == 0


def command(_: list[str]) -> None:
    SEEN.append(are_flushed())


@pytest.fixture(params=[False, True])
def before(request) -> Iterator[bool]:
    were_flushed = are_flushed()
    torch.set_flush_denormal(request.param)
    SEEN.clear()
    yield request.param
    torch.set_flush_denormal(were_flushed)


def test_numpy_does_not_warn_of_them():
    code = """
import numpy
from fairchem_crack.io.denormals import without_denormals
with without_denormals():
    print(*map(numpy.finfo, (numpy.float16, numpy.float32, numpy.float64)))
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "smallest_subnormal = 4.94065" in done.stdout, done.stderr[-1000:]


def test_a_context_takes_its_setting_back(before):
    with pytest.raises(RuntimeError), without_denormals():
        assert are_flushed()
        raise RuntimeError
    assert are_flushed() is before


def test_commands_that_run_models_flush_them(before, monkeypatch):
    for name, are_now in (("progress", before), ("explore", True)):
        monkeypatch.setitem(cli.COMMANDS, name, (f"{__name__}:command", ""))
        cli.main([name, "--cpu"])
        assert SEEN.pop() is are_now and are_flushed() is before


@pytest.mark.parametrize(
    ("module", "name", "first"),
    [
        (cache_teacher, "_rank", "load_plugins"),
        (exploration, "_share", "load_plugins"),
        (making, "_in_process", "load_plugins"),
        (runs, "measure", "TeacherCaches"),
    ],
)
def test_their_processes_flush_them(before, monkeypatch, module, name, first):
    def look(*_, **__):
        SEEN.append(are_flushed())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, first, look)
    in_process = getattr(module, name)
    with pytest.raises(KeyboardInterrupt):
        in_process(*(MagicMock() for _ in signature(in_process).parameters))
    assert SEEN.pop() and are_flushed() is before
