"""Processes end with the one that started them, and hand back values and errors. Imports little: so do they."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairchem_crack.io.processes import values_from

POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from fairchem_crack.io.processes import end_with_parent

def pid(_):
    return os.getpid()


if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent)
    print(*pool.map(pid, range(2)), flush=True)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_pool_ends_with_its_killed_parent(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "pool.py")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers and all(map(is_running, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(map(is_running, workers)):
        time.sleep(0.05)


def halve(number: int, put) -> None:
    if number % 2:
        raise ValueError(f"{number} is odd")
    put(number // 2)


def test_processes_hand_back_values_and_errors():
    assert sorted(values_from(halve, [(2,), (4,)])) == [1, 2]
    with pytest.raises(ValueError, match="3 is odd"):
        list(values_from(halve, [(3,)]))
