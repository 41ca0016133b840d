"""The trainer under test, which writes each rank's losses to a file and fails in the middle of a step on rank 0.

The fault is a signal to this process, SIGKILL or that of $SIGNAL, or the loss of all bytes of the file $TRUNCATE.
"""

from __future__ import annotations

import json
import os
import signal

from fairchem.core.common import distutils

from fairchem_crack import CrackDistillTrainer


class KilledTrainer(CrackDistillTrainer):
    def _backward(self, loss) -> None:
        with open(f"{os.environ['LOSSES']}.{distutils.get_rank()}", "a") as file:
            file.write(json.dumps([self.step, float(loss)]) + "\n")
        if distutils.get_rank() == 0 and self.step == int(os.environ["KILL_AT"]):
            if "TRUNCATE" in os.environ:
                os.truncate(os.environ["TRUNCATE"], 0)
            else:
                os.kill(os.getpid(), getattr(signal, os.environ.get("SIGNAL", "SIGKILL")))
        super()._backward(loss)
