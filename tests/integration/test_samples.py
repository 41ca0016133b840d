"""A checkpoint of every format, kept in tests/samples, is resumed, fine-tuned and evaluated.

Each is the `distilled` fixture after 3 of 6 steps: format 1 as commit 068ab12 wrote it, the others as
tests/tools/make_checkpoint_sample.py does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tolerances import CONVERTED, REPEATED
from tools.make_checkpoint_sample import write_sample

from fairchem_crack import keys
from fairchem_crack.commands.cli import main
from fairchem_crack.training.projection_state import FORMAT

SAMPLES = sorted((Path(__file__).parents[1] / "samples").glob("checkpoint_*.pt"))
# `node_embeddings` in step 4: of format 1 what commit 7cca9bc resumes with, of the others what the script printed.
NEXT_LOSS = {1: 1.75998, 2: 0.99594}
TRAINING_STATE = ("epoch", "step", "optimizer", "scheduler", "ema", "best_val_metric", "primary_metric", keys.CHECKPOINT_KEY)

pytestmark = pytest.mark.slow
of_every_format = pytest.mark.parametrize("sample", SAMPLES, ids=lambda file: file.stem.removeprefix("checkpoint_"))


def load(file: Path) -> dict:
    return torch.load(file, map_location="cpu", weights_only=False)


def format_of(sample: Path) -> int:
    return load(sample)[keys.CHECKPOINT_KEY].get(keys.STATE_FORMAT, 1)


def test_every_format_has_a_small_sample():
    formats = [format_of(sample) for sample in SAMPLES]
    assert formats == list(NEXT_LOSS) == list(range(1, FORMAT + 1)), "run python tests/tools/make_checkpoint_sample.py"
    assert max(file.stat().st_size for file in SAMPLES) < 300_000
    with pytest.raises(FileExistsError, match="Samples are kept"):
        write_sample(SAMPLES[0])


@of_every_format
def test_a_former_checkpoint_resumes(sample, run, distilled, tmp_path):
    (tmp_path / "checkpoints" / "run").mkdir(parents=True)
    resumed = run(distilled, checkpoint=sample)
    assert [record["step"] for record in resumed.steps] == [4, 5, 6]
    expected = NEXT_LOSS[format_of(sample)]
    assert resumed.steps[0]["loss_node_embeddings"] == pytest.approx(expected, rel=CONVERTED)
    assert torch.isfinite(torch.tensor(resumed.losses())).all()
    state = load(resumed.checkpoints / "checkpoint.pt")[keys.CHECKPOINT_KEY]
    assert state[keys.STATE_FORMAT] == FORMAT
    if format_of(sample) == 1:  # the same function, in the same unit
        assert not state[keys.PROJECTION]["shift"].any()


@of_every_format
def test_a_former_student_is_fine_tuned_by_fairchem(sample, run, stock, tmp_path):
    """AdamW moves a weight by about the learning rate in a step, so the result is near the sample's weights."""
    former = load(sample)
    torch.save({key: value for key, value in former.items() if key not in TRAINING_STATE}, tmp_path / "student.pt")
    tuned = run(stock, checkpoint=tmp_path / "student.pt")
    assert [record["step"] for record in tuned.steps] == [1, 2, 3, 4, 5, 6]
    after = load(tuned.checkpoints / "checkpoint.pt")["state_dict"]
    moved = [float((after[name] - weights).abs().max()) for name, weights in former["state_dict"].items()]
    assert 0 < max(moved) < 10 * stock["optim"]["lr_initial"]


@of_every_format
def test_a_former_student_is_evaluated_as_fairchem_does(sample, run, stock, data, tmp_path):
    stock["optim"]["eval_batch_size"] = 32  # as `evaluate`: PaiNN's choice among equal distances depends on the batch
    (validation,) = run(stock, mode="validate", checkpoint=sample).validations
    split, output = f"val_id={data / 'val_id'}", tmp_path / "board"
    main(["evaluate", "--checkpoint", str(sample), "--data", split, "--cpu", "--batch-sizes", "--output", str(output)])
    (row,) = json.loads((tmp_path / "board.json").read_text())["rows"]
    errors = {name: row["metrics"][name] for name in ("energy_mae", "forces_mae")}
    assert errors == pytest.approx({name: validation[name] for name in errors}, abs=REPEATED)
