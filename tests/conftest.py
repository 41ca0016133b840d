"""What the tests share: a tiny data set, a tiny teacher, and the stock fairchem command run in this process."""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

# Toy models gain nothing from threads, which cost six times the time on a machine that has other work. Both, and before
# torch and numba are imported: fairchem sets torch's number to numba's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# Images of containers often set it. Each process that a test starts would then compile torch and fairchem anew, 8 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import lmdb
import numpy as np
import pytest
import torch
import yaml
from architectures import EQUIFORMER_V2_WIDTHS

HAS_GPU = torch.cuda.is_available()
# Without a GPU the Triton kernels are interpreted; before Triton is imported, which torch does when it is needed.
os.environ.setdefault("TRITON_INTERPRET", str(int(not HAS_GPU)))
if not HAS_GPU:
    import pretend_cuda  # before the first backward of the process

DATASET = {"format": "lmdb", "key_mapping": {"y": "energy", "force": "forces"}}
TEACHER_MODEL = {
    **EQUIFORMER_V2_WIDTHS,
    "name": "equiformer_v2",
    "num_layers": 1,
    "lmax_list": [1],
    "mmax_list": [1],
    "max_radius": 6.0,
    "max_neighbors": 8,
    "otf_graph": True,
}
STUDENT_MODEL = {"name": "painn", "hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 5.0, "max_neighbors": 12}
# relaxations refuse a PaiNN without fitted scale factors
STUDENT_MODEL["scale_file"] = {f"upd_out_scalar_scale_{layer}": 1.0 for layer in range(2)}


TERMS = {  # all of ours
    "relations": {"fn": "crack", "coefficient": 1, "lmax": 1},
    "node_embeddings": {"fn": "mse", "coefficient": 1},
    "vector_embeddings": {"fn": "mse", "coefficient": 1},
    "node_contrast": {"fn": "info_nce", "coefficient": 1},
    "relation_vectors": {"fn": "mse", "coefficient": 1, "normalize": False},
    "relation_lengths": {"fn": "huber", "coefficient": 1},
    "system_embedding": {"fn": "mse", "coefficient": 1},
    "embedding_response": {"fn": "mse", "coefficient": 1},
    "force_response": {"fn": "l2mae", "coefficient": 1},
    "atom_energies": {"fn": "mae", "coefficient": 1},
    "teacher_energy": {"fn": "mae", "coefficient": 1},
    "teacher_forces": {"fn": "l2mae", "coefficient": 1},
    "energy_gradient": {"fn": "l2mae", "coefficient": 1},
    "force_jacobian": {"fn": "mse", "coefficient": 1},
}

# A model of fairchem without an adapter here.
SCN_MODEL = {
    "name": "scn",
    **{"num_interactions": 1, "lmax": 1, "num_resolutions": 1, "sphere_channels": 8, "sphere_channels_reduce": 8},
    **{"hidden_channels": 8, "num_sphere_samples": 8, "num_basis_functions": 8},
}


GPU = pytest.param("cuda", marks=pytest.mark.gpu) if HAS_GPU else "pretended"


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every collection of garbage, of which a training needs one before it begins."""
    gc.collect()
    gc.freeze()


# What processes by "forkserver" have imported when they start, 4 s sooner than spawned ones; nothing of ours, so that each
# of them imports that itself, as a spawned one.
multiprocessing.set_forkserver_preload(["torch_geometric", "fairchem.core._cli"])


@pytest.fixture
def quick_processes(monkeypatch) -> None:
    """The processes that a command spawns start faster. They have the environment and the output of the first of them."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)


@contextmanager
def pretended_gpu() -> Iterator[pretend_cuda.PretendCuda]:
    """A pretended GPU, for which Triton compiles nothing: the CRACK loss is computed by torch's operations."""
    from fairchem_crack.loss import triton_sums

    with mock.patch.object(triton_sums, "DEVICE_TYPES", ()), pretend_cuda.PretendCuda() as gpu:
        yield gpu


def _device(name: str) -> Iterator[torch.device]:
    if name != "pretended":
        yield torch.device(name)
        return
    with pretended_gpu():
        yield pretend_cuda.CUDA


@pytest.fixture(params=["cpu", GPU])
def device(request) -> Iterator[torch.device]:
    """Where a test puts its tensors: the CPU, and the GPU or a pretended one, on which mistakes with devices fail too."""
    yield from _device(request.param)


@pytest.fixture(params=[GPU])
def gpu(request) -> Iterator[torch.device]:
    """The GPU, or a pretended one."""
    yield from _device(request.param)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Directory with the splits train (12 systems), val_id, ... (6 systems each)."""
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(directory: Path) -> Path:
    from fairchem_crack.demo import prepare

    sizes = {split: 12 if split == "train" else 6 for split in prepare.SPLITS}
    with mock.patch.object(prepare, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers)):
        prepare.prepare_demo(directory, sizes=sizes, seed=5, workers=1)  # a process would import torch and fairchem anew
    return directory


@pytest.fixture(scope="session")
def systems(data) -> list:
    """Three systems of the training data."""
    from fairchem.core.datasets import LmdbDataset

    gc.collect()
    dataset = LmdbDataset({"src": str(data / "train")})
    chosen = [dataset[index] for index in range(3)]
    del dataset
    gc.collect()  # closes the LMDB, which a process opens only once
    return chosen


@pytest.fixture
def batch(systems):
    """The systems as a batch."""
    from fairchem.core.datasets import data_list_collater

    return data_list_collater(copy.deepcopy(systems), otf_graph=True)


def write_edited(source: Path, directory: Path, edit: Callable[[int, Any], None]) -> Path:
    """A copy of an LMDB of fairchem, each system as `edit(index, system)` has changed it."""
    from fairchem.core.datasets import LmdbDataset

    gc.collect()
    dataset = LmdbDataset({"src": str(source)})
    systems = [dataset[index] for index in range(len(dataset))]
    del dataset
    gc.collect()
    directory.mkdir()
    with lmdb.open(str(directory / "data.0000.lmdb"), subdir=False, map_size=1 << 26) as env, env.begin(write=True) as file:
        for index, system in enumerate(systems):
            edit(index, system)
            file.put(str(index).encode(), pickle.dumps(system))
    return directory


def stock_config(data: Path) -> dict:
    """The config of an ordinary PaiNN training with fairchem's own trainer."""
    return {
        "trainer": "ocp",
        "model": dict(STUDENT_MODEL),
        "dataset": {
            "train": {**DATASET, "src": str(data / "train")},
            "val": {"src": str(data / "val_id")},
            "test": {"src": str(data / "val_ood_both")},
        },
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "evaluation_metrics": {
            "metrics": {"energy": ["mae"], "forces": ["mae"]},
            "primary_metric": "forces_mae",
        },
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}, {"forces": {"fn": "l2mae", "coefficient": 10}}],
        "optim": {
            "batch_size": 2,
            "num_workers": 0,
            "lr_initial": 1e-3,
            "max_epochs": 1,
            "scheduler": "CosineAnnealingLR",
            "T_max": 12,
            "ema_decay": 0.9,
            "clip_grad_norm": 10,
        },
        "logger": "recorder",
    }


def distill_config(data: Path, teacher: Path) -> dict:
    """The same training, distilled: what a user adds to a YAML."""
    config = stock_config(data)
    config["trainer"] = "fairchem_crack.CrackDistillTrainer"
    config["task"] = {"distill": {"teacher": {"checkpoint": str(teacher)}}}
    config["loss_functions"] += [
        {"relations": {"fn": "crack", "coefficient": 10, "temperature": 0.15}},
        {"node_embeddings": {"fn": "mse", "coefficient": 1}},
    ]
    return config


def with_terms(config: dict, terms: dict) -> dict:
    """The config with these distillation terms, after the student's own two."""
    config = copy.deepcopy(config)
    config["loss_functions"] = [*config["loss_functions"][:2], *({key: options} for key, options in terms.items())]
    return config


def write_cache(config: dict, directory: Path) -> Path:
    """A teacher cache with all fields, of the config's training data."""
    from fairchem_crack.commands.cli import main

    file = directory / "cached.yml"
    file.write_text(yaml.safe_dump(config))
    gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
    flags = ["--config-yml", str(file), "--cpu", "--output", str(directory / "cache")]
    main(["cache-teacher", *flags, "--dtype", "float32", "--vectors", "--jacobian-rows", "2", "--chunk", "5"])
    return directory / "cache"


@pytest.fixture
def stock(data) -> dict:
    return stock_config(data)


@pytest.fixture
def distilled(data, teacher_checkpoint) -> dict:
    return distill_config(data, teacher_checkpoint)


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory) -> Path:
    """A fairchem training checkpoint of an EquiformerV2 with random weights, and EMA weights that differ from them."""
    return write_teacher(tmp_path_factory.mktemp("teacher") / "checkpoint.pt")


def write_teacher(path: Path) -> Path:
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports
    from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage

    setup_imports()
    attributes = copy.deepcopy(TEACHER_MODEL)
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        model = registry.get_model_class(attributes.pop("name"))(**attributes)
        average = ExponentialMovingAverage(model.parameters(), 0.99)
        average.shadow_params = [value + 0.1 * torch.randn_like(value) for value in average.shadow_params]
    checkpoint = {
        "config": {**stock_config(Path()), "model": dict(TEACHER_MODEL)},
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "normalizers": {},
        "ema": average.state_dict(),
    }
    torch.save(checkpoint, path)
    return path


class Run:
    """A finished fairchem run: its files, what it logged in each training step, and its validations."""

    def __init__(self, directory: Path, name: str, records: list[dict]) -> None:
        self.checkpoints = directory / "checkpoints" / name
        self.results = directory / "results" / name
        self.steps = [record for record in records if record["split"] == "train" and "loss" in record]
        self.validations = [record for record in records if record["split"] == "val"]

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.steps]


@pytest.fixture
def run(tmp_path):
    """Callable: run the stock `fairchem` command in this process on a config and return its `Run`."""
    return lambda config, **options: run_fairchem(tmp_path, config, **options)


def run_fairchem(
    directory: Path,
    config: dict,
    *,
    mode: str = "train",
    name: str = "run",
    seed: int = 0,
    checkpoint: Path | None = None,
    stop_at: int | None = None,
    run_dir: Path | None = None,
    print_every: int = 1,
    flags_given: Sequence[str] = ("--cpu",),
) -> Run:
    import fairchem.core._cli
    import recorder
    from fairchem.core.common import distutils
    from fairchem.core.common.flags import flags

    file = directory / f"{name}.yml"
    file.write_text(yaml.safe_dump(config))
    arguments = ["--mode", mode, "--config-yml", str(file), *flags_given, "--timestamp-id", name]
    arguments += ["--run-dir", str(run_dir or directory), "--seed", str(seed), "--print-every", str(print_every)]
    arguments += ["--checkpoint", str(checkpoint)] if checkpoint else []
    options: argparse.Namespace
    options, overrides = flags.get_parser().parse_known_args(arguments)
    recorder.start(stop_at)
    gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
    try:
        fairchem.core._cli.main(options, overrides)
    except recorder.Interrupted:
        assert stop_at is not None
    finally:
        if distutils.initialized():
            distutils.cleanup()
    return Run(directory, name, recorder.records())


def same_weights(first: dict, second: dict) -> bool:
    """Whether two state dicts are bit-equal."""
    return first.keys() == second.keys() and all(np.array_equal(first[key].numpy(), second[key].numpy()) for key in first)
