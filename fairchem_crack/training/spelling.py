"""Misspelt names in a YAML or an override, which fairchem drops or adds without a message."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable
from typing import Any, Optional

from fairchem_crack.config import DistillConfig, Fault, unknown_options

# What fairchem's `new_trainer_context` forwards of a YAML; it drops every other block.
BLOCKS = (
    *("trainer", "model", "outputs", "optim", "dataset", "loss_functions", "evaluation_metrics", "task"),
    *("logger", "slurm"),
)
MULTITASK_BLOCKS = ("tasks", "datasets", "combined_dataset", "evaluations")
# What fairchem sets from its flags, or reads elsewhere.
SETTINGS = (
    *("mode", "identifier", "timestamp_id", "seed", "is_debug", "run_dir", "print_every", "amp", "checkpoint", "cpu"),
    *("submit", "summit", "world_size", "distributed_backend", "gp_gpus", "local_rank", "distributed_port", "init_method"),
    *("hide_eval_progressbar", "skip_experimental_imports"),
)
HARMLESS = ("includes", "gpus", "note")  # which YAMLs have and fairchem drops, or has used up
SPLITS = ("train", "val", "test", "relax")
# Options that fairchem reads, by block.
OPTIM = (
    *("batch_size", "eval_batch_size", "num_workers", "load_balancing", "load_balancing_on_error", "max_epochs"),
    *("lr_initial", "optimizer", "optimizer_params", "weight_decay", "scheduler", "scheduler_params", "clip_grad_norm"),
    *("ema_decay", "eval_every", "checkpoint_every", "load_datasets_and_model_then_exit", "use_denoising_pos"),
    *("lr_gamma", "lr_milestones", "warmup_steps", "warmup_factor", "warmup_epochs", "denoising_pos_params"),
    *("loss_energy", "loss_forces", "loss_force", "energy_coefficient", "force_coefficient"),
)
TASK = (
    *("distill", "dataset", "description", "type", "metric", "labels", "grad_input", "primary_metric", "strict_load"),
    *("train_on_free_atoms", "eval_on_free_atoms", "eval_relaxations", "relax_dataset", "relax_opt", "relaxation_steps"),
    *("relaxation_fmax", "relax_cell", "relax_volume", "save_full_traj", "write_pos", "num_relaxation_batches"),
    *("prediction_dtype", "set_deterministic_scatter"),
)
DATASET = (
    *("src", "format", "key_mapping", "transforms", "a2g_args", "use_train_settings", "metadata_path", "first_n"),
    *("sample_n", "no_shuffle", "max_atoms", "subset_to", "seed", "splits", "train_split_settings", "val_split_settings"),
    *(
        "lin_ref",
        "test_split_settings",
        "pattern",
        "ase_read_args",
        "keep_in_memory",
        "include_relaxed_energy",
        "connect_args",
    ),
    *("select_args", "atoms_transform_args", "oc20_ref", "train_on_oc20_total_energies", "shard", "total_shards"),
    *("index_file", "normalize_labels", "target_mean", "target_std", "grad_target_mean", "grad_target_std"),
)
OUTPUT = (
    *("level", "property", "shape", "type", "irrep_dim", "decomposition", "parent", "prediction_dtype"),
    *("train_on_free_atoms", "eval_on_free_atoms"),
)
LOSS = ("fn", "coefficient", "reduction")
METRICS = ("metrics", "primary_metric")
NEAR = 0.75  # difflib's ratio from which a name counts as a misspelling


def nearest(name: Any, known: Iterable[str]) -> Optional[str]:
    """The known name that this one is a misspelling of, if there is one."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=NEAR)), None)


def misspelt_names(config: dict[str, Any]) -> tuple[list[Fault], list[Fault]]:
    """Names in a config that nothing reads.

    Returns:
        What cannot be meant, to be refused; what may be meant, to be warned of.
    """
    problems, warnings = _of_blocks(config)
    task, dataset, outputs = (_mapping(config.get(name)) for name in ("task", "dataset", "outputs"))
    for name in task:
        if name != "distill" and nearest(name, TASK) == "distill":
            problems.append(Fault(f"task.{name}", "unknown block. Did you mean `distill`?"))
    warnings += _near("task", task, TASK, skip=("distill",))
    if "distill" in task:
        problems += unknown_options(DistillConfig, task["distill"], "task.distill")
    for name in dataset:
        if name not in SPLITS:
            near = nearest(name, SPLITS)
            sentence = f"fairchem reads {', '.join(SPLITS)} and drops the rest.{_meant(near)}"
            (problems if near else warnings).append(Fault(f"dataset.{name}", sentence))
    optim = config.get("optim")
    scheduled = () if not isinstance(optim, dict) else _scheduler_options(optim.get("scheduler"))
    warnings += _near("optim", optim, (*OPTIM, *scheduled))
    warnings += _near("evaluation_metrics", config.get("evaluation_metrics"), METRICS)
    for split in SPLITS:
        warnings += _near(f"dataset.{split}", dataset.get(split), DATASET)
    for name, options in outputs.items():
        warnings += _near(f"outputs.{name}", options, OUTPUT)
    return problems, warnings


def _mapping(block: Any) -> dict[str, Any]:
    return block if isinstance(block, dict) else {}


def _meant(near: Optional[str]) -> str:
    return "" if near is None else f" Did you mean `{near}`?"


def _of_blocks(config: dict[str, Any]) -> tuple[list[Fault], list[Fault]]:
    problems: list[Fault] = []
    warnings: list[Fault] = []
    is_multitask = "multitask" in str(config.get("trainer"))
    for name in config:
        if name in (*BLOCKS, *SETTINGS, *HARMLESS) or (is_multitask and name in MULTITASK_BLOCKS):
            continue
        near = nearest(name, BLOCKS)
        sentence = f"fairchem reads no block of this name and drops it.{_meant(near)}"
        (problems if near else warnings).append(Fault(str(name), sentence))
    return problems, warnings


def _near(path: str, block: Any, known: Collection[str], skip: Collection[str] = ()) -> list[Fault]:
    """Unknown names in a block that are near a known one."""
    if not isinstance(block, dict):
        return []
    nearby = {name: nearest(name, known) for name in block if name not in known}
    return [
        Fault(f"{path}.{name}", f"fairchem reads no option of this name.{_meant(near)}")
        for name, near in nearby.items()
        if near is not None and near not in skip
    ]


def _scheduler_options(name: Any) -> tuple[str, ...]:
    """What a scheduler of torch takes; fairchem looks for them in `optim`."""
    from torch.optim import lr_scheduler

    scheduler = getattr(lr_scheduler, str(name), None)
    return tuple(inspect.signature(scheduler).parameters) if inspect.isclass(scheduler) else ()
