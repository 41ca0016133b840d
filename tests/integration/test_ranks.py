"""Two ranks started by the stock command: `--num-gpus 2 --cpu`."""

from __future__ import annotations

import contextlib
import gc
import math
import pickle
import re
import shutil
import socket
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from conftest import distill_config, write_edited
from fairchem.core.datasets import LmdbDataset
from forked_ranks import LOG, Launch, launch_forked
from launcher import ALONE, PORT, SCRIPT, launch
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.io.progress import progress_of

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def launches(data, teacher_checkpoint, tmp_path_factory) -> dict[tuple[str, str], Launch]:
    """Finished trainings on two ranks, by the training data and the negatives."""
    sources = {
        "one label not finite": write_edited(data / "train", tmp_path_factory.mktemp("edited") / "train", without_one_label),
        "half without pairs": half_without_pairs(data, tmp_path_factory.mktemp("half_without_pairs")),
    }
    launches = {}
    for negatives in ("batch", "world"):
        for kind, source in sources.items():
            config = distill_config(data, teacher_checkpoint)
            config.update(trainer="digest_trainer.DigestTrainer", logger="tensorboard")
            config["dataset"]["train"]["src"] = str(source)
            config["task"]["distill"]["relations"] = {"negatives": negatives}
            config["optim"].update(max_epochs=3, eval_every=100)
            if kind == "half without pairs":
                config["optim"].update(max_epochs=1, batch_size=1)
            else:
                config["task"]["distill"]["relations"]["anchor"] = "symmetric"
            launches[kind, negatives] = Launch(config, tmp_path_factory.mktemp("run"), {})
    assert all(launch_forked(list(launches.values())))
    return launches


def without_one_label(index: int, system: Data) -> None:
    system.y = math.nan if index == 5 else system.y


def digests(launch: Launch) -> list[dict]:
    """What both ranks saw and ended with."""
    return [torch.load(launch.directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["batch", "world"])
def test_both_ranks_end_with_the_same_student_and_projection(launches, negatives):
    """A label that is not finite skips the step on both, once in each epoch."""
    launch = launches["one label not finite", negatives]
    (first, second), log = digests(launch), (launch.directory / LOG).read_text()
    assert len(first["losses"]) == len(second["losses"]) == 9
    taken = [math.isfinite(loss) and math.isfinite(theirs) for loss, theirs in zip(first["losses"], second["losses"])]
    assert taken.count(False) == 3 and log.count("3 of the 9 steps since the start were skipped") == 2
    assert re.search(r"rank 0: systems of .*label `energy` of .*; rank 1: .*every term of the loss is finite", log)
    checkpoints = sorted((launch.directory / "checkpoints/run").glob("*.pt"))
    assert [progress_of(torch.load(file, weights_only=False)).step for file in checkpoints] == [9, 9]
    assert first["first_sids"] != second["first_sids"] and first["losses"] != second["losses"]
    assert first["weights"].keys() == second["weights"].keys()
    assert any(key.startswith("projection") for key in first["weights"])
    for key, value in first["weights"].items():
        assert value.isfinite().all() and torch.equal(value, second["weights"][key]), key
    assert not torch.equal(first["weights"]["projection.trainable.weight"], first["initial_projection"])


def half_without_pairs(data: Path, directory: Path) -> Path:
    """The training data, and as many systems of one atom whose only neighbors are its own images."""
    gc.collect()
    ordinary = LmdbDataset({"src": str(data / "train")})
    systems = [ordinary[index] for index in range(len(ordinary))]
    del ordinary
    isolated = [
        Data(
            pos=torch.zeros(1, 3),
            cell=3.0 * torch.eye(3)[None],
            atomic_numbers=torch.tensor([29.0]),
            tags=torch.tensor([1]),
            fixed=torch.tensor([0.0]),
            **{"natoms": 1, "y": 0.1, "force": torch.zeros(1, 3), "sid": 1000 + index, "fid": 0},
        )
        for index in range(len(systems))
    ]
    with lmdb.open(str(directory / "data.0000.lmdb"), subdir=False, map_size=1 << 26) as env, env.begin(write=True) as file:
        for index, system in enumerate([*systems, *isolated]):
            file.put(str(index).encode(), pickle.dumps(system))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["batch", "world"])
def test_a_rank_without_pairs_takes_part_in_the_step(launches, negatives):
    first, second = digests(launches["half without pairs", negatives])
    assert len(first["losses"]) == len(second["losses"]) == 12
    assert any((pairs == 0) != (theirs == 0) for pairs, theirs in zip(first["pairs"], second["pairs"]))
    assert all(math.isfinite(loss) for loss in first["losses"] + second["losses"])
    for key, value in first["weights"].items():
        assert value.isfinite().all() and torch.equal(value, second["weights"][key]), key


@pytest.mark.slow
def test_train_gives_ranks_code_of_ones_own_and_a_free_port(distilled, tmp_path):
    """By the console script, in whose directory, not in the current one, Python looks for modules."""
    shutil.copy(TESTS / "own_code.py", tmp_path / "my_own_code.py")
    distilled["trainer"] = "own_distill"
    distilled["task"]["distill"]["imports"] = ["my_own_code"]
    distilled["loss_functions"] = [
        *distilled["loss_functions"][:2],
        {"own_lengths": {"fn": "own_cubes", "coefficient": 1, "power": 2}},
    ]
    distilled["logger"] = "tensorboard"
    distilled["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    with ALONE, contextlib.ExitStack() as taken:
        with contextlib.suppress(OSError):  # which another process has taken already
            taken.enter_context(socket.create_server(("localhost", PORT)))
        done = launch(distilled, tmp_path, entry=SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "checkpoints/run"
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=False)
    assert state["step"] == 3 and keys.CHECKPOINT_KEY in state
    assert (run / "rank-0").is_file() and (run / "rank-1").is_file()


@pytest.mark.slow
def test_a_submitit_job_trains(distilled, tmp_path):
    import submitit
    from fairchem.core._cli import Runner
    from fairchem.core.common import distutils
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config

    distilled["logger"] = "tensorboard"
    distilled["optim"]["load_balancing"] = False
    file = tmp_path / "job.yml"
    file.write_text(yaml.safe_dump(distilled))
    arguments = ["--mode", "train", "--config-yml", str(file), "--cpu", "--run-dir", str(tmp_path), "--timestamp-id", "run"]
    config = build_config(*flags.get_parser().parse_known_args(arguments))
    distutils.setup_env_local()  # as the stock command does before it runs on one node
    submitit.LocalExecutor(folder=tmp_path / "jobs").submit(Runner(), config).result()
    assert (tmp_path / "checkpoints/run/best_checkpoint.pt").is_file()
