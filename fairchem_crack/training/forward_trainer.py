"""`ForwardTrainer`: a trainer that needs no labels, for what depends on the student and its systems only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.training.labels import labelled_outputs
from fairchem_crack.training.trainer import CrackDistillTrainer


class ForwardTrainer(CrackDistillTrainer):
    """Runs the student on its training data, whose labels may be missing. Its loss is 0."""

    def load_datasets(self) -> None:
        """fairchem's; every system with a label, NaN where it has none, so that any of them can be collated."""
        super().load_datasets()
        if self.train_loader is not None:
            names = labelled_outputs(ModelOutputs("outputs", self.config["outputs"]))
            self.train_loader = self.get_dataloader(OptionalLabels(self.train_loader.dataset, names), self.train_sampler)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        return torch.zeros((), device=self.device)
