"""The trainer under test, made to leave what each rank saw and ended with."""

from __future__ import annotations

from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_crack import CrackDistillTrainer, keys


class DigestTrainer(CrackDistillTrainer):
    _first_sids: list | None = None

    def _compute_loss(self, out, batch):
        loss = super()._compute_loss(out, batch)
        if self.model.training:
            self._losses.append(float(loss))
            self._pairs.append(self._readout.numbers[keys.NUM_PAIRS])
            if self._first_sids is None:
                self._first_sids = batch.sid.tolist()
                self._projection = self._distillation.projections.modules[keys.NODE_EMBEDDING].module
                self._initial = self._projection.trainable.weight.detach().clone()
        return loss

    def train(self, disable_eval_tqdm: bool = False) -> None:
        self._losses: list[float] = []
        self._pairs: list[float] = []
        super().train(disable_eval_tqdm)
        weights = {f"student.{key}": value for key, value in self._unwrapped_model.state_dict().items()}
        weights.update({f"projection.{key}": value for key, value in self._projection.state_dict().items()})
        results = {"losses": self._losses, "pairs": self._pairs, "first_sids": self._first_sids}
        directory = Path(self.config["cmd"]["checkpoint_dir"]).parents[1]
        file = directory / f"rank{distutils.get_rank()}.pt"
        torch.save({"weights": weights, "initial_projection": self._initial, **results}, file)
