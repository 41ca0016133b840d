"""A distilled student in a process where this package cannot be imported."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from architectures import MODELS, build
from conftest import STUDENT_MODEL, TEACHER_MODEL, same_weights, stock_config
from tolerances import PREDICTION

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


@pytest.fixture(params=STUDENTS)
def student(request) -> dict:
    """The student's model, small."""
    return dict(STUDENTS[request.param]())


@pytest.fixture
def trained(run, distilled, student):
    distilled["optim"]["max_epochs"] = 2
    distilled["model"] = student
    return run(distilled)


@pytest.fixture
def plain_yaml(data, tmp_path, student):
    config = {**stock_config(data), "model": student, "logger": "tensorboard"}
    config["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    config["outputs"]["energy"]["prediction_dtype"] = config["outputs"]["forces"]["prediction_dtype"] = "float32"
    config["task"] = {"relax_opt": {"maxstep": 0.04, "memory": 5}, "relaxation_steps": 2, "write_pos": True}
    config["dataset"]["relax"] = {"src": str(data / "val_ood_ads")}
    path = tmp_path / "plain.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def fairchem(mode: str, yaml_file: Path, directory: Path, checkpoint: Path, *more: str) -> list:
    """A command; its results go to a folder of the mode's and the checkpoint's name."""
    name = f"{mode}-{checkpoint.stem}"
    common = ("--config-yml", yaml_file, "--cpu", "--run-dir", directory, "--timestamp-id", name, "--print-every", "1")
    return ["fairchem", "--mode", mode, *common, "--checkpoint", checkpoint, *more]


@pytest.mark.slow
def test_ocp_calculator_gives_what_the_trainer_gave(run, distilled, trained, data, tmp_path):
    from ase.io import write
    from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
    from fairchem.core.datasets import LmdbDataset, data_list_collater

    best = trained.checkpoints / "best_checkpoint.pt"
    gc.collect()  # closes the training's LMDB
    system = LmdbDataset({"src": str(data / "val_id")})[0]
    write(tmp_path / "system.traj", batch_to_atoms(data_list_collater([system], otf_graph=True))[0])
    distilled["dataset"]["test"]["src"] = distilled["dataset"]["val"].pop("src")
    distilled["outputs"]["energy"]["prediction_dtype"] = distilled["outputs"]["forces"]["prediction_dtype"] = "float32"
    ours = np.load(run(distilled, mode="predict", name="predict", checkpoint=best).results / "ocp_predictions.npz")
    checkpoints = (best, trained.checkpoints / "checkpoint.pt")
    printed, training = run_commands(WITHOUT_US, *(["calculator", file, tmp_path / "system.traj"] for file in checkpoints))
    energy, forces = json.loads(printed.split("RESULT", 1)[1].strip().splitlines()[0])
    row = list(ours["ids"]).index(f"{system.sid}_{system.fid}")
    free = system.fixed.numpy() == 0
    assert training.count("RESULT") == 1
    assert energy == pytest.approx(float(ours["energy"][row, 0]), abs=PREDICTION)
    assert np.split(ours["forces"], ours["chunk_idx"])[row] == pytest.approx(np.array(forces)[free], abs=PREDICTION)


@pytest.mark.slow
def test_stock_fairchem_validates_predicts_and_relaxes_with_it(trained, plain_yaml, tmp_path):
    best = trained.checkpoints / "best_checkpoint.pt"
    found = [record["forces_mae"] for record in trained.validations]
    # the training checkpoint holds the averaged weights apart; they are those of the last validation
    expected = {best: min(found), trained.checkpoints / "checkpoint.pt": found[-1]}
    modes = ("validate", "predict", "run-relaxations")
    commands = [fairchem(mode, plain_yaml, tmp_path, checkpoint) for checkpoint in expected for mode in modes]
    validated = run_commands(WITHOUT_US, *commands)[:: len(modes)]
    for (checkpoint, error), printed in zip(expected.items(), validated):
        assert float(re.findall(r"forces_mae: ([\d.]+)", printed)[-1]) == pytest.approx(error, abs=2e-4)
        predictions = np.load(tmp_path / f"results/predict-{checkpoint.stem}/ocp_predictions.npz")
        assert np.isfinite(predictions["energy"]).all()
        assert len(np.load(tmp_path / f"results/run-relaxations-{checkpoint.stem}/relaxed_positions.npz")["ids"]) > 0


@pytest.mark.slow
def test_a_stock_run_is_the_same_with_and_without_this_package(data, tmp_path):
    config = stock_config(data)
    config["optim"].update(max_epochs=4, load_balancing=False)  # 24 steps; see `plain_yaml`
    config["logger"] = "tensorboard"
    file = tmp_path / "stock.yml"
    file.write_text(yaml.safe_dump(config))
    weights = []
    for name, code in (("without", WITHOUT_US), ("with", WITH_US)):
        flags = ("--config-yml", file, "--cpu", "--seed", "0", "--run-dir", tmp_path, "--timestamp-id", name)
        run_commands(code, ["fairchem", "--mode", "train", *flags])
        weights.append(torch.load(tmp_path / f"checkpoints/{name}/checkpoint.pt", weights_only=False)["state_dict"])
    assert same_weights(*weights)


@pytest.mark.slow
def test_stock_fairchem_goes_on_training_from_either_checkpoint(trained, plain_yaml, tmp_path):
    # the training checkpoint at step 12 of 18; the best one is weights alone, to begin another training with
    first = {trained.checkpoints / "checkpoint.pt": 13, trained.checkpoints / "best_checkpoint.pt": 1}
    commands = [fairchem("train", plain_yaml, tmp_path, checkpoint, "--optim.max_epochs=3") for checkpoint in first]
    for (checkpoint, step), printed in zip(first.items(), run_commands(WITHOUT_US, *commands)):
        file = tmp_path / f"checkpoints/train-{checkpoint.stem}/checkpoint.pt"
        assert torch.load(file, map_location="cpu", weights_only=False)["step"] == 18
        assert float(re.search(r", step: (\S+)", printed)[1]) == step
