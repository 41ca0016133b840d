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

from fairchem_crack.scales import scale_factors

# Runs a stock fairchem command, or OCPCalculator, with `import fairchem_crack` failing as on a machine without it.
WITHOUT_US = """
import json, sys
sys.modules["fairchem_crack"] = None
command, arguments = sys.argv[1], sys.argv[2:]
if command == "fairchem":
    from fairchem.core._cli import main
    sys.argv = ["fairchem", *arguments]
    main()
else:
    import pickle
    import ase.io
    from fairchem.core import OCPCalculator
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
import sys
import fairchem_crack.trainer, fairchem_crack.check.command, fairchem_crack.cache_teacher, fairchem_crack.testing
from fairchem.core._cli import main
sys.argv = ["fairchem", *sys.argv[2:]]
main()
"""


def without_us(*arguments: object) -> str:
    command = [sys.executable, "-c", WITHOUT_US, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


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
    config["outputs"]["energy"]["prediction_dtype"] = config["outputs"]["forces"]["prediction_dtype"] = "float32"
    config["task"] = {"relax_opt": {"maxstep": 0.04, "memory": 5}, "relaxation_steps": 2, "write_pos": True}
    config["dataset"]["relax"] = {"src": str(data / "val_ood_ads")}
    path = tmp_path / "plain.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def fairchem(mode: str, yaml_file: Path, directory: Path, checkpoint: Path, *more: str) -> str:
    common = ("--config-yml", yaml_file, "--cpu", "--run-dir", directory, "--timestamp-id", mode, "--print-every", "1")
    return without_us("fairchem", "--mode", mode, *common, "--checkpoint", checkpoint, *more)


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
    printed = without_us("calculator", best, tmp_path / "system.traj")
    energy, forces = json.loads(printed.split("RESULT", 1)[1].strip().splitlines()[0])
    row = list(ours["ids"]).index(f"{system.sid}_{system.fid}")
    free = system.fixed.numpy() == 0
    assert without_us("calculator", trained.checkpoints / "checkpoint.pt", tmp_path / "system.traj").count("RESULT") == 1
    assert energy == pytest.approx(float(ours["energy"][row, 0]), abs=1e-4)
    assert np.split(ours["forces"], ours["chunk_idx"])[row] == pytest.approx(np.array(forces)[free], abs=1e-4)


@pytest.mark.slow
def test_stock_fairchem_validates_predicts_and_relaxes_with_it(trained, plain_yaml, tmp_path):
    best = trained.checkpoints / "best_checkpoint.pt"
    found = [record["forces_mae"] for record in trained.validations]
    # the training checkpoint holds the averaged weights apart; they are those of the last validation
    for checkpoint, expected in ((best, min(found)), (trained.checkpoints / "checkpoint.pt", found[-1])):
        printed = fairchem("validate", plain_yaml, tmp_path, checkpoint)
        assert float(re.findall(r"forces_mae: ([\d.]+)", printed)[-1]) == pytest.approx(expected, abs=2e-4)
        fairchem("predict", plain_yaml, tmp_path, checkpoint)
        predictions = tmp_path / "results/predict/ocp_predictions.npz"
        assert np.isfinite(np.load(predictions)["energy"]).all()
        fairchem("run-relaxations", plain_yaml, tmp_path, checkpoint)
        relaxed = tmp_path / "results/run-relaxations/relaxed_positions.npz"
        assert len(np.load(relaxed)["ids"]) > 0
        predictions.unlink()
        relaxed.unlink()


@pytest.mark.slow
def test_a_stock_run_is_the_same_with_and_without_this_package(data, tmp_path):
    config = stock_config(data)
    config["optim"].update(max_epochs=4)  # 24 steps
    config["logger"] = "tensorboard"
    file = tmp_path / "stock.yml"
    file.write_text(yaml.safe_dump(config))
    weights = []
    for name, code in (("without", WITHOUT_US), ("with", WITH_US)):
        flags = ("--config-yml", file, "--cpu", "--seed", "0", "--run-dir", tmp_path, "--timestamp-id", name)
        command = [sys.executable, "-c", code, "fairchem", "--mode", "train", *map(str, flags)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(torch.load(tmp_path / f"checkpoints/{name}/checkpoint.pt", weights_only=False)["state_dict"])
    assert same_weights(*weights)


@pytest.mark.slow
def test_stock_fairchem_goes_on_training_from_either_checkpoint(trained, plain_yaml, tmp_path):
    # the training checkpoint at step 12 of 18; the best one is weights alone, to begin another training with
    for name, first in (("checkpoint.pt", 13), ("best_checkpoint.pt", 1)):
        printed = fairchem("train", plain_yaml, tmp_path, trained.checkpoints / name, "--optim.max_epochs=3")
        state = torch.load(tmp_path / "checkpoints/train/checkpoint.pt", map_location="cpu", weights_only=False)
        assert state["step"] == 18
        assert float(re.search(r", step: (\S+)", printed)[1]) == first
