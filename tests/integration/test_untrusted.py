"""No command runs the code in a file that it is given, wherever that is named, unless it is told to trust it."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import shutil
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from conftest import distill_config, run_fairchem, stock_config
from fairchem.core.common import distutils
from runs_code import Runs

from fairchem_crack.commands.cli import main
from fairchem_crack.io.checkpoints import UntrustedError

REFUSED = r"\.pt was not read: it needs `posix\.system`.*give --trust \(.*task\.distill\.teacher\.trust: True\)"


@pytest.fixture
def ran(tmp_path) -> Path:
    """A file that is there once code of an untrusted file has run."""
    return tmp_path / "ran"


@pytest.fixture(scope="module")
def sound(data, tmp_path_factory) -> Path:
    """The checkpoint of a PaiNN that was trained for an epoch."""
    directory = tmp_path_factory.mktemp("sound")
    return run_fairchem(directory, stock_config(data)).checkpoints / "best_checkpoint.pt"


@pytest.fixture
def evil(tmp_path, sound, ran) -> Path:
    """The same, whose pickle makes `ran`."""
    torch.save({**torch.load(sound, weights_only=True), "unread": Runs(f"touch {ran}")}, tmp_path / "evil.pt")
    return tmp_path / "evil.pt"


@pytest.fixture
def config_file(tmp_path):
    """Callable: write a config."""

    def write(config: dict) -> list[str]:
        (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
        return ["--config-yml", str(tmp_path / "config.yml"), "--cpu"]

    return write


def command(*arguments: str) -> None:
    """Run a command of this package."""
    gc.collect()  # closes the LMDBs of a former one
    try:
        main([str(argument) for argument in arguments])
    finally:
        if distutils.initialized():
            distutils.cleanup()


def refused(name: str, *arguments: object) -> None:
    with pytest.raises(SystemExit, match=f"(?s)fairchem-crack {name}: .*{REFUSED}"):
        command(name, *arguments)


def copy_of(file: Path, name: str) -> Path:
    return Path(shutil.copyfile(file, file.with_name(f"{name}.pt")))


def test_evaluate_reads_no_code(evil, sound, data, ran):
    on = ["--cpu", "--batch-sizes", "--data", f"val={data / 'val_id'}"]
    refused("evaluate", "--checkpoint", evil, *on)
    refused("evaluate", "--checkpoint", sound, "--undistilled", evil, *on)
    refused("evaluate", "--checkpoint", sound, "--teacher", evil, *on)
    assert not ran.exists()
    others = ["--undistilled", copy_of(evil, "undistilled"), "--teacher", copy_of(evil, "teacher")]
    command("evaluate", "--checkpoint", evil, *others, *on, f"ood={data / 'val_ood_cat'}", "--num-gpus", "2", "--trust")
    assert ran.exists()


def test_bench_reads_no_code(evil, sound, ran):
    on = ["--only", "latency", "--repeats", "1", "--atoms", "20", "--cpu"]
    refused("bench", "--checkpoint", sound, evil, *on)
    refused("bench", "--checkpoint", sound, "--reference", evil, *on)
    assert not ran.exists()
    command("bench", "--checkpoint", evil, *on, "--trust")
    assert ran.exists()


def test_report_reads_no_code(evil, sound, data, tmp_path, ran):
    run, on = tmp_path / "checkpoints/run", ["--data", f"val={data / 'val_id'}", "--cpu", "--systems", "2"]
    run.mkdir(parents=True)
    files = ["best_checkpoint.pt", "checkpoint.pt", "--teacher", "--undistilled", "--also"]
    for bad in (*(files[at : at + 1] for at in range(len(files))), files):
        given = {name: copy_of(evil, name) if name in bad else sound for name in files}
        for name in files[:2]:
            shutil.copyfile(given[name], run / name)
        arguments = [tmp_path, *on, *(part for name in files[2:] for part in (name, given[name]))]
        if bad is not files:
            refused("report", *arguments)
            assert not ran.exists()
    command("report", *arguments, "--trust")
    assert ran.exists() and (tmp_path / "reports/run/report.html").is_file()


def test_cache_teacher_reads_no_code(evil, data, config_file, tmp_path, ran):
    flags = [*config_file(distill_config(data, evil)), "--output", tmp_path / "cache", "--chunk", "2"]
    refused("cache-teacher", *flags)
    assert not ran.exists()
    command("cache-teacher", *flags, "--trust")
    assert ran.exists() and (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("mode", ["train", "validate", "predict"])
def test_no_mode_of_fairchem_with_our_trainer_reads_code(evil, data, sound, run, ran, mode):
    with pytest.raises(UntrustedError, match=REFUSED):
        run(distill_config(data, sound), mode=mode, checkpoint=evil)
    assert not ran.exists()
    config = distill_config(data, sound)
    config["task"]["distill"]["teacher"]["trust"] = True
    run(config, mode=mode, checkpoint=evil)
    assert ran.exists()


def test_a_sound_checkpoint_cannot_name_a_file_that_runs_code(evil, sound, data, tmp_path, config_file, ran):
    content = torch.load(sound, weights_only=True)
    content["config"]["model"]["scale_file"] = str(evil)
    torch.save(content, tmp_path / "names.pt")
    refused("evaluate", "--checkpoint", tmp_path / "names.pt", "--cpu", "--data", f"val={data / 'val_id'}")
    refused("bench", "--checkpoint", tmp_path / "names.pt", "--cpu")
    refused("cache-teacher", *config_file(distill_config(data, tmp_path / "names.pt")), "--output", tmp_path / "cache")
    assert not ran.exists()


def named_in(config: dict, place: str, evil: Path) -> dict:
    """The config with a file of torch at one of the places where it can name one."""
    config = copy.deepcopy(config)
    transforms = config["dataset"]["train"].setdefault("transforms", {})
    if place == "teacher":
        config["task"]["distill"]["teacher"]["checkpoint"] = str(evil)
    elif place == "scale factors":
        config["model"]["scale_file"] = str(evil)
    elif place == "normalizer":
        transforms["normalizer"] = {"energy": {"file": str(evil)}}
    elif place == "normalizers":
        transforms["normalizer"] = {"file": str(evil)}
    elif place == "references":
        transforms["element_references"] = {"energy": {"file": str(evil)}}
    else:
        config["model"] = {
            "name": "hydra",
            "finetune_config": {"starting_checkpoint": str(evil)},
            "heads": {"energy": {"module": "equiformer_v2_energy_head"}},
        }
    return config


PLACES = ("teacher", "scale factors", "normalizer", "normalizers", "references", "starting checkpoint")


@pytest.mark.parametrize("place", PLACES)
def test_training_and_its_check_read_no_code(evil, sound, data, config_file, ran, place, tmp_path, capsys):
    flags = config_file(named_in({**distill_config(data, sound), "logger": "tensorboard"}, place, evil))
    with pytest.raises(SystemExit, match="1"):
        command("check", *flags)
    assert re.search(REFUSED, capsys.readouterr().out)
    with pytest.raises(UntrustedError, match=REFUSED):
        command("train", *flags, "--run-dir", tmp_path / "runs")
    if "norm" in place or place == "references":
        refused("fit-scales", *flags, "--output", tmp_path / "scales.json")
    assert not ran.exists()
    with suppress(SystemExit):  # it is a checkpoint, and neither scale factors nor a normalizer
        command("check", *flags, "--trust")
    assert ran.exists() and "not read" not in capsys.readouterr().out


def test_check_without_data_opens_no_record(data, sound, config_file, tmp_path, ran, capsys):
    (tmp_path / "lmdb").mkdir()
    with lmdb.open(str(tmp_path / "lmdb/data.lmdb"), subdir=False, map_size=1 << 20) as env, env.begin(write=True) as file:
        file.put(b"0", pickle.dumps(Runs(f"touch {ran}")))
    config = {**distill_config(data, sound), "logger": "tensorboard"}
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(tmp_path / "lmdb")}}
    command("check", *config_file(config), "--no-data")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert not ran.exists() and lines["No"] == "problem found."
    assert lines["data"] == "there, and not opened (--no-data)" and lines["labels"] == "left out: the data are not opened"
    assert lines["student"].startswith("painn") and lines["teacher"].startswith("painn")
    with pytest.raises(SystemExit, match="1"):
        command("check", *config_file(config))
    assert ran.exists()  # as the README says
