"""Model cards: what they say comes from the checkpoint, its YAML and its evaluation."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from fairchem_crack.commands.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(tmp_path):
    file = tmp_path / "student.pt"
    config = {
        "model": {"name": "painn", "hidden_channels": 64, "cutoff": 6.0},
        "dataset": {"src": "data/train"},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 4}}],
        "optim": {"optimizer": "AdamW", "lr_initial": 0.005, "batch_size": 16},
        "cmd": {"seed": 3},
    }
    content = {"config": config, "state_dict": {"weight": torch.zeros(4, 5)}, "crack_distill": {"step": 1122}}
    torch.save(content, file)
    return file


@pytest.fixture
def evaluation(tmp_path, checkpoint):
    file = tmp_path / "summary.json"
    interval = {"estimate": 0.05, "low": 0.04, "high": 0.06}
    metrics = {
        "energy_mae": 0.05,
        "forces_mae": 0.03,
        "forces_cosine_similarity": 0.97,
        "energy_forces_within_threshold": 0.1,
    }
    gap = {
        "energy_mae": {"estimate": 0.85, "low": 0.8, "high": 0.9},
        "forces_mae": {"estimate": None, "low": None, "high": None},
    }
    row = {"model": "crack-0", "split": "val_id", "metrics": metrics, "intervals": {"energy_mae": interval}, "gaps": gap}
    speed = {"8": {"atoms_per_second": [100.0, 300.0, 200.0]}}
    models = {str(checkpoint): {"name": "crack-0", "parameters": 20, "speed": speed}}
    file.write_text(json.dumps({"rows": [row, {**row, "model": "other", "split": "elsewhere"}], "models": models}))
    return file


def make(output, **options) -> str:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["card", "--output", str(output), *words])
    return output.read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_card_says_what_its_three_files_say(checkpoint, evaluation, tmp_path):
    training = tmp_path / "train.yml"
    losses = [{"energy": {"fn": "mae", "coefficient": 4}}, {"relations": {"fn": "crack", "coefficient": 40}}]
    distill = {"labels": "teacher", "teacher": {"checkpoint": "teachers/eqV2.pt"}}
    training.write_text("# For catalysts.\n" + yaml.safe_dump({"task": {"distill": distill}, "loss_functions": losses}))
    text = make(tmp_path / "card.md", checkpoint=checkpoint, evaluation=evaluation, config_yml=training, licence="cc-by-4.0")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and "painn" in front["tags"]
    assert "# painn, distilled from eqV2\nFor catalysts.\n\n`painn`" in text and "20 parameters and buffers" in text
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in text
    assert "- loss: `energy` 4, `relations` 40" in text and "- steps: 1,122" in text and "- seed: 3" in text
    assert cells(text, "val_id") == [
        "val_id",
        "0.0500 [0.0400, 0.0600]",
        "0.0300",
        "0.970",
        "10.00%",
        "85% [80%, 90%] / no gap",
    ]
    assert cells(text, "crack-0") == ["crack-0", "20", "8", "200"] and "elsewhere" not in text


@pytest.mark.parametrize("labels", [{}, {"labels": "data"}, {"labels": "teacher"}])
def test_a_card_says_what_errors_are_measured_from(checkpoint, evaluation, tmp_path, labels):
    """An evaluation of before has no word on it: it was the labels of the data."""
    evaluation.write_text(json.dumps({**json.loads(evaluation.read_text()), **labels}))
    text = make(tmp_path / "card.md", checkpoint=checkpoint, evaluation=evaluation)
    assert ("differences from the outputs of its teacher" in text) == (labels == {"labels": "teacher"})


def test_a_card_without_an_evaluation_says_so(checkpoint, tmp_path):
    text = make(tmp_path / "card.md", checkpoint=checkpoint)
    assert text.count("Not measured") == 2 and "distilled" not in text and "- loss: `energy` 4\n" in text


def test_an_evaluation_of_another_checkpoint_is_refused(checkpoint, evaluation, tmp_path):
    other = tmp_path / "other.pt"
    other.write_bytes(checkpoint.read_bytes())
    with pytest.raises(SystemExit, match=re.escape(f"{other} is not in it; it has {checkpoint}")):
        make(tmp_path / "card.md", checkpoint=other, evaluation=evaluation)
    evaluation.write_text("[]")
    with pytest.raises(SystemExit, match="expected the JSON that fairchem-crack evaluate --output writes"):
        make(tmp_path / "card.md", checkpoint=checkpoint, evaluation=evaluation)
    with pytest.raises(SystemExit, match=r"absent\.pt: no such file"):
        make(tmp_path / "card.md", checkpoint=tmp_path / "absent.pt")
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize("name", ["equiformer_v2", "equiformer_v2_deep", "escn"])
def test_the_card_of_a_demo_teacher_is_up_to_date(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    teacher, evaluation = Path(f"configs/oc20/demo/teacher_{name}.pt"), Path("docs/benchmarks/demo_teachers.json")
    card, training = teacher.with_suffix(".md"), teacher.with_suffix(".yml")
    made = make(tmp_path / "card.md", checkpoint=teacher, evaluation=evaluation, config_yml=training)
    assert made == card.read_text(encoding="utf-8"), f"write {card} anew, by fairchem-crack card"
