"""`fairchem-crack evaluate`: the figures are stock fairchem's, the files say what the table says, bad input is named."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.db import connect
from conftest import run_fairchem, stock_config
from tolerances import GAP_CLOSED, REORDERED, REPEATED
from tools.make_published_checkpoint import write_published_checkpoint

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.intervals import MOST_UNITS, Errors, Interval, error_interval, gap_closed, gap_closed_interval
from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.s2ef.gates import gates_of, outcomes
from fairchem_crack.evaluation.s2ef.leaderboard import Group, Row, leaderboard, table
from fairchem_crack.evaluation.s2ef.picture import draw
from fairchem_crack.evaluation.s2ef.runs import Evaluation
from fairchem_crack.evaluation.tables import ERRORS, METRICS

PUBLISHED = {"num_layers": 1, "sphere_channels": 8, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 8}
PUBLISHED |= {"attn_value_channels": 4, "ffn_hidden_channels": 8, "lmax_list": [2], "mmax_list": [1], "edge_channels": 8}
PUBLISHED |= {"grid_resolution": 8, "max_radius": 6.0}
INTERVAL = 0.06  # of a bootstrap's half width: the spread of its replicates
SPLITS = {"val_id": "val_id", "ads": "val_ood_ads", "cat": "val_ood_cat", "ood": "val_ood_both"}


@pytest.fixture(scope="module")
def models(data, tmp_path_factory) -> dict[str, Path]:
    """Three trainings of one to three epochs; and an EquiformerV2 as OC20's are published, with averaged weights."""
    checkpoints = {}
    for epochs, name in enumerate(("undistilled", "student", "teacher"), start=1):
        config = stock_config(data)
        config["optim"]["max_epochs"] = epochs
        directory = tmp_path_factory.mktemp(name)
        run_fairchem(directory, config, name=name)
        checkpoints[name] = directory / f"checkpoints/{name}/best_checkpoint.pt"
    checkpoints["published"] = tmp_path_factory.mktemp("published") / "eqV2_31M.pt"
    write_published_checkpoint("eqV2_31M", checkpoints["published"], seed=3, **PUBLISHED)
    return checkpoints


def describe_model(config: dict, checkpoint: Path) -> None:
    """Put the model of a published checkpoint into a YAML."""
    described = torch.load(checkpoint, map_location="cpu", weights_only=True)["config"]
    if "model_attributes" in described:
        config["model"] = {"name": described["model"], **described["model_attributes"], "otf_graph": True}
        config["optim"]["ema_decay"] = described["optim"]["ema_decay"]  # by which fairchem takes the averaged weights


def validated(checkpoint: Path, data: Path, split: str, directory: Path) -> dict[str, float]:
    """What `fairchem --mode validate` logs."""
    config = stock_config(data)
    config["dataset"]["val"]["src"] = str(data / split)
    del config["dataset"]["test"]
    config["optim"]["eval_batch_size"] = 32  # as ours: among neighbors at equal distance PaiNN's choice depends on the batch
    config["evaluation_metrics"]["metrics"] = {
        "energy": ["mae"],
        "forces": ["mae", "cosine_similarity"],
        "misc": ["energy_forces_within_threshold"],
    }
    describe_model(config, checkpoint)
    (logged,) = run_fairchem(directory, config, mode="validate", checkpoint=checkpoint).validations
    return logged


@pytest.fixture(scope="module")
def written(models, data, tmp_path_factory) -> Path:
    """The output of one evaluation of all four, on four splits."""
    output = tmp_path_factory.mktemp("out") / "leaderboard"
    flags = ["--checkpoint", str(models["student"]), str(models["published"]), "--undistilled", str(models["undistilled"])]
    flags += ["--teacher", str(models["teacher"]), "--cpu", "--batch-sizes", "1", "2", "--output", str(output)]
    main(["evaluate", *flags, "--data", *(f"{split}={data / folder}" for split, folder in SPLITS.items())])
    return output


def rows_of(written: Path, models: dict[str, Path]) -> dict[tuple[str, str], dict]:
    """By model, as `models` calls it, and split."""
    content = json.loads(Path(f"{written}.json").read_text())
    called = {content["models"][str(path)]["name"]: model for model, path in models.items()}
    return {(called[row["model"]], row["split"]): row for row in content["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["student", "teacher", "published"])
@pytest.mark.parametrize("split, folder", SPLITS.items())
def test_the_figures_are_those_of_stock_validate(written, models, data, tmp_path, model, split, folder):
    row = rows_of(written, models)[model, split]
    stock = validated(models[model], data, folder, tmp_path)
    for name in METRICS:
        assert row["metrics"][name] == pytest.approx(stock[name], abs=REPEATED), name


@pytest.mark.slow
def test_several_processes_give_the_same_metrics(written, models, data, tmp_path, capfd):
    flags = ["--checkpoint", str(models["student"]), str(models["published"]), "--undistilled", str(models["undistilled"])]
    flags += ["--teacher", str(models["teacher"]), "--cpu", "--num-gpus", "2", "--batch-sizes", "--output"]
    flags += [str(tmp_path / "two"), "--data", *(f"{split}={data / folder}" for split, folder in SPLITS.items())]
    main(["evaluate", *flags])
    rows, of_two_ranks = rows_of(written, models), rows_of(tmp_path / "two", models)
    assert rows.keys() == of_two_ranks.keys()
    for key, row in rows.items():
        assert of_two_ranks[key]["metrics"] == pytest.approx(row["metrics"], rel=REPEATED)
    output = capfd.readouterr().err
    assert "eqV2_31M.pt on cat" in output and "leaked" not in output


class Killer:
    """Ends the process that unpickles it, as the kernel does one that takes too much memory; the parent does not read it."""

    def __reduce__(self) -> tuple:
        return os._exit, (9,)


@pytest.mark.slow
def test_a_killed_process_is_named(models, data, tmp_path):
    torch.save(Killer(), tmp_path / "killer.pt")
    flags = [
        "--checkpoint",
        str(models["student"]),
        str(tmp_path / "killer.pt"),
        "--cpu",
        "--num-gpus",
        "2",
        "--batch-sizes",
    ]
    with pytest.raises(SystemExit, match="a process was killed"):
        main(["evaluate", "--trust", *flags, "--data", f"val_id={data / SPLITS['val_id']}"])


def test_gap_closed_and_average_follow_from_the_errors(written, models):
    content, by = json.loads(Path(f"{written}.json").read_text()), rows_of(written, models)
    for split in SPLITS:
        for error in ("energy_mae", "forces_mae"):
            u, d, t = (by[role, split]["metrics"][error] for role in ("undistilled", "student", "teacher"))
            gap = by["student", split]["gaps"][error]
            if t < u:
                assert gap["estimate"] == pytest.approx((u - d) / (u - t), rel=GAP_CLOSED)
            else:
                assert gap == {"estimate": None, "low": None, "high": None}
            interval = by["student", split]["intervals"][error]
            assert interval["low"] < d < interval["high"]
    for role in ("undistilled", "student", "teacher"):
        mean = sum(by[role, split]["metrics"]["energy_mae"] for split in SPLITS) / len(SPLITS)
        assert by[role, "average"]["metrics"]["energy_mae"] == pytest.approx(mean)
        interval = by[role, "average"]["intervals"]["energy_mae"]
        assert interval["estimate"] == pytest.approx(mean, rel=REORDERED) and interval["low"] < mean < interval["high"]
    u, d, t = (by[role, "average"]["metrics"]["forces_mae"] for role in ("undistilled", "student", "teacher"))
    gap = by["student", "average"]["gaps"]["forces_mae"]
    assert gap["estimate"] == (pytest.approx((u - d) / (u - t), rel=GAP_CLOSED) if t < u else None)
    assert all(set(model["speed"]) == {"1", "2"} for model in content["models"].values())


def test_table_csv_and_json_agree(written, capsys):
    rows = json.loads(Path(f"{written}.json").read_text())["rows"]
    with Path(f"{written}.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["model"], line["split"]) for line in lines] == [(row["model"], row["split"]) for row in rows]
    for line, row in zip(lines, rows):
        assert all(float(line[name]) == pytest.approx(row["metrics"][name]) for name in METRICS)
    student = next(line for line in lines if line["role"] == "student" and line["split"] == "ood")
    row = next(row for row in rows if row["role"] == "student" and row["split"] == "ood")
    assert float(student["atoms_per_second_2"]) > 0
    assert float(student["energy_mae_gap_closed_low"]) == pytest.approx(row["gaps"]["energy_mae"]["low"])
    assert Path(f"{written}.png").stat().st_size > 10_000
    models = json.loads(Path(f"{written}.json").read_text())["models"].values()
    steps = {model["name"]: (model["step"], model["epoch"]) for model in models}
    trained = dict.fromkeys(("undistilled", "student", "teacher"), (None, None))
    assert steps == {**trained, "eqV2_31M": (1000, 1.0)}  # fairchem's own best_checkpoint.pt has none


@pytest.mark.slow
@pytest.mark.parametrize("model", ["student", "published"])
def test_a_submission_holds_fairchems_own_predictions(models, data, tmp_path, model):
    splits = {"id": "val_id", "ood_ads": "val_ood_ads", "ood_cat": "val_ood_cat", "ood_both": "val_ood_both"}
    file = tmp_path / "made/submission.npz"
    flags = ["--checkpoint", str(models[model]), "--cpu", "--batch-sizes", "--data", f"val_id={data / 'val_id'}"]
    test = [f"{name}={data / folder}" for name, folder in splits.items()]
    main(["evaluate", *flags, "--submission", str(file), "--test", *test])
    submission = np.load(file)
    assert set(submission) == {f"{split}_{key}" for split in splits for key in ("ids", "energy", "forces", "chunk_idx")}
    config = copy.deepcopy(stock_config(data))
    config["dataset"]["test"]["src"] = str(data / "val_ood_cat")
    config["optim"]["eval_batch_size"] = 32
    describe_model(config, models[model])
    run = run_fairchem(tmp_path, config, mode="predict", name="stock", checkpoint=models[model])
    stock = np.load(run.results / "ocp_predictions.npz")
    for key in ("ids", "energy", "forces", "chunk_idx"):
        assert np.array_equal(submission[f"ood_cat_{key}"], stock[key]), key
    assert [path.name for path in file.parent.iterdir()] == ["submission.npz"]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"--data": ["val_id"]}, "--data val_id: expected SPLIT=PATH"),
        ({"--data": ["a=.", "a=."]}, "--data a=.: a is given twice"),
        ({"--data": ["a=nowhere"]}, "nowhere does not exist"),
        ({"--teacher": ["nowhere.pt"]}, "nowhere.pt does not exist"),
        ({"--submission": ["a.npz"]}, "--submission and --test come together"),
        ({"--batch-sizes": ["0"]}, "--batch-sizes 0: expected at least 1"),
        ({"--num-gpus": ["0"]}, "--num-gpus 0: expected at least 1"),
        ({"--data": ["a=."]}, "no *.lmdb file in the directory"),
        ({"--undistilled": ["a.pt", "b.pt"]}, "--undistilled: expected one, got 2"),
        ({"--undistilled": ["a.pt", "b.pt"], "--seeds": []}, "--seeds: got 1 --checkpoint and 2 --undistilled"),
        ({"--require": ["val_id.forces_mea=1"]}, "--require val_id.forces_mea: unknown. Did you mean `val_id.forces_mae`?"),
        ({"--require": ["gap_closed.energy=0"]}, "is measured only with --undistilled and --teacher"),
    ],
)
def test_bad_input_is_named(models, data, change, part):
    flags = {"--checkpoint": [str(models["student"])], "--data": [f"val_id={data / 'val_id'}"], **change}
    with pytest.raises(SystemExit, match=re.escape(part)):
        main(["evaluate", "--cpu", *(word for flag, words in flags.items() for word in (flag, *words))])


def test_a_missed_requirement_is_the_exit_status(models, data, tmp_path, capsys):
    flags = ["--checkpoint", str(models["student"]), "--cpu", "--batch-sizes", "--data", f"val_id={data / 'val_id'}"]
    flags += ["--output", str(tmp_path / "out"), "--require"]
    main(["evaluate", *flags, "forces_mae=100"])
    assert "Requirements met: 1 of 1." in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *flags, "val_id.forces_mae=100", "energy_mae=0"])
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "Requirements met: 1 of 2; missed:\n- val_id, student: energy_mae is " in said
    met, missed = json.loads((tmp_path / "out.json").read_text())["gates"]
    assert met["is_met"] and not missed["is_met"]
    assert (missed["metric"], missed["bound"], missed["required"]) == ("energy_mae", "at most", 0.0) and missed["value"] > 0


def test_unstable_dynamics_are_a_missed_requirement(models, data, capsys):
    flags = ["--checkpoint", str(models["student"]), "--cpu", "--batch-sizes", "--data", f"val_id={data / 'val_id'}"]
    flags += ["--stability-starts", "2", "--require"]
    main(["evaluate", *flags, "stable_ps=0.005"])
    assert "Requirements met: 1 of 1." in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *flags, "stable_ps=0.1", "--temperature", "1e6"])  # at which atoms meet
    line = capsys.readouterr().out.splitlines()[-1]
    assert ended.value.code == 1
    assert re.match(
        r"- val_id, student: stable_ps is 0\.0\d+, required at least 0\.1; start [01] ended after 0\.0\d+ ps: ", line
    )


def test_a_submission_is_checked_before_anything_runs(models, data, monkeypatch):
    monkeypatch.setattr("fairchem_crack.evaluation.s2ef.command.evaluate_all", lambda *_, **__: pytest.fail("a model ran"))
    flags = ["--checkpoint", str(models["student"]), "--cpu", "--data", f"val_id={data / 'val_id'}", "--submission"]
    test = [f"{name}={data / 'val_id'}" for name in ("id", "ood_ads", "ood_cat", "ood_all")]
    with pytest.raises(SystemExit, match="expected the splits id, ood_ads, ood_cat, ood_both"):
        main(["evaluate", *flags, "made.npz", "--test", *test])
    test[-1] = f"ood_both={data / 'val_id'}"
    with pytest.raises(SystemExit, match=r"expected the name of an \.npz file"):
        main(["evaluate", *flags, "made.json", "--test", *test])


def test_data_without_labels_are_named(models, tmp_path):
    with connect(tmp_path / "bare.db") as database:
        database.write(Atoms("Cu"))
    with pytest.raises(SystemExit, match=r"bare\.db: its first systems cannot be read with energies and forces as ase_db"):
        main(["evaluate", "--checkpoint", str(models["student"]), "--cpu", "--data", f"a={tmp_path / 'bare.db'}"])


def test_a_model_without_forces_is_named(models, data, tmp_path):
    checkpoint = torch.load(models["student"], map_location="cpu", weights_only=False)
    del checkpoint["config"]["outputs"]["forces"]
    torch.save(checkpoint, tmp_path / "energy.pt")
    with pytest.raises(SystemExit, match="expected a model that predicts energy and forces; it predicts energy"):
        main(["evaluate", "--checkpoint", str(tmp_path / "energy.pt"), "--cpu", "--data", f"a={data / 'val_id'}"])


def test_a_checkpoint_given_twice_is_refused(models, data):
    flags = ["--checkpoint", str(models["student"]), "--teacher", str(models["student"]), "--cpu"]
    with pytest.raises(SystemExit, match="a file is given twice"):
        main(["evaluate", *flags, "--data", f"val_id={data / 'val_id'}"])


@pytest.mark.parametrize(
    "paths, names",
    [
        (["runs/a-0/best_checkpoint.pt", "runs/b-0/checkpoint.pt", "teacher.pt"], ["a-0", "b-0", "teacher"]),
        (["one/a-0/checkpoint.pt", "two/a-0/checkpoint.pt"], ["one/a-0", "two/a-0"]),
        (["a/eqv2.pt", "b/eqv2.pt", "b/escn.pt"], ["a/eqv2", "b/eqv2", "escn"]),
        (["a-0/best_checkpoint.pt", "a-0/checkpoint.pt"], ["best_checkpoint.pt", "checkpoint.pt"]),
        (["x/student.pt"], ["x/student"]),
        ([], []),
    ],
)
def test_a_name_is_the_shortest_that_is_unique(paths, names):
    paths = [Path(path) for path in paths]
    assert short_names(paths, taken=("student",)) == dict(zip(paths, names))


def test_the_interval_of_an_error_is_that_of_a_normal_one():
    random = np.random.default_rng(0)
    values = random.normal(3.0, 1.0, size=MOST_UNITS * 3 + 7)  # in groups
    interval = error_interval(values, np.ones(len(values)))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=INTERVAL)
    few = error_interval(values[:500], np.ones(500))
    assert (few.high - few.low) / 2 == pytest.approx(1.96 * values[:500].std() / np.sqrt(500), rel=INTERVAL)


def test_groups_change_the_interval_of_a_gap_little():
    random = np.random.default_rng(1)
    count = MOST_UNITS * 2
    u, d, t = (random.gamma(4.0, scale, size=(1, count)) for scale in (1.0, 0.7, 0.2))
    whole, half = (
        gap_closed_interval([Errors(u[:, :n], d[:, :n], t[0, :n], np.ones(n))], replicates=2000) for n in (count, count // 2)
    )
    assert (half.high - half.low) / (whole.high - whole.low) == pytest.approx(2**0.5, rel=0.1)  # the bootstrap's spread
    assert whole.estimate == pytest.approx(gap_closed([Errors(u, d, t[0], np.ones(count))]))
    assert whole.low < whole.estimate < whole.high


def evaluations() -> dict[Path, Evaluation]:
    """Two seeds of each student, one teacher, two systems; energy errors average to 1.0, 0.4 and 0.2 eV."""
    energies = {"undistilled-0": 1.1, "undistilled-1": 0.9, "crack-0": 0.3, "crack-1": 0.5, "teacher": 0.2}
    made = {}
    for name, energy in energies.items():
        forces = energy / 10 + 0.01 * name.endswith("1")  # eV/A
        errors = {"energy": np.array([energy, energy]), "forces": np.array([3, 6]) * forces, "components": np.array([3, 6])}
        metrics = dict(zip(METRICS, (energy, forces, 0.5, 0.0125)))
        made[Path(name)] = Evaluation("painn", 10, "free", {"val_id": metrics}, {"val_id": errors})
    return made


SEEDS = [
    Group("undistilled", "undistilled", (Path("undistilled-0"), Path("undistilled-1"))),
    Group("crack", "student", (Path("crack-0"), Path("crack-1"))),
    Group("teacher", "teacher", (Path("teacher"),)),
]


def test_seeds_are_averaged_before_the_gap_is_taken(tmp_path):
    rows = leaderboard(evaluations(), SEEDS)
    undistilled, student, _ = rows
    assert student.gaps["energy_mae"].estimate == pytest.approx((1.0 - 0.4) / (1.0 - 0.2))
    assert student.gaps["forces_mae"].estimate == pytest.approx((0.105 - 0.045) / (0.105 - 0.02))
    assert student.intervals["energy_mae"].estimate == pytest.approx(0.4)
    assert [seed["forces_mae"] for seed in undistilled.seeds] == pytest.approx([0.11, 0.1])
    cells = [re.split(r"  +", line) for line in table(rows).splitlines()[2:]]
    assert cells[0] == ["val_id", "undistilled", "1.00 [1.00, 1.00]", "0.105 [0.105, 0.105]", "0.500", "1.25%"]
    assert cells[1][1:4] == ["crack", "0.400 [0.400, 0.400]", "0.0450 [0.0450, 0.0450]"]
    assert cells[2][1] == "gap closed" and [cell.split()[0] for cell in cells[2][2:4]] == ["75%", "71%"]
    assert cells[3][1:4] == ["teacher", "0.200 [0.200, 0.200]", "0.0200 [0.0200, 0.0200]"]
    of_gates = outcomes(gates_of(["gap_closed.energy=0.74", "energy_mae=0.39"], ["val_id"], has_gap=True), rows)
    assert [(gate.model, gate.value, gate.is_met) for gate in of_gates] == [
        ("crack", pytest.approx(0.75), True),
        ("crack", pytest.approx(0.4), False),
    ]
    draw(rows, {}, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["$x^$y", "_best"])
def test_names_are_drawn_letter_by_letter(name, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("fairchem_crack.evaluation.drawing.Canvas.png", lambda canvas: drawn.append(canvas) or b"png")
    interval = Interval(1.0, 0.5, 1.5)
    row = Row(name, "student", name, dict.fromkeys(METRICS, 1.0), dict.fromkeys(ERRORS, interval), {})
    draw([row], {}, tmp_path / "picture.png")
    (text,) = drawn[0].figure.legends[0].get_texts()
    assert text.get_text().strip() == name and not text.get_parse_math()
