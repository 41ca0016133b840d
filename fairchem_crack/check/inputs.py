"""The sections of `fairchem-crack check` that look at what is given: the options, the data, the labels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fairchem.core
import torch

from fairchem_crack.boundaries import OPTION, as_pbc, kinds
from fairchem_crack.check.context import Check, TrainerParts
from fairchem_crack.checks import (
    check_dataset,
    check_gpus,
    check_has_validation,
    check_metrics,
    check_own_terms,
    check_run_dir,
    distill_faults,
    missing_distill,
    term_faults,
)
from fairchem_crack.config import DistillConfig, TeacherConfig, parse
from fairchem_crack.distillation import build_loss
from fairchem_crack.io.datasets import SPLITS, dataset_key

TRAINERS = ("crack_distill", "fairchem_crack.CrackDistillTrainer", "fairchem_crack.trainer.CrackDistillTrainer")

STOCK_IMPORTS = Path(fairchem.core.__path__[0]).parent / "experimental/.include"  # what fairchem imports by itself


def examine_config(check: Check) -> str:
    """The options of this package, and those of fairchem that it leaves to a traceback."""
    config = check.config
    faults, check.own_losses, terms = term_faults(config.get("loss_functions") or [])
    check.problems += faults
    for term in terms:
        with check.collecting():
            build_loss(term, DistillConfig(TeacherConfig("any")))
            check.terms += [term] if term.coefficient > 0 else []
    is_distilling = any(term.coefficient > 0 for term in terms) or bool(faults)
    if is_distilling:
        _distill_block(check)
    with check.collecting():
        check_run_dir(config.get("run_dir"))
    if torch.cuda.device_count() and not config.get("submit"):  # else the training runs on another machine
        with check.collecting():
            check_gpus(config.get("world_size") or 1, cpu=config.get("cpu", False))
    with check.collecting():
        check_metrics(config.get("evaluation_metrics") or {})
    with check.collecting():
        check_has_validation((config.get("dataset") or {}).get("val") or {}, config.get("optim") or {})
    outputs, sound = config.get("outputs") or {}, []
    for own in check.own_losses:
        with check.collecting():
            check_own_terms([own], outputs)
            sound.append(own)
    check.own_losses = sound
    coefficients = [f"{key} {options.get('coefficient')}" for own in check.own_losses for key, options in own.items()]
    coefficients += [f"{term.key} {term.coefficient:g}" for term in check.terms]
    line = f"loss: {', '.join(coefficients)}" + ("" if is_distilling else "; no distillation term, so plain training")
    if config.get("trainer") == TRAINERS[0] and not STOCK_IMPORTS.is_file():
        line += "; `fairchem` does not know the short trainer name in an editable install, `fairchem-crack train` does"
    return line


def _distill_block(check: Check) -> None:
    trainer = check.config.get("trainer")
    if trainer not in TRAINERS:
        check.problems.append(
            f"trainer: {trainer!r} cannot compute the distillation terms of loss_functions; expected `{TRAINERS[1]}`."
        )
    if not check.own_losses:
        check.problems.append("loss_functions: has distillation terms alone; the student needs its own too, `energy` say.")
    task = check.config.get("task") or {}
    if "distill" not in task:
        check.problems.append(missing_distill(task))
        return
    block = task["distill"]
    faults = distill_faults(block)
    check.problems += faults
    if not faults:
        check.distill = parse(DistillConfig, block, "task.distill")
    if not any(fault.startswith(("task.distill:", "task.distill.teacher")) for fault in faults):
        check.teacher_config = parse(TeacherConfig, block["teacher"], "task.distill.teacher")


def examine_data(check: Check) -> str:
    """Each split, and the sample of it that the other sections look at."""
    with check.collecting("config"):
        check.trainer = _trainer(check.config, check.own_losses)
    trainer, sizes = check.need("trainer"), []
    for split in SPLITS:
        options = trainer.config[dataset_key(split)]
        if "src" not in options:
            continue
        with check.collecting():
            check_dataset(split, options, options.get("format", trainer.config["dataset"].get("format", "lmdb")))
            with check.collecting(f"dataset.{split}"):
                dataset = trainer.load_split(split)
            sizes.append(f"{split} {len(dataset)}")
            if len(dataset) == 0:
                check.problems.append(f"dataset.{split}: holds no system.")
            check.take_sample(split, dataset)
    if "src" not in trainer.config["dataset"]:
        check.problems.append("dataset.train.src: missing; training needs data.")
    return f"systems in {', '.join(sizes)}{_several_pbc(check)}" if sizes else ""


def _several_pbc(check: Check) -> str:
    """What becomes of systems that differ in pbc."""
    met = {tuple(as_pbc(system.pbc).tolist()) for systems in check.samples.values() for system in systems if "pbc" in system}
    if len(met) < 2:
        return ""
    return (
        f"; of several pbc ({', '.join(kinds(torch.tensor(sorted(met))))}): the graph of each system is built by itself, as "
        f"by model.{OPTION}: True, which fairchem's own trainer needs on such data"
    )


def _trainer(config: dict, own_losses: list[dict]) -> TrainerParts:
    return TrainerParts(  # without a distillation term, of which it would load the teacher
        task={key: value for key, value in (config.get("task") or {}).items() if key != "distill"},
        model=config.get("model") or {},
        outputs=config.get("outputs") or {},
        dataset=config.get("dataset") or {},
        optimizer={**(config.get("optim") or {}), "num_workers": 0},
        loss_functions=own_losses,
        evaluation_metrics=config.get("evaluation_metrics") or {},
        identifier="",
        local_rank=0,
        timestamp_id="check",
        run_dir=tempfile.gettempdir(),
        is_debug=True,  # writes no files
        seed=config.get("seed"),
        logger="none",
        amp=config.get("amp", False),
        cpu=config.get("cpu", False),
    )


def examine_labels(check: Check) -> str:
    """Whether the systems hold what `outputs` names; predicting needs no labels."""
    trainer, said = check.need("trainer"), []
    for split, systems in check.samples.items():
        lacking = {name: sum(name not in system for system in systems) for name in trainer.output_targets}
        present = [name for name, count in lacking.items() if count == 0]
        said.append(f"{split}: {', '.join(present) or 'none'}")
        is_labelled = split == "train" and check.distill is not None and check.distill.labels == "teacher"
        for name, count in lacking.items():
            if count and split in ("train", "val") and not is_labelled:
                held = ", ".join(f"`{key}`" for key in sorted(systems[0].keys()))
                check.problems.append(
                    f"dataset.{split}: {count} of a sample of {len(systems)} systems have no `{name}`, which outputs.{name} "
                    f"asks for; they hold {held}. A label of another name is renamed by dataset.train.key_mapping."
                )
    return "; ".join(said)
