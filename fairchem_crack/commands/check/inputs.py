"""The sections of `fairchem-crack check` that look at what is given: the options, the data, the labels."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fairchem.core
import torch
from fairchem.core.common.registry import registry
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.commands.check.context import Check, LeftOut, TrainerParts, parts_of
from fairchem_crack.commands.check.fields import field_faults
from fairchem_crack.config import Fault, TeacherConfig, parse, read_options
from fairchem_crack.io.boundaries import OPTION, as_pbc, kinds
from fairchem_crack.io.datasets import SPLITS, dataset_key
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.plugins import ADDED_TO_PATH
from fairchem_crack.teacher.labels import validation_labels
from fairchem_crack.training.config_checks import check_dataset, check_gpus, check_run_dir
from fairchem_crack.training.host_options import (
    label_faults,
    metric_faults,
    optim_faults,
    output_faults,
    own_loss_faults,
    term_loss_faults,
    transform_faults,
    validation_faults,
)
from fairchem_crack.training.labels import labelled_outputs
from fairchem_crack.training.trainer import CrackDistillTrainer

TRAINER = "fairchem_crack.CrackDistillTrainer"
STOCK_IMPORTS = Path(fairchem.core.__path__[0]).parent / "experimental/.include"  # what fairchem imports by itself


def examine_config(check: Check) -> str:
    """The options of this package, and those of fairchem that it leaves to a traceback."""
    config = check.config
    with check.collecting("trainer"):
        check.trainer_class = registry.get_trainer_class(config.get("trainer", "ocp"))
    task, data, outputs = (config.get(name) or {} for name in ("task", "dataset", "outputs"))
    options = read_options(task, config.get("loss_functions"))
    check.add(options.faults)
    check.distill = options.distill
    runs_teacher = options.is_distilling or check.takes_labels
    if runs_teacher and not issubclass(check.trainer_class, CrackDistillTrainer):
        what = "compute the distillation terms of loss_functions" if options.is_distilling else "take labels of a teacher"
        sentence = f"{config.get('trainer')!r} cannot {what}; expected `{TRAINER}`, or a subclass of it."
        check.add([Fault("trainer", sentence)])
    check.teacher_config = _teacher_of(task) if runs_teacher else None
    check.add(term_loss_faults(options.terms))
    check.terms = [term for term in options.terms if term.coefficient > 0 and not any(term_loss_faults([term]))]
    with check.collecting():
        check_run_dir(config.get("run_dir"))
    with check.collecting("logger"):
        _examine_logger(config.get("logger", "wandb"))
    if torch.cuda.device_count() and not config.get("submit"):  # else the training runs on another machine
        with check.collecting():
            check_gpus(config.get("world_size") or 1, cpu=config.get("cpu", False))
    optim, training_data = config.get("optim") or {}, data.get("train") or {}
    check.add(optim_faults(optim))
    check.add(metric_faults(config.get("evaluation_metrics") or {}, _task_name(config)))
    check.add(validation_faults(data.get("val") or {}, optim))
    check.add(output_faults(outputs))
    check.add(transform_faults(training_data, outputs))
    check.add(() if options.distill is None else label_faults(options.distill, training_data))
    check.add(own_loss_faults(options.own_losses, outputs))
    check.own_losses = [own for own in options.own_losses if not any(own_loss_faults([own], outputs))]
    coefficients = [f"{key} {options.get('coefficient')}" for own in check.own_losses for key, options in own.items()]
    coefficients += [f"{term.key} {term.coefficient:g}" for term in check.terms]
    line = f"loss: {', '.join(coefficients)}"
    if not options.is_distilling:
        line += "; no distillation term, so plain training" + (" on labels of the teacher" if check.takes_labels else "")
    return line + _unknown_to_fairchem(str(config.get("trainer", "ocp")), check.trainer_class)


def _examine_logger(logger: Any) -> None:
    name = logger.get("name") if isinstance(logger, dict) else logger
    if not name:
        raise ValueError("logger: expected the name of one, such as `tensorboard`, or a mapping with its `name`.")
    if name != "wandb_singleton":
        registry.get_logger_class(name)


def _unknown_to_fairchem(name: str, trainer: type) -> str:
    """What to print of a trainer that `fairchem-crack` finds, and the stock command does not."""
    if "." in name:
        file = getattr(sys.modules.get(trainer.__module__), "__file__", None)
        if file is None or str(Path(file).parent) not in ADDED_TO_PATH:
            return ""
        return f"; `fairchem` finds `{name}` only with PYTHONPATH={Path(file).parent}, `fairchem-crack train` finds it"
    if trainer.__module__.startswith("fairchem.") or (trainer is CrackDistillTrainer and STOCK_IMPORTS.is_file()):
        return ""
    where = " in an editable install" if trainer is CrackDistillTrainer else ""
    return f"; `fairchem` does not know the short trainer name{where}, `fairchem-crack train` does"


def _teacher_of(task: dict) -> TeacherConfig | None:
    """The teacher, which is looked at where only other options of `task.distill` have a fault."""
    block = task.get("distill")
    try:
        return parse(TeacherConfig, block.get("teacher"), "task.distill.teacher") if isinstance(block, dict) else None
    except ValueError:  # listed with the others
        return None


def examine_data(check: Check) -> str:
    """Each split, and the sample of it that the other sections look at."""
    with check.collecting("config"):
        check.trainer = _trainer(check)
    trainer, sizes = check.need("trainer"), []
    for split in SPLITS:
        options = trainer.config[dataset_key(split)]
        if "src" not in options:
            continue
        with check.collecting():
            check_dataset(split, options, options.get("format", trainer.config["dataset"].get("format", "lmdb")))
            if not check.opens_data:
                continue
            with check.collecting(f"dataset.{split}"):
                dataset = trainer.load_split(split)
            sizes.append(f"{split} {len(dataset)}")
            if len(dataset) == 0:
                check.problems.append(f"dataset.{split}: holds no system.")
            if split == "train":
                dataset = check.training_data = _with_optional_labels(check, dataset)
            elif split == "val" and check.distill is not None and check.distill.teacher.val_cache:
                dataset = validation_labels(check.distill, dataset, _taken_labels(check, split))
            check.take_sample(split, dataset)
    if "src" not in trainer.config["dataset"]:
        check.problems.append("dataset.train.src: missing; training needs data.")
    if not check.opens_data:
        return "there, and not opened (--no-data)"
    return f"systems in {', '.join(sizes)}{_several_pbc(check)}" if sizes else ""


def _with_optional_labels(check: Check, dataset: Dataset) -> Dataset:
    return OptionalLabels(dataset, _taken_labels(check, "train")) if check.takes_labels else dataset


def _taken_labels(check: Check, split: str) -> dict[str, str]:
    """By property, the outputs of which a split has labels of the teacher, for some systems or for all."""
    if check.distill is None or not check.takes_labels:
        return {}
    if split != "train" and not (split == "val" and check.distill.teacher.val_cache):
        return {}
    return labelled_outputs(ModelOutputs("outputs", check.need("trainer").config["outputs"]))


def _several_pbc(check: Check) -> str:
    """What becomes of systems that differ in pbc."""
    met = {tuple(as_pbc(system.pbc).tolist()) for systems in check.samples.values() for system in systems if "pbc" in system}
    if len(met) < 2:
        return ""
    return (
        f"; of several pbc ({', '.join(kinds(torch.tensor(sorted(met))))}): the graph of each system is built by itself, as "
        f"by model.{OPTION}: True, which fairchem's own trainer needs on such data"
    )


def _trainer(check: Check) -> TrainerParts:
    config = check.config
    return parts_of(check.trainer_class)(  # without a distillation term, of which it would load the teacher
        task={key: value for key, value in (config.get("task") or {}).items() if key != "distill"},
        model=config.get("model") or {},
        outputs=config.get("outputs") or {},
        dataset=config.get("dataset") or {},
        optimizer={**(config.get("optim") or {}), "num_workers": 0},
        loss_functions=check.own_losses,
        evaluation_metrics=config.get("evaluation_metrics") or {},
        identifier="",
        local_rank=0,
        timestamp_id="check",
        run_dir=tempfile.gettempdir(),
        name=_task_name(config),
        is_debug=True,  # writes no files
        seed=config.get("seed"),
        logger="none",
        amp=config.get("amp", False),
        cpu=config.get("cpu", False),
    )


def _task_name(config: dict) -> str:
    """What fairchem calls the task of a trainer, by which it chooses metrics where a YAML gives none."""
    return "s2ef" if config.get("trainer") in ("forces", "equiformerv2_forces") else "ocp"


def examine_labels(check: Check) -> str:
    """Whether the systems hold what `outputs` names, in the shapes that fairchem takes; predicting needs no labels."""
    trainer, labels = check.need("trainer"), []
    if not check.opens_data:
        raise LeftOut("the data are not opened")
    for split, systems in check.samples.items():
        with check.collecting(f"dataset.{split}"):
            _examine_fields(check, split, systems)
            _examine_free_atoms(check, split, systems)
    for split, systems in check.samples.items():
        taken = _taken_labels(check, split).values()
        lacking = {
            name: sum(name not in system or (name in taken and _is_unknown(system[name])) for system in systems)
            for name in trainer.output_targets
        }
        present = [name for name, count in lacking.items() if count == 0]
        labels.append(f"{split}: {', '.join(present) or 'none'}" + _taken(check, split, lacking, len(systems)))
        for name, count in lacking.items():
            if count and split in ("train", "val") and name not in taken:
                available = ", ".join(f"`{key}`" for key in sorted(systems[0].keys()))
                check.problems.append(
                    f"dataset.{split}: {count} of a sample of {len(systems)} systems have no `{name}`, which outputs.{name} "
                    f"names; they have {available}. A label of another name is renamed by dataset.train.key_mapping."
                )
    return "; ".join(labels)


def _is_unknown(label: Any) -> bool:
    return isinstance(label, Tensor) and bool(label.isnan().any())


def _taken(check: Check, split: str, lacking: Mapping[str, int], systems: int) -> str:
    """How many systems of a sample take which labels of the teacher."""
    taken = _taken_labels(check, split).values()
    if not taken:
        return ""
    if split == "val":  # they have them already
        return f" ({check.need('distill').labels}: of {check.need('distill').teacher.val_cache})"
    is_filled = check.need("distill").labels == "fill"
    counts = (f"{lacking[name] if is_filled else systems} the teacher's `{name}`" for name in taken)
    return f" (of a sample of {systems} systems, {', '.join(counts)})"


def _examine_fields(check: Check, split: str, systems: list[Data]) -> None:
    """One problem for each kind of fault in the fields of a split, by the first system that has it."""
    outputs = check.need("trainer").output_targets if split in ("train", "val") else {}
    by_mse = {name for own in check.own_losses for name, options in own.items() if options.get("fn") == "mse"}
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    taken = _taken_labels(check, split).values()
    for index, system in enumerate(systems):
        known = {name: value for name, value in outputs.items() if not (name in taken and _is_unknown(system[name]))}
        for kind, fault in field_faults(system, known, by_mse):
            first.setdefault(kind, f"dataset.{split}: {fault}; of a sample of {len(systems)} systems, number {index}")
            count[kind] += 1
    check.problems += [text + (f" and {count[kind] - 1} more" if count[kind] > 1 else "") for kind, text in first.items()]
    if first:
        check.unsound.add(split)


def _examine_free_atoms(check: Check, split: str, systems: list[Data]) -> None:
    """Batches without a free atom: the mean over their forces is that of nothing, which ends a training of fairchem."""
    flag = "train_on_free_atoms" if split == "train" else "eval_on_free_atoms"
    outputs = check.need("trainer").output_targets
    if split not in ("train", "val") or not any(options.get(flag) for options in outputs.values()):
        return
    fixed = [system for system in systems if "fixed" in system and bool((system.fixed != 0).all())]
    if not fixed:
        return
    message = (
        f"dataset.{split}: all atoms are fixed in {len(fixed)} of a sample of {len(systems)} systems, and {flag} is true"
    )
    optim = check.config.get("optim") or {}
    batch_size = check.batch_size if split == "train" else optim.get("eval_batch_size", check.batch_size)
    if batch_size == 1 or len(fixed) == len(systems):
        check.problems.append(f"{message}: their batches have no force to compare. Leave such systems out.")
    else:
        check.warnings.append(f"{message}: a batch of only such systems would end the training. Leave them out.")
