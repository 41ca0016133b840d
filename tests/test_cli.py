"""The command line before any command runs."""

from __future__ import annotations

import json
import subprocess
import sys

from fairchem_crack.commands.cli import COMMANDS

HELP = """
import contextlib, json, sys
from fairchem_crack.commands.cli import main
for name in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
print(json.dumps([name for name in ("torch", "fairchem.core", "ase", "numba", "matplotlib") if name in sys.modules]))
"""


def test_help_is_shown_without_importing_models():
    done = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: fairchem-crack") == len(COMMANDS)
    assert json.loads(done.stdout.splitlines()[-1]) == []
