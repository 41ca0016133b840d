"""`fairchem-crack evaluate`: the figures are stock fairchem's, the files say what the table says, bad input is named."""

from __future__ import annotations

import copy
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_fairchem, stock_config

from fairchem_crack.evaluate import evaluate, format_of, names
from fairchem_crack.leaderboard import COLUMNS
from fairchem_crack.statistics import MOST_UNITS, Errors, error_interval, gap_closed, gap_closed_interval

SPLITS = {"val_id": "val_id", "ads": "val_ood_ads", "cat": "val_ood_cat", "ood": "val_ood_both"}


@pytest.fixture(scope="module")
def models(data, tmp_path_factory) -> dict[str, Path]:
    """Three trainings of one to three epochs."""
    found = {}
    for epochs, name in enumerate(("undistilled", "student", "teacher"), start=1):
        config = stock_config(data)
        config["optim"]["max_epochs"] = epochs
        directory = tmp_path_factory.mktemp(name)
        run_fairchem(directory, config, name=name)
        found[name] = directory / f"checkpoints/{name}/best_checkpoint.pt"
    return found


def validated(checkpoint: Path, data: Path, split: str, directory: Path) -> dict[str, float]:
    """What `fairchem --mode validate` prints."""
    config = stock_config(data)
    config["dataset"]["val"]["src"] = str(data / split)
    del config["dataset"]["test"]
    config["optim"]["eval_batch_size"] = 32  # as ours: among neighbors at equal distance PaiNN's choice depends on the batch
    config["evaluation_metrics"]["metrics"] = {
        "energy": ["mae"],
        "forces": ["mae", "cosine_similarity"],
        "misc": ["energy_forces_within_threshold"],
    }
    config["logger"] = "tensorboard"
    file = directory / "stock.yml"
    file.write_text(yaml.safe_dump(config))
    code = (
        "import fairchem.core.trainers.base_trainer as b, sys, json; from fairchem.core._cli import main;"
        "old = b.BaseTrainer._aggregate_metrics;"
        "b.BaseTrainer._aggregate_metrics = lambda s, m: print('EXACT', json.dumps({k: float(v['metric']) for k, v in"
        " old(s, m).items()})) or old(s, m); main()"
    )  # the log has four digits
    flags = ["--mode", "validate", "--config-yml", str(file), "--cpu", "--checkpoint", str(checkpoint)]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--run-dir", str(directory)], capture_output=True, text=True, cwd=directory
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(re.findall(r"EXACT (\{.*\})", done.stdout)[-1])


@pytest.fixture(scope="module")
def written(models, data, tmp_path_factory) -> Path:
    """The output of one evaluation of all three, on four splits."""
    output = tmp_path_factory.mktemp("out") / "leaderboard"
    flags = ["--checkpoint", str(models["student"]), "--undistilled", str(models["undistilled"])]
    flags += ["--teacher", str(models["teacher"]), "--cpu", "--batch-sizes", "1", "2", "--output", str(output)]
    evaluate([*flags, "--data", *(f"{split}={data / folder}" for split, folder in SPLITS.items())])
    return output


@pytest.mark.slow
@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("split, folder", SPLITS.items())
def test_the_figures_are_those_of_stock_validate(written, models, data, tmp_path, role, split, folder):
    rows = json.loads(Path(f"{written}.json").read_text())["rows"]
    (row,) = [row for row in rows if row["role"] == role and row["split"] == split]
    stock = validated(models[role], data, folder, tmp_path)
    for name in COLUMNS:
        assert row["metrics"][name] == pytest.approx(stock[name], abs=1e-6), name


def test_gap_closed_and_average_follow_from_the_errors(written):
    content = json.loads(Path(f"{written}.json").read_text())
    by = {(row["role"], row["split"]): row for row in content["rows"]}
    for split in SPLITS:
        for error in ("energy_mae", "forces_mae"):
            u, d, t = (by[role, split]["metrics"][error] for role in ("undistilled", "student", "teacher"))
            gap = by["student", split]["gaps"][error]
            if t < u:
                assert gap["estimate"] == pytest.approx((u - d) / (u - t), rel=5e-3)  # of float32 errors
            else:
                assert gap == {"estimate": None, "low": None, "high": None}
            interval = by["student", split]["intervals"][error]
            assert interval["low"] < d < interval["high"]
    for role in ("undistilled", "student", "teacher"):
        mean = sum(by[role, split]["metrics"]["energy_mae"] for split in SPLITS) / len(SPLITS)
        assert by[role, "average"]["metrics"]["energy_mae"] == pytest.approx(mean)
    assert all(set(model["speed"]) == {"1", "2"} for model in content["models"].values())


def test_table_csv_and_json_agree(written, capsys):
    rows = json.loads(Path(f"{written}.json").read_text())["rows"]
    with Path(f"{written}.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["model"], line["split"]) for line in lines] == [(row["model"], row["split"]) for row in rows]
    for line, row in zip(lines, rows):
        assert all(float(line[name]) == pytest.approx(row["metrics"][name]) for name in COLUMNS)
    student = next(line for line in lines if line["role"] == "student" and line["split"] == "ood")
    row = next(row for row in rows if row["role"] == "student" and row["split"] == "ood")
    assert float(student["energy_mae_gap_closed_low"]) == pytest.approx(row["gaps"]["energy_mae"]["low"])
    assert Path(f"{written}.png").stat().st_size > 10_000


def test_a_submission_holds_fairchems_predictions_of_the_four_splits(models, data, tmp_path):
    splits = {"id": "val_id", "ood_ads": "val_ood_ads", "ood_cat": "val_ood_cat", "ood_both": "val_ood_both"}
    file = tmp_path / "made/submission.npz"
    flags = ["--checkpoint", str(models["student"]), "--cpu", "--batch-sizes", "--data", f"val_id={data / 'val_id'}"]
    evaluate([*flags, "--submission", str(file), "--test", *(f"{name}={data / folder}" for name, folder in splits.items())])
    submission = np.load(file)
    assert set(submission) == {f"{split}_{key}" for split in splits for key in ("ids", "energy", "forces", "chunk_idx")}
    config = copy.deepcopy(stock_config(data))
    config["dataset"]["test"]["src"] = str(data / "val_ood_cat")
    config["optim"]["eval_batch_size"] = 32
    run = run_fairchem(tmp_path, config, mode="predict", name="stock", checkpoint=models["student"])
    stock = np.load(run.results / "ocp_predictions.npz")
    for key in ("ids", "energy", "forces", "chunk_idx"):
        assert np.array_equal(submission[f"ood_cat_{key}"], stock[key]), key
    assert [path.name for path in file.parent.iterdir()] == ["submission.npz"]


def test_the_format_follows_from_the_names_of_the_files():
    databases, lmdbs = {"a": Path("a.db"), "b": Path("b.aselmdb")}, {"c": Path("c.lmdb"), "d": Path("d")}
    assert format_of(databases, None)["format"] == "ase_db" and format_of(lmdbs, None)["format"] == "lmdb"
    assert format_of(lmdbs, "ase_db")["format"] == "ase_db"
    with pytest.raises(ValueError, match="expected one format, found ase_db, lmdb"):
        format_of({**databases, **lmdbs}, None)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"--data": ["val_id"]}, "--data val_id: expected SPLIT=PATH"),
        ({"--data": ["a=.", "a=."]}, "the split a is given twice"),
        ({"--data": ["a=nowhere"]}, "nowhere does not exist"),
        ({"--teacher": ["nowhere.pt"]}, "nowhere.pt does not exist"),
        ({"--submission": ["a.npz"]}, "--submission and --test come together"),
    ],
)
def test_bad_input_is_named(models, data, change, part):
    flags = {"--checkpoint": [str(models["student"])], "--data": [f"val_id={data / 'val_id'}"], **change}
    with pytest.raises(SystemExit, match=re.escape(part)):
        evaluate([word for flag, words in flags.items() for word in (flag, *words)] + ["--cpu"])


def test_a_checkpoint_given_twice_is_refused(models, data):
    flags = ["--checkpoint", str(models["student"]), "--teacher", str(models["student"]), "--cpu"]
    with pytest.raises(SystemExit, match="a file is given twice"):
        evaluate([*flags, "--data", f"val_id={data / 'val_id'}"])


def test_files_are_told_apart_by_as_little_as_is_needed():
    paths = [Path("runs/a-0/best.pt"), Path("runs/b-0/best.pt"), Path("teacher.pt")]
    assert list(names(paths).values()) == ["a-0/best", "b-0/best", "teacher"]
    assert list(names([Path("x/one.pt"), Path("x/two.pt")]).values()) == ["one", "two"]


def test_the_interval_of_an_error_is_that_of_the_normal_distribution():
    random = np.random.default_rng(0)
    values = random.normal(3.0, 1.0, size=MOST_UNITS * 3 + 7)  # in groups
    found = error_interval(values, np.ones(len(values)))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.estimate == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    few = error_interval(values[:500], np.ones(500))
    assert (few.high - few.low) / 2 == pytest.approx(1.96 * values[:500].std() / np.sqrt(500), rel=0.06)


def test_groups_change_the_interval_of_a_gap_little():
    random = np.random.default_rng(1)
    count = MOST_UNITS * 2
    u, d, t = (random.gamma(4.0, scale, size=(1, count)) for scale in (1.0, 0.7, 0.2))
    one, other = (
        gap_closed_interval([Errors(u[:, :n], d[:, :n], t[0, :n], np.ones(n))], replicates=2000) for n in (count, count // 2)
    )
    assert (other.high - other.low) / (one.high - one.low) == pytest.approx(2**0.5, rel=0.1)
    assert one.estimate == pytest.approx(gap_closed([Errors(u, d, t[0], np.ones(count))]))
    assert one.low < one.estimate < one.high
