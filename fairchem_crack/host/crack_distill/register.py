"""Imported by fairchem's `setup_imports`: makes `trainer: crack_distill` and `fn: crack` known to the stock command."""

import fairchem_crack.training.trainer  # noqa: F401
