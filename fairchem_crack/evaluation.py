"""Evaluate a fairchem checkpoint on a dataset, with fairchem's own trainer and metrics."""

from __future__ import annotations

import gc
import statistics
import time
from itertools import islice
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from fairchem_crack.features import architecture
from fairchem_crack.teacher import model_config, read_checkpoint

METRICS = {
    "energy": ["mae"],
    "forces": ["mae", "cosine_similarity"],
    "misc": ["energy_forces_within_threshold"],
}


class CheckpointEvaluator:
    """A checkpoint ready to be validated on any number of datasets.

    Attributes:
        architecture: fairchem's name of the model, or of a hydra's backbone.

    Args:
        checkpoint: any fairchem checkpoint, ours or not; one written for inference holds the EMA weights.
        dataset: fairchem's options of a dataset (`format`, `key_mapping`, ...), all but `src`.
        batch_size: systems per forward.
        cpu: run on the CPU even where there is a GPU.
    """

    def __init__(self, checkpoint: Path, dataset: dict, *, batch_size: int = 50, cpu: bool = True) -> None:
        setup_imports()
        content = read_checkpoint(checkpoint)
        name, attributes = model_config(content, checkpoint)
        self._dataset = dataset
        self._trainer = OCPTrainer(
            task={},
            model={"name": name, **attributes},
            outputs=content["config"]["outputs"],
            dataset={},
            optimizer={"batch_size": batch_size, "eval_batch_size": batch_size, "num_workers": 0},
            loss_functions=content["config"]["loss_functions"],
            evaluation_metrics={"metrics": METRICS},
            identifier="",
            local_rank=0,
            is_debug=True,  # writes no files
            seed=0,
            cpu=cpu,
            inference_only=True,
        )
        self.architecture = architecture(self._trainer._unwrapped_model)
        self._trainer.load_checkpoint(str(checkpoint), content, inference_only=True)
        self._trainer.load_loss()

    def _load(self, src: Path) -> None:
        self._trainer.val_loader = self._trainer.val_sampler = self._trainer.val_dataset = None
        gc.collect()  # closes the last data set's LMDB, which one process may open only once
        self._trainer.config["val_dataset"] = {**self._dataset, "src": str(src), "use_train_settings": False}
        self._trainer.load_datasets()

    def metrics(self, src: Path) -> dict[str, float]:
        """`energy_mae` (eV), `forces_mae` (eV/A, free atoms), `forces_cosine_similarity`,
        `energy_forces_within_threshold` (fraction) over the dataset at `src`."""
        self._load(src)
        found = self._trainer.validate(disable_tqdm=True)
        return {name: float(value["metric"]) for name, value in found.items() if name != "loss"}

    def atoms_per_second(self, src: Path, *, repeats: int = 3) -> float:
        """Atoms per second of inference on a batch of the dataset at `src`, median of `repeats` after one to warm up."""
        self._load(src)
        batches = list(islice(self._trainer.val_loader, 1))
        atoms = sum(int(batch.natoms.sum()) for batch in batches)
        self._trainer.model.eval()
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with torch.no_grad():
                for batch in batches:
                    self._trainer._forward(batch)
            if self._trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return atoms / statistics.median(seconds[1:])
