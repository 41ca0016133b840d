"""The site's pages that are kept elsewhere: the README, which is the first page, the CHANGELOG, and the notebooks."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
README_PATH = "../README.md"  # as a page of docs/ links to it
NOTEBOOK_PATH = re.compile(r"\]\(\.\./examples/(notebooks/\w+)\.py\)")
PICTURE = re.compile(r'savefig\("(.*?)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them to the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "changelog.md", content=changes))
    for path in sorted((ROOT / "examples/notebooks").glob("*.py")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_page(path.read_text(encoding="utf-8"))))
    return files


def as_page(notebook: str) -> str:
    """A notebook in jupytext's percent format as a page; a picture that a cell saves follows the cell."""
    parts = []
    for cell in re.split(r"^# %%", notebook, flags=re.MULTILINE)[1:]:  # before the first there is jupytext's header
        kind, _, content = cell.partition("\n")
        if kind.strip() == "[markdown]":
            parts.append(re.sub(r"^# ?", "", content.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{content.strip()}\n```")
        parts += [f"![what the cell draws]({name})" for name in PICTURE.findall(content)]
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead the links to the README and the notebooks to their pages."""
    return NOTEBOOK_PATH.sub(r"](\1.md)", markdown).replace(f"]({README_PATH}", "](index.md")
