"""`fairchem-crack check`: what training would do, seen from its data, student and teacher, and every problem at once.

Each section examines one thing and returns a line to print. What it finds wrong is collected; what it needs and an earlier
section could not make leaves it out. Nothing is written, and the teacher is loaded once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Callable, Optional

import fairchem.core
import torch
from fairchem.core.common.utils import setup_imports
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys, partition
from fairchem_crack.cached import CachedDataset, CachedTeacher, open_cache
from fairchem_crack.check_context import SPLITS, Check, LeftOut, TrainerParts, dataset_key
from fairchem_crack.checks import (
    check_dataset,
    check_has_validation,
    check_metrics,
    check_own_terms,
    check_run_dir,
    distill_faults,
    missing_distill,
    term_faults,
)
from fairchem_crack.config import DistillConfig, TeacherConfig, parse
from fairchem_crack.distillation import Distillation, build_loss, wanted_fields
from fairchem_crack.features import attach_features
from fairchem_crack.initialization import copy_weights
from fairchem_crack.measure import REPEATS, loss_bytes, peak_growth, seconds
from fairchem_crack.relations import unordered_pairs
from fairchem_crack.scales import scale_factors
from fairchem_crack.teacher import Teacher, load_teacher

TRAINERS = ("crack_distill", "fairchem_crack.CrackDistillTrainer", "fairchem_crack.trainer.CrackDistillTrainer")

STOCK_IMPORTS = Path(fairchem.core.__path__[0]).parent / "experimental/.include"  # what fairchem imports by itself


def check_config(config: dict, config_yml: str) -> list[str]:
    """Print what training by this config would do, and return every problem found.

    Args:
        config: what fairchem's `build_config` makes of YAML, flags and overrides.
        config_yml: its path, for the commands that are printed.
    """
    setup_imports(config)
    check = Check(config, config_yml)
    for section in SECTIONS:
        check.section, before, line = section.__name__.strip("_"), len(check.problems), ""
        try:
            with check.collecting():
                line = section(check)
        except LeftOut as reason:
            line = f"left out: {reason}"
        found = len(check.problems) - before
        print(f"{check.section:<9}", "; ".join(filter(None, [line, f"{found} problem{'s'[: found > 1]}" if found else ""])))
    return check.problems


def _config(check: Check) -> str:
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


def _data(check: Check) -> str:
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
                check.take_sample(split, dataset)
                sizes.append(f"{split} {len(dataset)}")
                if len(dataset) == 0:
                    check.problems.append(f"dataset.{split}: holds no system.")
    if "src" not in trainer.config["dataset"]:
        check.problems.append("dataset.train.src: missing; training needs data.")
    return f"systems in {', '.join(sizes)}" if sizes else ""


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


def _labels(check: Check) -> str:
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


def _student(check: Check) -> str:
    """Built with random weights, as training starts it."""
    trainer = check.need("trainer")
    with check.collecting("model"):
        trainer.load_model()
        check.student = trainer._unwrapped_model
    student, width = check.need("student"), None
    if check.terms:
        with check.collecting():
            features = attach_features(student, "student")
            width, check.student_has_adapter = features.width, True
            features.close()
    return _facts(trainer.config["model"]["name"], student, "D_s", width)


def _facts(name: str, model: nn.Module, letter: str, width: Optional[int]) -> str:
    weight = next(model.parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = "" if width is None else f"{letter} = {width}, "
    return (
        f"{name}, {parameters / 1e6:.3f}M parameters, {widths}{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    )


def _training(check: Check) -> str:
    """fairchem's losses, normalizers, optimizer and schedule."""
    trainer, config = check.need("trainer"), check.config.get("optim") or {}
    if check.student is None:
        trainer.model = nn.Linear(1, 1)  # a stand-in: what is examined here does not depend on the student
    with check.collecting("loss_functions"):
        trainer.load_loss()
    if check.samples.get("train"):
        with check.collecting("dataset.train.transforms"):
            trainer.load_references_and_normalizers()
    with check.collecting("optim"):
        trainer.load_optimizer()
        trainer.load_extras()
        check.optimizer = None if check.student is None else trainer.optimizer
    ranks = max(check.config.get("world_size") or 1, 1)
    line = f"{config.get('max_epochs')} epochs, batches of {check.batch_size} systems on each of {ranks} ranks"
    return line + (", mixed precision" if trainer.scaler else "")


def _scales(check: Check) -> str:
    """Scale factors of the student: fitted ones come from `model.scale_file`."""
    factors = scale_factors(check.need("student"))
    unfitted = [name for name, factor in factors.items() if not factor.fitted]
    line = f"{len(factors) - len(unfitted)} of {len(factors)} scale factors fitted"
    if unfitted:
        names = ", ".join(unfitted[:3]) + (", ..." if len(unfitted) > 3 else "")
        flags = " --cpu" if check.config.get("cpu") else ""
        line += (
            f"\n{'':<9} WARNING: not fitted are {names}. Run\n"
            f"{'':<9}   fairchem-crack fit-scales --config-yml {check.config_yml} --output scale_factors.json{flags}\n"
            f"{'':<9} and set model.scale_file: scale_factors.json"
        )
    return line


def _teacher(check: Check) -> str:
    """Loaded once; if the student is sound, with all that a training step has beyond the student's own."""
    config, trainer = check.need("teacher_config"), check.need("trainer")
    teacher = check.teacher = _cached_teacher(check, config) if config.cache else load_teacher(config, trainer.device)
    if check.distill and check.terms and check.student_has_adapter and check.optimizer is not None:
        check.distillation = Distillation(
            check.distill,
            check.terms,
            teacher=teacher,
            student=check.need("student"),
            optimizer=check.optimizer,
            normalize=trainer._normalize,
            total_steps=1,
            device=trainer.device,
            seed=check.config.get("seed") or 0,
        )
        if check.distill.init_from_teacher is not None:
            with check.collecting():
                started = teacher if isinstance(teacher, Teacher) else load_teacher(config, trainer.device)
                copy_weights(started.model, check.need("student"), check.distill.init_from_teacher.blocks)
    if isinstance(teacher, CachedTeacher):
        plan, size = teacher.cache.plan, sum(file.stat().st_size for file in teacher.checkpoint.iterdir())
        kept = f"{plan.systems} systems, {plan.dtype}, {_mb(size)}"
        return f"{teacher.name}, D = {teacher.width}, from the cache {teacher.checkpoint} ({kept}; a sample of it is sound)"
    return f"{_facts(teacher.name, teacher.model, 'D', teacher.width)}, from {teacher.checkpoint}"


def _cached_teacher(check: Check, config: TeacherConfig) -> CachedTeacher:
    trainer = check.need("trainer")
    cache = open_cache(config, trainer.device)
    if check.samples.get("train"):
        fields = wanted_fields(check.distill, check.terms) if check.distill else set()
        fields |= {keys.ENERGY, keys.FORCES} & set(cache.plan.fields)
        check.take_sample("train", CachedDataset(trainer.train_dataset, cache, "dataset.train", fields))
    return CachedTeacher(cache)


def _pairs(check: Check) -> str:
    """The relation graph of the sample, and whether both models can represent its systems."""
    distillation, batch, before = check.need("distillation"), check.batch(), len(check.problems)
    with check.collecting():
        distillation.check_elements(batch.atomic_numbers, "dataset.train")
    with check.collecting():
        distillation.check_neighbors(batch)
    if len(check.problems) > before:
        return ""
    with check.collecting("teacher"):
        outputs, growth = peak_growth(lambda: distillation.teacher(batch, distillation.wanted), distillation.device)
    with check.collecting("student"), torch.no_grad():
        distillation.student.eval()(batch)
    if len(check.problems) > before:
        return ""
    graph = distillation.config.relations.graph
    distillation.preflight(batch)
    edges = outputs.edge_index if graph == "teacher" else distillation.student_features.edge_index
    pairs, systems = unordered_pairs(edges, batch.num_nodes).shape[1], len(batch.natoms)
    check.pairs_per_system = pairs / systems
    check.activations = None if growth is None else growth / systems
    return (
        f"{check.pairs_per_system:.1f} per system, {check.pairs_per_system * check.batch_size:.0f} per batch of "
        f"{check.batch_size} (the {graph}'s graph, mean over a sample of {systems} systems)"
    )


def _agreement(check: Check) -> str:
    """The teacher against the labels of the sample: one that was trained on other data has little to teach."""
    teacher, batch = check.need("teacher"), check.batch()
    if not (keys.ENERGY in batch and keys.FORCES in batch):
        raise LeftOut("the training data has no energies and forces")
    said = teacher(batch, {keys.ENERGY, keys.FORCES})
    is_free = batch.fixed == 0 if "fixed" in batch else slice(None)
    labels = batch[keys.FORCES][is_free]
    energy = (said[keys.ENERGY].view(-1) - batch[keys.ENERGY].view(-1)).abs().mean().item()
    forces, size = (said[keys.FORCES][is_free] - labels).abs().mean().item(), labels.abs().mean().item()
    line = f"teacher on the labels of the sample: energy MAE {energy:.3g} eV, force MAE {forces:.3g} eV/A"
    if forces < size:
        return f"{line} (zero forces have {size:.3g})"
    return (
        f"{line}\n{'':<9} WARNING: zero forces have {size:.3g}. Was the teacher trained on data of this kind, with these "
        "elements, in this unit?"
    )


def _memory(check: Check) -> str:
    """The loss by arithmetic, the teacher's weights by counting, its activations by measuring."""
    pairs, teacher, batch = check.need("pairs_per_system"), check.need("teacher"), check.batch()
    device = check.need("trainer").device.type
    threshold = check.need("distill").relations.false_negative_threshold
    loss = loss_bytes(
        pairs=pairs * check.batch_size,
        atoms=batch.num_nodes / len(batch.natoms) * check.batch_size,
        width=teacher.width,
        device=device,
        fused=device == "cpu" and partition.kernels is not None and threshold is None,
    )
    how = "peak on the GPU" if device == "cuda" else "growth of the resident memory"
    activations = "not measured" if check.activations is None else f"{_mb(check.activations * check.batch_size)} ({how})"
    has_relations = any(term.key == keys.RELATIONS for term in check.terms)
    said = f"loss of the relations {_mb(loss)} (estimate), " if has_relations else ""
    if isinstance(teacher, CachedTeacher):
        return f"{said}no teacher is run"
    weights = sum(x.numel() * x.element_size() for x in (*teacher.model.parameters(), *teacher.model.buffers()))
    return f"{said}teacher's weights {_mb(weights)}, its activations {activations}"


def _mb(size: float) -> str:
    return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 2}f} MB"


def _step(check: Check) -> str:
    """Seconds of the parts of a training step; optimizer and data loading are not among them."""
    if check.problems:
        raise LeftOut("only a config without problems is timed")
    trainer, distillation = check.need("trainer"), check.distillation
    batch = check.batch(check.batch_size)
    systems = len(batch.natoms)
    scale = check.batch_size / systems
    trainer.model.train()
    if distillation is not None:
        distillation.ask(batch, 1)  # with `labels: teacher` it gives the labels
    parts = {"student": scale * seconds(lambda: _student_step(trainer, batch), trainer.device)}
    if distillation is not None:
        parts["teacher"] = scale * seconds(lambda: distillation.ask(batch, 1), trainer.device)
        # every relation is compared with every other one, of the batch or of its system
        power = 2 if distillation.config.relations.negatives == "batch" else 1
        parts["distillation terms"] = scale**power * seconds(
            lambda outputs: _terms_step(trainer, distillation, batch, outputs),
            trainer.device,
            prepare=lambda: trainer._forward(batch),
        )
    line = f"{sum(parts.values()):.3g} s: " + ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    scaled = "" if systems == check.batch_size else f", scaled from {systems} systems"
    return f"{line} (median of {REPEATS}{scaled}; without optimizer and data loading)"


def _student_step(trainer: TrainerParts, batch: Batch) -> None:
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        loss = trainer._compute_loss(trainer._forward(batch), batch)
    loss.backward()
    trainer.model.zero_grad()


def _terms_step(trainer: TrainerParts, distillation: Distillation, batch: Batch, outputs: dict[str, Tensor]) -> None:
    """Back to what the student has read of it and no further: the rest of its backward is in the student's time."""
    compared = [distillation.student_features.node_embedding, *outputs.values()]
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        loss = distillation.loss(batch, 1, outputs)
    torch.autograd.grad(loss, [*compared, *distillation.projection.parameters()], allow_unused=True)


SECTIONS: tuple[Callable[[Check], str], ...] = (
    _config,
    _data,
    _labels,
    _student,
    _training,
    _scales,
    _teacher,
    _pairs,
    _agreement,
    _memory,
    _step,
)
