"""`CheckedTrainer`: fairchem's OCP trainer, which refuses by name what would fail obscurely or train on something else."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from fairchem.core.datasets.base_dataset import UnsupportedDatasetError
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.config import Fault, refuse
from fairchem_crack.io.checkpoints import reading_safely
from fairchem_crack.training.config_checks import check_datasets, check_normalizers, check_warmup
from fairchem_crack.training.host_options import (
    lambda_faults,
    metric_faults,
    optim_faults,
    output_faults,
    validation_faults,
)
from fairchem_crack.training.resumable import ResumableTrainer
from fairchem_crack.training.schedule import check_length
from fairchem_crack.training.spelling import misspelt_names


class CheckedTrainer(ResumableTrainer):
    """Loads each part as fairchem does, and checks it; each loss of the student also reports its unweighted value."""

    def name_faults(self, given: dict[str, Any]) -> list[Fault]:
        """Misspelt names in what fairchem forwards of a YAML; what may be one is warned of."""
        blocks = ("task", "optim", "dataset", "evaluation_metrics", "outputs")
        faults, warnings = misspelt_names({name: given.get(name) for name in blocks})
        for warning in warnings:
            logging.warning(warning)
        return faults

    def check_training(self) -> None:
        """Raise ValueError, with every fault, for options with which a training cannot start, or cannot end."""
        optim, validation = self.config["optim"], self.config["val_dataset"]
        of_outputs, of_metrics = output_faults(self.output_targets), metric_faults(self.evaluation_metrics)
        refuse(optim_faults(optim), of_outputs, of_metrics, validation_faults(validation, optim))
        check_length(self.scheduler, self.total_steps)

    @property
    def total_steps(self) -> int:
        """Of the whole training; 0 without training data."""
        return self.config["optim"]["max_epochs"] * len(self.train_loader or ())

    def load_datasets(self) -> None:
        """Fail on a missing dataset by the name of its option, then load as fairchem does."""
        check_datasets({name: self.config[f"{name}_dataset" if name else "dataset"] for name in ("", "val", "test")})
        super().load_datasets()

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        """fairchem's; data without the number of atoms of each system cannot be balanced."""
        try:
            return super().get_sampler(dataset, batch_size, shuffle)
        except UnsupportedDatasetError as error:
            raise ValueError(
                f"optim.load_balancing: {error}. LMDBs have it in a metadata.npz; for other data, such as ASE databases, "
                "set optim.load_balancing_on_error: warn_and_no_balance."
            ) from error

    def load_references_and_normalizers(self) -> None:
        """fairchem's, refused where they are not finite."""
        with reading_safely(self.config["dataset"], trust=self._trusts_files):
            super().load_references_and_normalizers()
        check_normalizers(self.normalizers, self.elementrefs)

    def load_model(self) -> None:
        """fairchem's; a config may name a checkpoint to start from, and a file of scale factors."""
        with reading_safely(self.config["model"], trust=self._trusts_files):
            super().load_model()

    def load_loss(self) -> None:
        """The student's own losses; each also reports its unweighted value."""
        super().load_loss()
        self._own_losses: dict[str, Tensor] = {}
        for name, loss in self.loss_functions:
            loss["fn"].register_forward_hook(
                lambda _, __, value, name=name: self._own_losses.update({keys.LOSS_PREFIX + name: value.detach()})
            )
            if not loss["coefficient"]:  # a label that is not finite is not trained on; 0 times it would be NaN
                loss["fn"].register_forward_pre_hook(lambda _, given: (given[0], torch.nan_to_num(given[1], 0.0, 0.0, 0.0)))

    def load_extras(self) -> None:
        """Also schedules in epochs (`scheduler_params.lambda_type`), which fairchem has only for EquiformerV2."""
        optim = self.config["optim"]
        if "lambda_type" not in optim.get("scheduler_params", {}):
            super().load_extras()
            return
        refuse(lambda_faults(optim["scheduler_params"]))
        if self.train_loader is not None:
            check_warmup(optim["scheduler_params"], len(self.train_loader))
        self.config["optim"] = copy.deepcopy(optim)  # fairchem converts its epochs to steps, which must happen once only
        EquiformerV2ForcesTrainer.load_extras(self)  # type: ignore[arg-type]
        self.config["optim"] = optim


def training_split(dataset: Any) -> dict:
    """The options of the training data, in each form in which fairchem takes a dataset."""
    first = dataset[0] if isinstance(dataset, list) and dataset else dataset
    return (first.get("train") or {}) if isinstance(first, dict) else {}
