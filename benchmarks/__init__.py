"""What is measured, with a page each below docs/benchmarks/: `python -m benchmarks.NAME`, from the repository's root."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
