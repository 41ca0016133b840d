"""A distilled student in a process where this package cannot be imported."""

from __future__ import annotations

import copy
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from architectures import MODELS, build
from ase.io import write
from conftest import STUDENT_MODEL, TEACHER_MODEL, Run, distill_config, run_fairchem, same_weights, stock_config
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.datasets import LmdbDataset, data_list_collater
from numpy.lib.npyio import NpzFile
from tolerances import PREDICTION
from torch_geometric.data import Data

from fairchem_crack.training.scale_factors import scale_factors

# Runs stock fairchem commands and OCPCalculator; `import fairchem_crack` fails as on a machine without it.
WITHOUT_US = """
import gc, json, sys
sys.modules["fairchem_crack"] = None
import ase.io
from fairchem.core import OCPCalculator
from fairchem.core._cli import main
from fairchem.core.common import distutils
for command, *arguments in json.loads(sys.argv[1]):
    print("COMMAND", flush=True)
    gc.collect()  # the last command's data set closes its LMDB when collected; one process opens it only once
    if command == "fairchem":
        sys.argv = ["fairchem", *arguments]
        main()
        distutils.cleanup()
    else:
        atoms = ase.io.read(arguments[1])
        atoms.calc = OCPCalculator(checkpoint_path=arguments[0], cpu=True)
        print("RESULT", json.dumps([atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False).tolist()]))
try:
    import fairchem_crack
    raise SystemExit("fairchem_crack could be imported")
except ImportError:
    pass
"""

# The same with everything of this package imported and registered.
WITH_US = """
import json, sys
import fairchem_crack.commands.cache_teacher.job, fairchem_crack.commands.check.sections
import fairchem_crack.testing, fairchem_crack.training.trainer
from fairchem.core._cli import main
[sys.argv] = json.loads(sys.argv[1])
main()
"""


def run_commands(code: str, *commands: list) -> list[str]:
    """In one process; what each command printed."""
    command = [sys.executable, "-c", code, json.dumps([[str(part) for part in command] for command in commands])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("COMMAND\n")[1:]


def gemnet_with_scales() -> dict:
    """Relaxations refuse a GemNet without fitted scale factors."""
    model = {**MODELS["gemnet_t"], "max_neighbors": 12}
    return {**model, "scale_file": dict.fromkeys(scale_factors(build("gemnet_t")), 1.0)}


STUDENTS = {"painn": lambda: STUDENT_MODEL, "gemnet_t": gemnet_with_scales, "equiformer_v2": lambda: TEACHER_MODEL}


class Used(NamedTuple):
    """A distilled student, and what stock fairchem made of its checkpoints in a process without this package."""

    trained: Run
    predictions: NpzFile  # of our trainer
    system: Data  # which the calculator was given
    printed: dict[tuple[str, str], str]  # by command and checkpoint
    directory: Path


def plain_config(data: Path, student: dict) -> dict:
    config = {**stock_config(data), "model": student, "logger": "tensorboard"}
    config["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    config["outputs"]["energy"]["prediction_dtype"] = config["outputs"]["forces"]["prediction_dtype"] = "float32"
    config["task"] = {"relax_opt": {"maxstep": 0.04, "memory": 5}, "relaxation_steps": 2, "write_pos": True}
    config["dataset"]["relax"] = {"src": str(data / "val_ood_ads")}
    return config


def fairchem(mode: str, yaml_file: Path, directory: Path, checkpoint: Path, *more: str) -> list:
    """A command; its results go to a folder of the mode's and the checkpoint's name."""
    name = f"{mode}-{checkpoint.stem}"
    common = ("--config-yml", yaml_file, "--cpu", "--run-dir", directory, "--timestamp-id", name, "--print-every", "1")
    return ["fairchem", "--mode", mode, *common, "--checkpoint", checkpoint, *more]


@pytest.fixture(scope="module", params=STUDENTS)
def used(request, data, teacher_checkpoint, tmp_path_factory) -> Used:
    """Of a small student, trained for two of its epochs."""
    directory = tmp_path_factory.mktemp(request.param)
    student = dict(STUDENTS[request.param]())
    config = {**distill_config(data, teacher_checkpoint), "model": student}
    config["optim"]["max_epochs"] = 2
    trained = run_fairchem(directory, copy.deepcopy(config))
    checkpoints = [trained.checkpoints / name for name in ("best_checkpoint.pt", "checkpoint.pt")]

    config["dataset"]["test"]["src"] = config["dataset"]["val"].pop("src")
    config["outputs"]["energy"]["prediction_dtype"] = config["outputs"]["forces"]["prediction_dtype"] = "float32"
    results = run_fairchem(directory, config, mode="predict", name="predict", checkpoint=checkpoints[0]).results

    gc.collect()  # closes the training's LMDB
    system = LmdbDataset({"src": str(data / "val_id")})[0]
    gc.collect()
    write(directory / "system.traj", batch_to_atoms(data_list_collater([system], otf_graph=True))[0])
    file = directory / "plain.yml"
    file.write_text(yaml.safe_dump(plain_config(data, student)))
    commands = {
        (mode, checkpoint.stem): ["calculator", checkpoint, directory / "system.traj"]
        if mode == "calculator"
        else fairchem(mode, file, directory, checkpoint, *["--optim.max_epochs=3"] * (mode == "train"))
        for mode in ("validate", "predict", "run-relaxations", "train", "calculator")  # which leaves fairchem's log off
        for checkpoint in checkpoints
    }
    printed = dict(zip(commands, run_commands(WITHOUT_US, *commands.values())))
    return Used(trained, np.load(results / "ocp_predictions.npz"), system, printed, directory)


@pytest.mark.slow
def test_ocp_calculator_gives_what_the_trainer_gave(used):
    energy, forces = json.loads(used.printed["calculator", "best_checkpoint"].split("RESULT", 1)[1].strip().splitlines()[0])
    row = list(used.predictions["ids"]).index(f"{used.system.sid}_{used.system.fid}")
    free = used.system.fixed.numpy() == 0
    assert used.printed["calculator", "checkpoint"].count("RESULT") == 1
    assert energy == pytest.approx(float(used.predictions["energy"][row, 0]), abs=PREDICTION)
    predicted = np.split(used.predictions["forces"], used.predictions["chunk_idx"])[row]
    assert predicted == pytest.approx(np.array(forces)[free], abs=PREDICTION)


@pytest.mark.slow
def test_stock_fairchem_validates_predicts_and_relaxes_with_it(used):
    errors = [record["forces_mae"] for record in used.trained.validations]
    # the training checkpoint holds the averaged weights apart; they are those of the last validation
    for checkpoint, error in {"best_checkpoint": min(errors), "checkpoint": errors[-1]}.items():
        printed = re.findall(r"forces_mae: ([\d.]+)", used.printed["validate", checkpoint])
        assert float(printed[-1]) == pytest.approx(error, abs=2e-4)  # it is printed with four digits
        predictions = np.load(used.directory / f"results/predict-{checkpoint}/ocp_predictions.npz")
        assert np.isfinite(predictions["energy"]).all()
        relaxed = np.load(used.directory / f"results/run-relaxations-{checkpoint}/relaxed_positions.npz")
        assert len(relaxed["ids"]) > 0


@pytest.mark.slow
def test_stock_fairchem_resumes_from_either_checkpoint(used):
    # the training checkpoint at step 12 of 18; the best one is weights only, to begin another training with
    for checkpoint, step in {"checkpoint": 13, "best_checkpoint": 1}.items():
        file = used.directory / f"checkpoints/train-{checkpoint}/checkpoint.pt"
        assert torch.load(file, map_location="cpu", weights_only=False)["step"] == 18
        assert float(re.search(r", step: (\S+)", used.printed["train", checkpoint])[1]) == step


@pytest.mark.slow
def test_a_stock_run_is_the_same_with_and_without_this_package(data, tmp_path):
    config = stock_config(data)
    config["optim"].update(max_epochs=4, load_balancing=False)  # 24 steps; see `plain_config`
    config["logger"] = "tensorboard"
    file = tmp_path / "stock.yml"
    file.write_text(yaml.safe_dump(config))
    weights = []
    for name, code in (("without", WITHOUT_US), ("with", WITH_US)):
        flags = ("--config-yml", file, "--cpu", "--seed", "0", "--run-dir", tmp_path, "--timestamp-id", name)
        run_commands(code, ["fairchem", "--mode", "train", *flags])
        weights.append(torch.load(tmp_path / f"checkpoints/{name}/checkpoint.pt", weights_only=False)["state_dict"])
    assert same_weights(*weights)
