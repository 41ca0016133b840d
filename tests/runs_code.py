"""An object whose pickle runs code, for tests of what reads files."""

from __future__ import annotations

import os


class Runs:
    """Its pickle is a command of the shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)
