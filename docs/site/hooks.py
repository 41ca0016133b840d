"""The site's pages that are kept elsewhere in the repository: its README is the first page, and its CHANGELOG is one."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
README_PATH = "../README.md"  # as a page of docs/ links to it


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add both to the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead the links to the README to the first page."""
    return markdown.replace(f"]({README_PATH}", "](index.md")
