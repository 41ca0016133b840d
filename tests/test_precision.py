"""The precision in which a teacher runs, whatever the training's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import build

from fairchem_crack.teacher import Teacher


def teacher(name: str, precision: str) -> Teacher:
    return Teacher(name, build(name), Path("toy.pt"), precision=precision)


@pytest.mark.parametrize("name", ["equiformer_v2", "escn"])
def test_bfloat16_is_close_to_float32(batch, name):
    exact, rough = (teacher(name, precision)(batch).node_embedding for precision in ("float32", "bfloat16"))
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert (rough - exact).norm() < 5e-2 * exact.norm()


@pytest.mark.parametrize("name", ["equiformer_v2", "escn"])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_only_auto_follows_the_trainings_precision(batch, name, precision):
    asked = teacher(name, precision)
    exact = asked(batch).node_embedding
    with torch.autocast("cpu", torch.bfloat16):
        within = asked(batch).node_embedding
    assert torch.equal(within, exact) is (precision == "float32")
