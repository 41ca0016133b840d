"""The trainer under test, made to leave what each rank ended with."""

from __future__ import annotations

from pathlib import Path

import torch
from fairchem.core.common import distutils

from fairchem_crack import CrackDistillTrainer


class DigestTrainer(CrackDistillTrainer):
    _first_sids: list | None = None
    _steps = 0

    def _compute_loss(self, out, batch):
        if self.model.training:
            self._steps += 1
            self._projection = self._distillation.projection.module
            if self._first_sids is None:
                self._first_sids = batch.sid.tolist()
                self._initial = self._projection.weight.detach().clone()
        return super()._compute_loss(out, batch)

    def train(self, disable_eval_tqdm: bool = False) -> None:
        super().train(disable_eval_tqdm)
        weights = {f"student.{key}": value for key, value in self._unwrapped_model.state_dict().items()}
        weights.update({f"projection.{key}": value for key, value in self._projection.state_dict().items()})
        found = {"steps": self._steps, "first_sids": self._first_sids, "initial_projection": self._initial}
        directory = Path(self.config["cmd"]["checkpoint_dir"]).parents[1]
        torch.save({"weights": weights, **found}, directory / f"rank{distutils.get_rank()}.pt")
