"""The trainer under test, which writes each rank's losses to a file and kills rank 0 after a step."""

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
            os.kill(os.getpid(), signal.SIGKILL)
        super()._backward(loss)
