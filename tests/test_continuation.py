"""A resumed training is compared with the one that it resumes: by value, by name, and in where it reads the data."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import distill_config
from fairchem.core.common.data_parallel import StatefulDistributedSampler

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, ShuffleConfig, parse, split_loss_functions
from fairchem_crack.training.block_shuffle import BlockSampler
from fairchem_crack.training.continuation import Resumed, compare, differences
from fairchem_crack.training.identity import content_of, joined, of_distillation, of_training, recorded

SYSTEMS = 12
IN_BLOCKS = {"buffer": 4, "block": 2}


def identity_of(config: dict, *, ranks: int = 1, content: str | None = "data", cache: str | None = None) -> dict:
    """Of a YAML's training."""
    own, terms = split_loss_functions(config["loss_functions"])
    kept = {
        **{name: config[name] for name in ("model", "outputs", "optim", "evaluation_metrics")},
        **{"loss_functions": own, "dataset": config["dataset"]["train"]},
        **{"cmd": {"seed": config.get("seed", 0)}, "amp": config.get("amp", False)},
    }
    student = of_training(kept, ranks=ranks, content=content)
    terms = [term for term in terms if term.coefficient > 0]
    distill = parse(DistillConfig, config["task"]["distill"], "task.distill")
    return joined(student, of_distillation(distill, terms, cache=cache))


@pytest.fixture
def config() -> dict:
    return distill_config(Path("data"), Path("teacher.pt"))


def change(config: dict, path: str, value: Any) -> dict:
    """A copy with another value at a dotted path, or without it."""
    changed = copy.deepcopy(config)
    *way, last = path.split(".")
    place: Any = changed
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return changed


def named(before: dict, now: dict) -> list[str]:
    return [str(difference) for difference in differences(before, now)]


@pytest.mark.parametrize(
    "path, value, expected",
    [
        ("seed", 3, "seed: 0 -> 3"),
        ("amp", True, "amp: False -> True"),
        ("optim.batch_size", 4, "optim.batch_size: 2 -> 4"),
        ("optim.max_epochs", 3, "optim.max_epochs: 1 -> 3"),
        ("optim.lr_initial", 2e-3, "optim.lr_initial: 0.001 -> 0.002"),
        ("optim.T_max", 7, "optim.T_max: 12 -> 7"),
        ("optim.scheduler", "Null", "optim.scheduler: CosineAnnealingLR -> Null"),
        ("optim.optimizer", "SGD", "optim.optimizer: AdamW -> SGD"),
        ("optim.optimizer_params.betas", [0.8, 0.9], "optim.optimizer_params: not given -> given"),
        ("optim.ema_decay", None, "optim.ema_decay: 0.9 -> not given"),
        ("optim.clip_grad_norm", 5, "optim.clip_grad_norm: 10 -> 5"),
        ("model.cutoff", 4.0, "model.cutoff: 5.0 -> 4.0"),
        ("outputs.forces.train_on_free_atoms", False, "outputs.forces.train_on_free_atoms: True -> False"),
        ("evaluation_metrics.primary_metric", "loss", "evaluation_metrics.primary_metric: forces_mae -> loss"),
        ("loss_functions.0.energy.coefficient", 2, "loss_functions.energy.coefficient: 1 -> 2"),
        ("loss_functions.1.forces.fn", "mae", "loss_functions.forces.fn: l2mae -> mae"),
        ("loss_functions.2.relations.temperature", 0.2, "loss_functions.relations.temperature: 0.15 -> 0.2"),
        (
            "loss_functions.3.node_embeddings.schedule",
            {"kind": "cosine"},
            "loss_functions.node_embeddings.schedule.kind: constant -> cosine",
        ),
        ("loss_functions.3.node_embeddings.coefficient", 0, "loss_functions.node_embeddings: given -> not given"),
        (
            "loss_functions.3.node_contrast",
            {"fn": "info_nce", "coefficient": 1},
            "loss_functions.node_contrast: not given -> given",
        ),
        ("task.distill.relations.negatives", "world", "task.distill.relations.negatives: batch -> world"),
        ("task.distill.relations.max_pairs", 30, "task.distill.relations.max_pairs: not given -> 30"),
        ("task.distill.teacher.precision", "bfloat16", "task.distill.teacher.precision: auto -> bfloat16"),
        ("task.distill.projection.kind", "mlp", "task.distill.projection.kind: linear -> mlp"),
        ("task.distill.labels", "teacher", "task.distill.labels: data -> teacher"),
        ("task.distill.shuffle", IN_BLOCKS, "task.distill.shuffle: not given -> given"),
        ("dataset.train.first_n", 4, "dataset.train.first_n: not given -> 4"),
    ],
)
def test_another_value_is_named(config, path, value, expected):
    assert named(identity_of(config), identity_of(change(config, path, value))) == [expected]


@pytest.mark.parametrize(
    "path, value",
    [
        ("optim.batch_size", 2.0),
        ("loss_functions.0.energy.coefficient", 1.0),
        ("optim.optimizer", "AdamW"),
        ("optim.num_workers", 4),
        ("optim.checkpoint_every", 7),
        ("optim.eval_every", 7),
        ("optim.optimizer_params", {}),
        ("task.distill.relations", {"max_pairs": None, "anchor": "student"}),
        ("task.distill.max_skipped_steps", 3),
        ("task.distill.resume", "student"),
        ("task.distill.teacher.checkpoint", "moved/teacher.pt"),
        ("dataset.train.src", "moved/train"),
        ("dataset.val.src", "moved/val"),
    ],
)
def test_what_leads_to_the_same_result_is_not(config, path, value):
    assert named(identity_of(config), identity_of(change(config, path, value))) == []


def test_ranks_data_and_the_cache_are_named(config):
    before = identity_of(config)
    assert named(before, identity_of(config, ranks=2)) == ["ranks: 1 -> 2"]
    assert named(before, identity_of(config, content="others")) == ["dataset.train.content: data -> others"]
    assert named(before, identity_of(config, cache="float16")) == ["task.distill.teacher.cache: not given -> float16"]
    moved = identity_of(change(config, "dataset.train.src", "elsewhere"), content=None)  # of which only the path is known
    assert named(before, moved) == [f"dataset.train.src: {config['dataset']['train']['src']} -> elsewhere"]


def test_intervals_of_validations_count_for_a_plateau(config):
    config["optim"].update(scheduler="ReduceLROnPlateau", eval_every=3)
    assert named(identity_of(config), identity_of(change(config, "optim.eval_every", 6))) == ["optim.eval_every: 3 -> 6"]


def test_the_content_of_data_is_that_of_their_systems(batch):
    content = content_of(batch, 3)
    assert content_of(batch.clone(), 3) == content and content.startswith("3 systems (")
    for name in ("pos", "y", "force"):  # the labels under the names that they are compared by
        altered = batch.clone()
        altered[{"y": "energy", "force": "forces"}.get(name, name)] = altered[name] + 0.1
        assert content_of(altered, 3) != content, name
    assert content_of(batch, 4) != content


# ---- what a checkpoint says


def checkpoint_of(config: dict, entry: dict | None = None) -> dict:
    own, _ = split_loss_functions(config["loss_functions"])
    stock = {**config, "loss_functions": own, "dataset": config["dataset"]["train"], "cmd": {"seed": 0}, "gpus": 0}
    return {"config": stock, **({keys.CHECKPOINT_KEY: entry} if entry else {})}


def test_an_option_newer_than_a_checkpoint_has_its_default(config):
    stored = identity_of(config)
    del stored["task"]["distill"]["projection"], stored["loss_functions"]["relations"]["lmax"]
    checkpoint = checkpoint_of(config, {keys.PROJECTION: {}, keys.DISTILL_CONFIG: stored})
    assert named(recorded(checkpoint), identity_of(config)) == []
    config["task"]["distill"]["projection"] = {"kind": "mlp"}
    assert named(recorded(checkpoint), identity_of(config)) == ["task.distill.projection.kind: linear -> mlp"]


def test_a_checkpoint_without_identity_is_compared_by_its_config(config):
    now = identity_of(change(config, "optim.batch_size", 4))
    old = checkpoint_of(config, {keys.PROJECTION: {}})  # of a version without: its terms are not known
    assert named(recorded(old), now) == ["optim.batch_size: 2 -> 4"]
    undistilled = checkpoint_of(config)
    assert named(recorded(undistilled), now) == [
        "optim.batch_size: 2 -> 4",
        "loss_functions.relations: not given -> given",
        "loss_functions.node_embeddings: not given -> given",
        "task.distill: none -> given",
    ]


def test_an_identity_is_plain(config, tmp_path):
    config["task"]["distill"]["init_from_teacher"] = {"blocks": [0, 1]}
    torch.save(identity_of(config), tmp_path / "identity.pt")
    assert torch.load(tmp_path / "identity.pt", weights_only=True) == identity_of(config)


# ---- what is done about it


def resumed_by(before: dict, now: dict, *, step: int = 4, epoch: float = 4 / 6, steps_per_epoch: int = 6) -> None:
    compare(Resumed("run/checkpoint.pt", step, epoch, before), now, steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize(
    "path, value, name",
    [
        ("optim.optimizer", "SGD", "optim.optimizer: AdamW -> SGD"),
        ("optim.scheduler", "StepLR", "optim.scheduler: CosineAnnealingLR -> StepLR"),
        ("optim.scheduler", None, "optim.scheduler: CosineAnnealingLR -> not given"),
        ("optim.scheduler_params.lambda_type", "cosine", "optim.scheduler_params.lambda_type: not given -> cosine"),
        ("optim.optimizer_params.weight_decay", 0.1, "optim.weight_decay: 0 -> 0.1"),
        ("optim.weight_decay", 0.1, "optim.weight_decay: 0 -> 0.1"),
        ("task.distill.projection.kind", "mlp", "task.distill.projection.kind: linear -> mlp"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(config, path, value, name):
    if "lambda_type" in path:
        config["optim"]["scheduler_params"] = {"lr": 1e-3}
    with pytest.raises(ValueError, match=f"run/checkpoint.pt cannot be resumed with another {name}. .* give what it was"):
        resumed_by(identity_of(config), identity_of(change(config, path, value)))


def test_options_of_the_checkpoints_state_are_listed_apart(config, caplog):
    changed = change(change(change(config, "optim.T_max", 7), "optim.clip_grad_norm", 5), "optim.lr_initial", 2e-3)
    resumed_by(identity_of(config), identity_of(changed))
    kept, taken = (
        next(record.message for record in caplog.records if words in record.message) for words in ("no effect", "neither")
    )
    assert kept.endswith("have no effect: optim.lr_initial: 0.001 -> 0.002; optim.T_max: 12 -> 7.")
    assert "neither's: optim.clip_grad_norm: 10 -> 5." in taken
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_an_ended_average_has_an_effect_and_a_new_one_none(config, caplog):
    without = identity_of(change(config, "optim.ema_decay", None))
    resumed_by(identity_of(config), without)
    assert "neither's: optim.ema_decay: 0.9 -> not given" in caplog.text
    resumed_by(without, identity_of(config))
    assert "have no effect: optim.ema_decay: not given -> 0.9" in caplog.text


def test_the_same_training_is_not_warned_of(config, caplog):
    resumed_by(identity_of(config), identity_of(copy.deepcopy(config)))
    assert caplog.records == []


def drawn(*, batch_size: int, ranks: int, seed: int, is_in_blocks: bool, first: int, last: int | None = None) -> list[int]:
    """The systems of all ranks in the steps of an epoch from `first` to before `last`."""
    systems: list[int] = []
    for rank in range(ranks):
        options = {"num_replicas": ranks, "rank": rank, "shuffle": True, "seed": seed}
        sampler = StatefulDistributedSampler(list(range(SYSTEMS)), batch_size, **options)
        if is_in_blocks:
            sampler = BlockSampler(sampler, ShuffleConfig(**IN_BLOCKS))
        sampler.set_epoch_and_start_iteration(0, first)
        systems += list(sampler)[: None if last is None else (last - first) * batch_size]
    return systems


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("is_in_blocks", [False, True])
@pytest.mark.parametrize(
    "batch_size, ranks, seed", [(2, 1, 0), (1, 2, 0), (2, 1, 5), (1, 1, 0), (2, 2, 0), (4, 1, 0), (1, 2, 5)]
)
def test_a_position_is_faulty_where_the_epoch_is_not_completed(config, caplog, step, batch_size, ranks, seed, is_in_blocks):
    """Of 12 systems, 2 in a step of the run that was interrupted; independently, by what the samplers draw."""
    if is_in_blocks:
        config["task"]["distill"]["shuffle"] = IN_BLOCKS
    steps_per_epoch = SYSTEMS // (batch_size * ranks)
    seen = drawn(batch_size=2, ranks=1, seed=0, is_in_blocks=is_in_blocks, first=0, last=step)
    now_first = step % steps_per_epoch
    rest = drawn(batch_size=batch_size, ranks=ranks, seed=seed, is_in_blocks=is_in_blocks, first=now_first)
    is_completed = step < steps_per_epoch and sorted(seen + rest) == list(range(SYSTEMS))
    now = {**change(config, "optim.batch_size", batch_size), "seed": seed}
    resumed_by(
        identity_of(config), identity_of(now, ranks=ranks), step=step, epoch=step / 6, steps_per_epoch=steps_per_epoch
    )
    assert ("systems are repeated or left out" in caplog.text) is not is_completed


def test_the_epochs_of_a_position_are_those_of_both_runs(config, caplog):
    now = identity_of(change(config, "optim.batch_size", 4))
    resumed_by(identity_of(config), now, step=4, epoch=4 / 6, steps_per_epoch=3)
    assert "that was epoch 0.6667, of 6 steps each. With 3 in an epoch fairchem resumes at epoch 1.333" in caplog.text
