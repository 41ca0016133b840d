"""What a release consists of: its version, its files, and what it says of itself."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import yaml
from packaging.version import Version

import fairchem_crack

ROOT = Path(__file__).parents[1]


def test_changelog_citation_and_fallback_name_one_release():
    released = re.search(
        r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    fallback = Version(re.search(r'fallback_version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1])
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == released
    assert fallback.dev == 0 and Version(fallback.base_version) >= Version(released)


def test_the_version_is_that_of_the_installation(monkeypatch):
    assert Version(fairchem_crack.__version__) == Version(importlib.metadata.version("fairchem-crack"))

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert fairchem_crack.__version__ == "0+unknown"
