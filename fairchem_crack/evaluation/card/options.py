"""`fairchem-crack card`: what a checkpoint is, how it was made and how good it is, as a model card in Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(prog="fairchem-crack card", description=__doc__, allow_abbrev=False)
    own.add_argument("--checkpoint", type=Path, required=True, help="a fairchem checkpoint")
    own.add_argument(
        "--evaluation", type=Path, metavar="FILE", help="the JSON of `fairchem-crack evaluate` with this checkpoint"
    )
    own.add_argument(
        "--config-yml", type=Path, help="the YAML of its training, for its first comment, the teacher and the terms"
    )
    own.add_argument("--licence", default="mit", help="of the weights, as the Hugging Face hub names it (default: mit)")
    own.add_argument("--trust", action="store_true", help=argparse.SUPPRESS)
    own.add_argument("--output", type=Path, required=True, help="the card, for example README.md of a model's repository")
    return own
