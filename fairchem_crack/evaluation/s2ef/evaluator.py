"""Evaluate a fairchem checkpoint on a dataset, with fairchem's own trainer and metrics."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import torch
from fairchem.core.common.utils import setup_imports, update_config
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fairchem_crack import keys
from fairchem_crack.adapters import architecture
from fairchem_crack.adapters.outputs import predicted
from fairchem_crack.evaluation.s2ef.data import without_labels
from fairchem_crack.evaluation.teacher_caches import LabelledByCaches, TeacherCaches
from fairchem_crack.io.checkpoints import model_config, read_checkpoint, reading_safely
from fairchem_crack.io.datasets import Records, close_unused
from fairchem_crack.io.named_records import NAMED
from fairchem_crack.io.progress import trained_progress
from fairchem_crack.training.per_system import PerSystemTrainer

METRICS = {
    "energy": ["mae"],
    "forces": ["mae", "cosine_similarity"],
    "misc": ["energy_forces_within_threshold"],
}
LOSSES = [{keys.ENERGY: {"fn": "mae", "coefficient": 1}}]  # fairchem's validation computes it; it is not used
# What fairchem needs of the two outputs that are evaluated, where a checkpoint does not say it.
OUTPUTS: dict[str, dict[str, Any]] = {
    keys.ENERGY: {"level": "system"},
    keys.FORCES: {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
}
Atoms = Literal["free", "all"]  # whose forces are compared


class SystemErrors:
    """Stands where fairchem's evaluator does, sees what it sees, and keeps the errors of each system."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def eval(self, prediction: dict[str, Tensor], target: dict[str, Tensor], prev_metrics: Any = None) -> None:
        """Take a batch of predictions, in eV and eV/A, the forces of free atoms only."""
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


class _Compared:
    """Stands where fairchem's evaluator does, and keeps what it would compare."""

    prediction: dict[str, Tensor]
    target: dict[str, Tensor]

    def eval(self, prediction: dict[str, Tensor], target: dict[str, Tensor], prev_metrics: Any = None) -> None:
        self.prediction, self.target = prediction, target


class _Trainer(PerSystemTrainer):
    """fairchem's trainer, which also keeps the errors of each system when it validates."""

    system_errors: SystemErrors

    def _compute_metrics(self, out: dict, batch: Any, evaluator: Any, metrics: dict | None = None) -> dict:
        compared = _Compared()
        super()._compute_metrics(out, batch, compared, metrics)
        if not self.output_targets[keys.FORCES]["eval_on_free_atoms"]:  # fairchem counts the free ones even so
            compared.prediction["natoms"] = compared.target["natoms"] = batch.natoms.to(self.device)
        self.system_errors.eval(compared.prediction, compared.target)
        try:
            return evaluator.eval(compared.prediction, compared.target, prev_metrics=metrics)
        except (RuntimeError, ZeroDivisionError) as error:
            if bool((compared.target["natoms"] > 0).all()):
                raise
            raise ValueError(
                "all atoms of a system are fixed, and the forces of free atoms are compared. Leave such systems out, or "
                "compare the forces of all atoms (--atoms all)."
            ) from error


def first_records(src: Path, dataset: dict, count: int) -> list[Any]:
    """At most `count` systems of a dataset, the first ones, as fairchem's records.

    Raises:
        ValueError: they cannot be read, or there is none.
    """
    try:
        with Records({**dataset, "src": str(src)}) as content:
            records = content.first(count)
    except Exception as error:  # each format fails in its own way
        raise ValueError(
            f"{src}: its first systems cannot be read with energies and forces as {dataset['format']} ({error}). Evaluation "
            "needs labelled data."
        ) from error
    if not records:
        raise ValueError(f"{src}: expected systems with energy and forces, found no system.")
    return records


def check_labelled(src: Path, dataset: dict) -> None:
    """Raise ValueError for a dataset whose first system has no energy or no forces, or cannot be read."""
    (first,) = first_records(src, dataset, 1)
    if missing := [name for name in (keys.ENERGY, keys.FORCES) if name not in first]:
        raise ValueError(
            f"{src}: expected systems with energy and forces, found no {missing[0]}. A teacher's outputs for them do, too: "
            "--teacher-cache with --labels teacher."
        )


def evaluated_outputs(config: dict, checkpoint: Path) -> tuple[dict[str, str], dict[str, dict]]:
    """How the energy and the forces of a checkpoint are called, and their options; it may have other outputs.

    Args:
        config: of the checkpoint, in today's or the published OC20 format.

    Returns:
        By property, `energy` and `forces`: the names of the outputs, and fairchem's options of them.

    Raises:
        ValueError: it does not say what the model predicts, or that is not both.
    """
    try:
        outputs = update_config(config)["outputs"]
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{checkpoint}: its config does not say what the model predicts ({error!r}).") from error
    names = {}
    for quantity in OUTPUTS:
        called = [name for name, options in outputs.items() if (options or {}).get("property", name) == quantity]
        if quantity not in called and len(called) != 1:
            reason = f"{', '.join(called)} have the property `{quantity}`" if called else f"it predicts {', '.join(outputs)}"
            raise ValueError(f"{checkpoint}: expected a model that predicts energy and forces; {reason}.")
        names[quantity] = quantity if quantity in called else called[0]
    return names, {
        quantity: {**OUTPUTS[quantity], **(outputs[name] or {}), "property": quantity} for quantity, name in names.items()
    }


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
            f"{where}: the errors of {len(spoiled)} systems (number {shown}) are not finite, because of their labels or the "
            "model's predictions. Leave such systems out, or take another checkpoint."
        )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _by_property(content: dict, names: Mapping[str, str]) -> dict:
    """A checkpoint whose normalizers and references of the evaluated outputs are called by their property."""
    properties = {name: quantity for quantity, name in names.items()}
    renamed = {
        part: {properties.get(name, name): state for name, state in content[part].items()}
        for part in ("normalizers", "elementrefs")
        if content.get(part)
    }
    return {**content, **renamed}


def _by_both_names(names: Mapping[str, str], model: nn.Module, arguments: tuple, outputs: dict[str, Any]) -> dict[str, Any]:
    """Forward hook: the evaluated outputs of a model by their property too."""
    return {**outputs, **{property_: predicted(outputs, property_, name) for property_, name in names.items()}}


class CheckpointEvaluator:
    """A checkpoint ready to be validated on any number of datasets.

    Its energy and its forces are evaluated; what else it predicts is not computed from the model's outputs.

    Attributes:
        architecture: fairchem's name of the model, or of a hydra's backbone.
        parameters: how many numbers it has.
        progress: of its training.
        atoms: whose forces are compared.

    Args:
        checkpoint: any fairchem checkpoint, ours or not; one written for inference holds the EMA weights.
        dataset: fairchem's options of a dataset (`format`, `key_mapping`, ...), all but `src`.
        atoms: None for what the checkpoint's `outputs.forces.eval_on_free_atoms` says.
        batch_size: systems per forward.
        cpu: run on the CPU even where there is a GPU.
        device: number of the GPU.
        labels: caches of a teacher, whose outputs are the labels; None for those of the data.

    Raises:
        ValueError: not a fairchem checkpoint of a model of energies and forces, or one of step 0.
    """

    def __init__(
        self,
        checkpoint: Path,
        dataset: dict,
        *,
        batch_size: int = 50,
        cpu: bool = True,
        device: int = 0,
        atoms: Optional[Atoms] = None,
        labels: Optional[TeacherCaches] = None,
    ) -> None:
        setup_imports()
        content = read_checkpoint(checkpoint)
        self.progress = trained_progress(content, checkpoint)
        name, attributes = model_config(content, checkpoint)
        names, outputs = evaluated_outputs(content["config"], checkpoint)
        if atoms is not None:
            outputs[keys.FORCES]["eval_on_free_atoms"] = atoms == "free"
        self.atoms: Atoms = "free" if outputs[keys.FORCES]["eval_on_free_atoms"] else "all"
        self._checkpoint, self._dataset, self._labels = checkpoint, dataset, labels
        with reading_safely(attributes):  # its config may name a file of scale factors
            self._trainer = _Trainer(
                task={},
                model={"name": name, **attributes},
                outputs=outputs,
                dataset={},
                optimizer={"batch_size": batch_size, "eval_batch_size": batch_size, "num_workers": 0},
                loss_functions=LOSSES,
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
        self._trainer.load_checkpoint(str(checkpoint), _by_property(content, names), inference_only=True)
        self._trainer._unwrapped_model.register_forward_hook(partial(_by_both_names, names))
        self._trainer.load_loss()
        self._random = _random_state()

    def _as_in_a_fresh_process(self) -> None:
        """Every dataset sees the random edge frames (EquiformerV2, eSCN) that stock fairchem draws for the first one."""
        torch.set_rng_state(self._random[0])
        if self._random[1]:
            torch.cuda.set_rng_state_all(self._random[1])

    def _load(self, src: Path, options: Optional[dict] = None) -> DataLoader:
        self._trainer.val_loader = self._trainer.val_sampler = self._trainer.val_dataset = None
        close_unused()
        options = copy.deepcopy(self._dataset if options is None else options)  # a dataset adds to nested ones
        self._trainer.config["val_dataset"] = {**options, "src": str(src), "use_train_settings": False}
        self._trainer.load_datasets()
        return self._trainer.val_loader

    def _take_labels(self, src: Path) -> None:
        """Let the systems that were loaded have the labels of the teacher's caches, where they are given."""
        if self._labels is not None:
            dataset = LabelledByCaches(self._trainer.val_loader.dataset, self._labels, str(src))
            self._trainer.val_loader = self._trainer.get_dataloader(dataset, self._trainer.val_sampler)

    def metrics(self, src: Path) -> dict[str, float]:
        """`energy_mae` (eV), `forces_mae` (eV/A, free atoms), `forces_cosine_similarity`,
        `energy_forces_within_threshold` (fraction) over the dataset at `src`."""
        return self.metrics_and_errors(src)[0]

    def metrics_and_errors(self, src: Path) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`metrics`, and what they are the means of: the errors of each system, in an order that only the dataset decides.

        energy_mae = mean_k energy_k and forces_mae = sum_k forces_k / sum_k components_k over the systems k.

        Returns:
            The metrics; and `energy` (S,) |error| in eV, `forces` (S,) sum of the |error| of the free atoms' components
            in eV/A, `components` (S,) how many these are.

        Raises:
            ValueError: an error is not finite.
        """
        self._load(src)
        self._take_labels(src)
        self._as_in_a_fresh_process()
        self._trainer.system_errors = SystemErrors()
        validated = self._trainer.validate(disable_tqdm=True)
        metrics = {name: float(value["metric"]) for name, value in validated.items() if name != "loss"}
        errors = self._trainer.system_errors.arrays()
        check_errors(errors, f"{self._checkpoint} on {src}")
        return metrics, errors

    def predict(self, src: Path, directory: Path) -> Path:
        """fairchem's predictions of a dataset, which needs no labels; the .npz file that its `--mode predict` writes."""
        loader, trainer = self._load(src, without_labels(self._dataset)), self._trainer
        directory.mkdir(parents=True, exist_ok=True)
        trainer.config["cmd"]["results_dir"] = str(directory)
        trainer.is_debug = False  # it writes no file else
        self._as_in_a_fresh_process()
        try:
            trainer.predict(loader, results_file="predictions", disable_tqdm=True)
        finally:
            trainer.is_debug = True
        return directory / f"{trainer.name}_predictions.npz"
