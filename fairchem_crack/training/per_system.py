"""`PerSystemTrainer`: fairchem's OCP trainer, with the records and the periodic boundaries of each system."""

from __future__ import annotations

import logging
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from fairchem_crack.io.boundaries import OPTION, OwnBoundaries, set_option
from fairchem_crack.io.datasets import SPLITS
from fairchem_crack.io.named_records import NamedRecords


class PerSystemTrainer(OCPTrainer):
    """fairchem's trainer. It names a record that cannot be used, and a system's pbc are those of the system in any batch.

    fairchem's own takes the pbc of a batch's first system for all. Where data have several, a checkpoint says so: the model
    in its config has `use_pbc_single`, with which fairchem without this package computes the same.
    """

    def load_model(self) -> None:
        """The model as fairchem builds it."""
        super().load_model()
        self._boundaries = OwnBoundaries(self._unwrapped_model)

    def load_datasets(self) -> None:
        """The datasets as fairchem makes them; the loaders read them by way of `NamedRecords`."""
        super().load_datasets()
        for split in SPLITS:
            if getattr(self, f"{split}_loader", None) is not None:
                records = NamedRecords(getattr(self, f"{split}_dataset"), f"dataset.{split}")
                setattr(self, f"{split}_loader", self.get_dataloader(records, getattr(self, f"{split}_sampler")))

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict:
        """Validate as fairchem does; the ranks then agree on whether the data have several pbc."""
        metrics = super().validate(split, disable_tqdm)
        if distutils.all_reduce(int(self._boundaries.has_met_several), device=self.device):
            self._boundaries.has_met_several = True
        return metrics

    def save(self, *arguments: Any, **options: Any) -> str | None:
        """Save as fairchem does, with the option of the model that the data need."""
        if self._boundaries.has_met_several and set_option(self.config["model"]):
            logging.warning(
                "The data have systems of several pbc: the graph of each is built by itself, and the checkpoints' config "
                f"has `model.{OPTION}: True`. Set it in the YAML, too, if fairchem's own trainer is to validate or predict."
            )
        return super().save(*arguments, **options)
