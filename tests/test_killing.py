"""What tests that kill processes leave to the process that runs them."""

from __future__ import annotations

import os
import signal

from killing import in_fork
from tqdm import tqdm


def test_a_killed_fork_keeps_no_lock_of_tqdm():
    tqdm.set_lock(tqdm.get_lock())  # made before the fork, as by a first bar

    def killed() -> int:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert in_fork(killed) == f"signal {signal.SIGKILL.value}"
    locks = tqdm.get_lock().locks
    assert [lock.acquire(timeout=5) for lock in locks] == [True] * len(locks)
    for lock in locks:
        lock.release()
