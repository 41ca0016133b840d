"""The documentation site: its pages, what they promise, and that it builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = {f"notebooks/{path.stem}.md" for path in (ROOT / "examples/notebooks").glob("*.py")}
ELSEWHERE = {"index.md", "changelog.md", *NOTEBOOKS}  # made of README.md, CHANGELOG.md and examples/notebooks


def pages_of(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_site_has_every_page_once():
    pages = sorted(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert pages == sorted({str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | ELSEWHERE)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "make demo" in first and 'href="own-data/"' in first and 'src="demo.png"' in first
    notebook = (tmp_path / "notebooks/own_data/index.html").read_text(encoding="utf-8")
    assert "<h2" in notebook and 'src="../own_data.png"' in notebook and "tags=" not in notebook
    assert 'href="own_data/"' in (tmp_path / "notebooks/index.html").read_text(encoding="utf-8")
    assert "crack_loss" in (tmp_path / "api/index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'<(?:script|link)[^>]*(?:src|href)="(https?://[^"]+)"', first)
    assert fetched == []  # a reader without network sees the whole page


def test_troubleshooting_quotes_messages_that_exist():
    rows = re.findall(r"^\| (.*?) \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row) if " " in message]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fairchem_crack").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message of several lines is one
    assert len(quoted) > 8 and [message for message in quoted if message not in code] == []
