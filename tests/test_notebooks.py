"""The notebooks run from their first to their last cell, at toy size, their commands in this process."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import in_process
import matplotlib.image
import matplotlib.pyplot as plt
import pytest

from fairchem_crack.demo import prepare

ROOT = Path(__file__).parents[1]
TOY = {
    "demo_explained": {"SYSTEMS": 12, "COPIES": 1, "EPOCHS": 1, "VALIDATION": 3},
    "own_data": {"SYSTEMS": 10, "VALIDATION": 3, "COPIES": 1, "EPOCHS": 1},
    "foundation_teacher": {"SYSTEMS": 16, "VALIDATION": 3, "EPOCHS": 1},
    "screening_and_md": {"SYSTEMS": 12, "COPIES": 1, "EPOCHS": 1, "SURFACES": 2, "STEPS": 2, "PICOSECONDS": 0.02},
}
REDIRECTION = re.compile(r" (2>&1 \| fairchem-crack progress|2?> \S+)$")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """What a notebook changes of its process is undone; its directory is below `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(1))
    plt.switch_backend("agg")
    with mock.patch.dict(os.environ):
        yield
    logging.disable(logging.NOTSET)
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", TOY)
def test_every_cell_of_a_notebook_works(name, kernel):
    namespace = {"__name__": "notebook"}

    def sh(command):
        namespace.pop("dataset", None)  # which this process opens only once
        in_process.run_command(*((words := shlex.split(REDIRECTION.sub("", command)))[0], words[1:]))

    for number, cell in enumerate(cells(name)):
        exec(compile(cell, f"{name}, cell {number}", "exec"), namespace)
        if cell.startswith('# %% tags=["parameters"]'):
            assert namespace.keys() >= TOY[name].keys()
            namespace.update(TOY[name])
        if "def sh(" in cell:
            namespace["sh"] = sh
    picture = matplotlib.image.imread(f"{name}.png")
    assert picture.shape[1] > 500 and picture.std() > 0.05


def cells(name: str) -> list[str]:
    text = (ROOT / f"examples/notebooks/{name}.py").read_text(encoding="utf-8")
    return re.split(r"^(?=# %%)", text, flags=re.MULTILINE)


def test_every_notebook_is_run_and_in_the_gallery():
    assert {path.stem for path in (ROOT / "examples/notebooks").glob("*.py")} == TOY.keys()
    gallery = (ROOT / "docs/notebooks.md").read_text(encoding="utf-8")
    assert [name for name in TOY if f"notebooks/{name}.png" not in gallery or f"notebooks/{name}.py" not in gallery] == []


def test_the_second_environment_is_that_of_the_page_of_teachers():
    (commands,) = re.findall(r"#     (pip install sevenn.*)\n#     (python .*)\n", "".join(cells("foundation_teacher")))
    page = (ROOT / "docs/teachers.md").read_text(encoding="utf-8")
    assert [command for command in commands if f"    {command}\n" not in page] == []
