"""Evaluate a fairchem checkpoint on a dataset, with fairchem's own trainer and metrics."""

from __future__ import annotations

import gc
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common.utils import setup_imports, update_config
from fairchem.core.datasets.base_dataset import create_dataset
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor
from torch.utils.data import DataLoader

from fairchem_crack.features import architecture
from fairchem_crack.named_records import NAMED
from fairchem_crack.per_system import PerSystemTrainer
from fairchem_crack.teacher import model_config, read_checkpoint

METRICS = {
    "energy": ["mae"],
    "forces": ["mae", "cosine_similarity"],
    "misc": ["energy_forces_within_threshold"],
}


class SystemErrors:
    """Stands where fairchem's evaluator does, sees what it sees, and keeps the errors of each system."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def eval(self, prediction: dict[str, Tensor], target: dict[str, Tensor], prev_metrics: Any = None) -> None:
        """Take a batch of predictions, in eV and eV/A, the forces of the free atoms alone."""
        energy = (prediction["energy"] - target["energy"]).abs().view(-1)  # (B,)
        of_atoms = (prediction["forces"] - target["forces"]).abs().sum(dim=1)  # (N,)
        atoms = target["natoms"]  # (B,) free ones
        system = torch.repeat_interleave(torch.arange(len(atoms), device=atoms.device), atoms)
        forces = of_atoms.new_zeros(len(atoms)).index_add_(0, system, of_atoms)
        self._batches.append({"energy": energy, "forces": forces, "components": 3 * atoms})

    def arrays(self) -> dict[str, np.ndarray]:
        """Of all batches: |energy error| in eV, sum of |force error| in eV/A, number of force components; each (S,)."""
        names = self._batches[0]
        return {name: torch.cat([batch[name] for batch in self._batches]).cpu().double().numpy() for name in names}


class _Trainer(PerSystemTrainer):
    """fairchem's trainer, which also keeps the errors of each system when it validates."""

    system_errors: SystemErrors

    def _compute_metrics(self, out: dict, batch: Any, evaluator: Any, metrics: dict | None = None) -> dict:
        super()._compute_metrics(out, batch, self.system_errors, metrics)
        return super()._compute_metrics(out, batch, evaluator, metrics)


def first_records(src: Path, dataset: dict, count: int) -> list[Any]:
    """At most `count` systems of a dataset, the first ones, as fairchem's records.

    Raises:
        ValueError: they cannot be read, or have no energy and forces.
    """
    setup_imports()
    try:
        content = create_dataset({**dataset, "src": str(src)}, "val")
        records = [content[index] for index in range(min(count, len(content)))]
        del content
    except Exception as error:  # each format fails in its own way
        raise ValueError(
            f"{src}: its first systems cannot be read with energies and forces as {dataset['format']} ({error}). Evaluation "
            "needs labelled data."
        ) from error
    finally:
        gc.collect()  # closes an LMDB, which one process may open only once
    missing = [name for name in ("energy", "forces") if records and name not in records[0]]
    if missing or not records:
        found = f"no {missing[0]}" if missing else "no system"
        raise ValueError(f"{src}: expected systems with energy and forces, found {found}.")
    return records


def _outputs_and_losses(config: dict, checkpoint: Path) -> tuple[dict, list]:
    """`outputs` and `loss_functions` of a checkpoint's config, in today's or the published OC20 format."""
    try:
        config = update_config(config)
        outputs, loss_functions = config["outputs"], config["loss_functions"]
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{checkpoint}: its config does not say what the model predicts ({error!r}).") from error
    if not {"energy", "forces"} <= outputs.keys():
        raise ValueError(f"{checkpoint}: expected a model of energy and forces; it predicts {', '.join(outputs)}.")
    return outputs, loss_functions


def check_errors(errors: dict[str, np.ndarray], where: str) -> None:
    """Raise ValueError, by number, for systems whose errors are not finite: a mean over them is none.

    Args:
        errors: (S,) each.
        where: the checkpoint and its data.
    """
    spoiled = np.flatnonzero(~np.isfinite(sum(errors.values())))
    if len(spoiled):
        shown = ", ".join(map(str, spoiled[:NAMED])) + (", ..." if len(spoiled) > NAMED else "")
        raise ValueError(
            f"{where}: the errors of {len(spoiled)} systems (number {shown}) are not finite, for their labels or for the "
            "model's predictions. Leave such systems out, or take another checkpoint."
        )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


class CheckpointEvaluator:
    """A checkpoint ready to be validated on any number of datasets.

    Attributes:
        architecture: fairchem's name of the model, or of a hydra's backbone.
        parameters: how many numbers it has.

    Args:
        checkpoint: any fairchem checkpoint, ours or not; one written for inference holds the EMA weights.
        dataset: fairchem's options of a dataset (`format`, `key_mapping`, ...), all but `src`.
        batch_size: systems per forward.
        cpu: run on the CPU even where there is a GPU.
        device: number of the GPU.

    Raises:
        ValueError: not a fairchem checkpoint of a model of energies and forces.
    """

    def __init__(self, checkpoint: Path, dataset: dict, *, batch_size: int = 50, cpu: bool = True, device: int = 0) -> None:
        setup_imports()
        content = read_checkpoint(checkpoint)
        name, attributes = model_config(content, checkpoint)
        outputs, loss_functions = _outputs_and_losses(content["config"], checkpoint)
        self._checkpoint, self._dataset = checkpoint, dataset
        self._trainer = _Trainer(
            task={},
            model={"name": name, **attributes},
            outputs=outputs,
            dataset={},
            optimizer={"batch_size": batch_size, "eval_batch_size": batch_size, "num_workers": 0},
            loss_functions=loss_functions,
            evaluation_metrics={"metrics": METRICS},
            identifier="",
            local_rank=device,
            is_debug=True,  # writes no files
            seed=0,
            cpu=cpu,
            inference_only=True,
        )
        self.architecture = architecture(self._trainer._unwrapped_model)
        self.parameters = sum(parameter.numel() for parameter in self._trainer._unwrapped_model.parameters())
        if content.get("ema"):  # validate and predict take the averaged weights, as they do in `--mode validate`
            self._trainer.ema = ExponentialMovingAverage(self._trainer.model.parameters(), content["ema"]["decay"])
        self._trainer.load_checkpoint(str(checkpoint), content, inference_only=True)
        self._trainer.load_loss()
        self._random = _random_state()

    def _as_in_a_fresh_process(self) -> None:
        """Every dataset sees the random edge frames (EquiformerV2, eSCN) that stock fairchem draws for the first one."""
        torch.set_rng_state(self._random[0])
        if self._random[1]:
            torch.cuda.set_rng_state_all(self._random[1])

    def _load(self, src: Path) -> DataLoader:
        self._trainer.val_loader = self._trainer.val_sampler = self._trainer.val_dataset = None
        gc.collect()  # closes the last data set's LMDB, which one process may open only once
        self._trainer.config["val_dataset"] = {**self._dataset, "src": str(src), "use_train_settings": False}
        self._trainer.load_datasets()
        return self._trainer.val_loader

    def metrics(self, src: Path) -> dict[str, float]:
        """`energy_mae` (eV), `forces_mae` (eV/A, free atoms), `forces_cosine_similarity`,
        `energy_forces_within_threshold` (fraction) over the dataset at `src`."""
        return self.metrics_and_errors(src)[0]

    def metrics_and_errors(self, src: Path) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`metrics`, and what they are the means of: the errors of each system, in an order that the dataset alone decides.

        energy_mae = mean_k energy_k and forces_mae = sum_k forces_k / sum_k components_k over the systems k.

        Returns:
            The metrics; and `energy` (S,) |error| in eV, `forces` (S,) sum of the |error| of the free atoms' components
            in eV/A, `components` (S,) how many these are.

        Raises:
            ValueError: an error is not finite.
        """
        self._load(src)
        self._as_in_a_fresh_process()
        self._trainer.system_errors = SystemErrors()
        found = self._trainer.validate(disable_tqdm=True)
        metrics = {name: float(value["metric"]) for name, value in found.items() if name != "loss"}
        errors = self._trainer.system_errors.arrays()
        check_errors(errors, f"{self._checkpoint} on {src}")
        return metrics, errors

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

    def predict(self, src: Path, directory: Path) -> Path:
        """fairchem's predictions of a dataset, which needs no labels; the .npz file that its `--mode predict` writes."""
        loader, trainer = self._load(src), self._trainer
        directory.mkdir(parents=True, exist_ok=True)
        trainer.config["cmd"]["results_dir"] = str(directory)
        trainer.is_debug = False  # it writes no file else
        self._as_in_a_fresh_process()
        try:
            trainer.predict(loader, results_file="predictions", disable_tqdm=True)
        finally:
            trainer.is_debug = True
        return directory / f"{trainer.name}_predictions.npz"
