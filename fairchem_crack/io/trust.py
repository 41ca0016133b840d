"""Whether files that can run code are read: where a user says so, by a flag or in a YAML."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRUST_HELP = "also read files that can run code: only if you trust their origin"
TRUSTED = "FAIRCHEM_CRACK_TRUST"  # in the environment of a command with --trust, and so of the processes that it starts


@contextmanager
def trusting(is_given: bool) -> Iterator[None]:
    """Within it, where `is_given`, this process and those that it starts trust every file."""
    before = os.environ.get(TRUSTED)
    if is_given:
        os.environ[TRUSTED] = "1"
    try:
        yield
    finally:
        os.environ.pop(TRUSTED, None)
        os.environ.update({} if before is None else {TRUSTED: before})


def trusts_all() -> bool:
    """Whether this process trusts every file."""
    return os.environ.get(TRUSTED) == "1"


def trusts(task: Any) -> bool:
    """`task.distill.teacher.trust` of a config, which may be wrong in any way."""
    for name in ("distill", "teacher", "trust"):
        task = task.get(name) if isinstance(task, dict) else None
    return task is True
