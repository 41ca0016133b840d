"""docs/configuration.md is what the dataclasses say."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))

import make_configuration_page


def test_the_page_is_that_of_the_dataclasses():
    expected = make_configuration_page.page()
    assert make_configuration_page.PAGE.read_text(encoding="utf-8") == expected, (
        "run python tests/tools/make_configuration_page.py"
    )


def test_every_option_is_explained():
    for path, cls in make_configuration_page.SECTIONS.items():
        for name, _, _, meaning in make_configuration_page.options(cls, path):
            assert meaning, name
