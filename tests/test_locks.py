"""A lock keeps a second writer away, by name, for as long as its process lives."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from fairchem_crack.io.locks import LockedError, exclusive

HOLD = """
import os, pathlib, sys, time
from fairchem_crack.io.locks import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork():  # the parent ends, the child lives on
        os.write(1, f"{os.getpid()}\\n".encode())  # at once: the child writes, too
        os.kill(os.getpid(), 9)
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
"""


@contextmanager
def holder(file: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == f"{process.pid}\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path):
    file = tmp_path / "lock"
    with holder(file) as process:
        with pytest.raises(LockedError) as refusal, exclusive(file):
            raise AssertionError
        assert refusal.value.holder == f"process {process.pid} on {socket.gethostname()}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with exclusive(file), pytest.raises(LockedError, match=f"process {os.getpid()} on"), exclusive(file):
            raise AssertionError
    with exclusive(file):  # and never removed
        assert file.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_children_do_not_hold_their_parents_lock(tmp_path):
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file), "fork"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parent_and_child = {int(process.stdout.readline()) for _ in range(2)}
        assert process.wait() == -signal.SIGKILL
        (child,) = parent_and_child - {process.pid}
        try:
            with exclusive(file):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with exclusive(tmp_path / "lock"):
        assert "lock: its file system has no locks" in caplog.text
