"""Files of torch are read without running their code, or not at all; what ordinary checkpoints hold needs no trust."""

from __future__ import annotations

import io
import logging
import os
import sys
import tarfile
import threading
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from runs_code import Runs

from fairchem_crack.io.checkpoints import UntrustedError, read, read_checkpoint, reading_safely
from fairchem_crack.io.trust import trusting, trusts

CONTENT = {"state_dict": OrderedDict(weight=torch.arange(3.0)), "config": {"model": {"name": "painn"}}}
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@pytest.fixture
def write(tmp_path):
    """Callable: write a checkpoint with one more entry."""

    def write(entry, **options) -> Path:
        torch.save({**CONTENT, "entry": entry}, tmp_path / "checkpoint.pt", **options)
        return tmp_path / "checkpoint.pt"

    return write


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "as before torch 1.6"])
def test_a_file_that_needs_code_is_read_with_trust_only(write, tmp_path, caplog, monkeypatch, is_zip):
    path = write(Runs(f"touch {tmp_path}/ran"), _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        UntrustedError, match=r"checkpoint\.pt was not read: it needs `posix\.system`.* --trust .*trust: True"
    ):
        read_checkpoint(path)
    for named in ([], [{"backbone": [{"scale_file": str(path)}]}]):  # refused when it is read, or before
        with pytest.raises(UntrustedError, match=r"posix\.system") as refusal, reading_safely(*named):
            torch.load(path)
        assert "--trust" in str(refusal.value)
    assert not (tmp_path / "ran").exists() and "trusted" not in caplog.text
    for with_trust in (lambda: read_checkpoint(path, trust=True), lambda: trusted(path)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert with_trust()["state_dict"]["weight"].tolist() == [0, 1, 2]
        assert f"{path} needs `posix.system`; it is trusted" in caplog.text and (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink()
    with reading_safely(str(path), trust=True):
        assert torch.load(path)["state_dict"]["weight"].tolist() == [0, 1, 2]
    (tmp_path / "ran").unlink()
    monkeypatch.setenv(FORCED, "1")
    with pytest.raises(UntrustedError, match=f"it needs `posix.system`.*{FORCED} is set .*unset it") as refusal:
        read_checkpoint(path, trust=True)
    assert "cut short" not in str(refusal.value) and not (tmp_path / "ran").exists()


def trusted(path: Path) -> dict:
    with trusting(True):
        content = read_checkpoint(path)
    with pytest.raises(UntrustedError):
        read_checkpoint(path)
    return content


@pytest.mark.parametrize("forced", ["0", "1"])
def test_a_damaged_file_is_called_damaged(write, tmp_path, monkeypatch, forced):
    monkeypatch.setenv(FORCED, forced)
    path = write(torch.zeros(1000))
    whole = path.read_bytes()
    for damaged in (whole[:3000], whole[:100] + bytes(300) + whole[400:], b"", b"<html>", b"a web page: 404"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"cannot be read as a checkpoint.* {len(damaged)} bytes: .*cut short") as error:
            read_checkpoint(path)
        assert not isinstance(error.value, UntrustedError)


def test_archives_that_torch_reads_unrestricted_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "script.pt")
    with tarfile.open(tmp_path / "tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    for name, needs in (("script.pt", "TorchScript"), ("tar.pt", "a tar archive")):
        with pytest.raises(UntrustedError, match=f"{name} was not read: it needs {needs}"):
            read(tmp_path / name)


def test_numbers_arrays_and_paths_need_no_trust(write):
    entry = {
        "metric": np.float64(1.5),
        "count": np.int64(3),
        "is_best": np.bool_(True),
        "half": np.float16(0.5),
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "path": Path("data/train"),
    }
    content = read_checkpoint(write(entry))["entry"]
    assert {name: content[name] for name in entry if name != "array"} == {k: v for k, v in entry.items() if k != "array"}
    assert type(content["metric"]) is np.float64 and np.array_equal(content["array"], entry["array"])
    assert content["array"].dtype == np.float32


def test_numbers_that_numpy_2_wrote_need_no_trust(write):
    path = write(np.float64(1.5), _use_new_zipfile_serialization=False)  # plain bytes, in which a name can be replaced
    old, new = (f"cnumpy.{core}.multiarray\nscalar\n".encode() for core in ("core", "_core"))
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert read_checkpoint(path)["entry"] == 1.5


def test_reading_leaves_torch_as_it_was(write, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before, allowed = dict(os.environ), list(torch.serialization.get_safe_globals())
    path = write(np.array([Fraction(1, 3)], dtype=object))
    with pytest.raises(UntrustedError, match="ObjectDType"), reading_safely():
        torch.load(path)
    with reading_safely():
        assert torch.load(write(np.float64(0.5)))["entry"] == 0.5
    assert dict(os.environ) == before and torch.serialization.get_safe_globals() == allowed


def test_what_is_allowed_is_set_for_one_thread_at_a_time(write):
    path, values = write(np.float64(0.5)), []
    reader = threading.Thread(target=lambda: values.append(read_checkpoint(path)["entry"]))
    with reading_safely():
        reader.start()
        reader.join(0.1)
        assert not values and read_checkpoint(path)["entry"] == 0.5
    reader.join()
    assert values == [0.5]


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"name": "subprocess.Popen", "args": "true"}},
        {"model": "subprocess.Popen", "model_attributes": {"args": "true"}},
        {"model": {"name": "hydra", "backbone": {"model": "os.system"}}},
        {"model": {"name": "hydra", "heads": {"energy": {"module": "fairchem.core._cli.main"}}}},
        {"model": {"name": "painn"}, "trainer": "antigravity.fly"},
        {"model": {"name": "painn"}, "dataset": {"format": "subprocess.Popen"}},
        {"model": {"name": "painn"}, "dataset": {"train": {"format": "subprocess.Popen"}}},
        {"model": {"name": "painn"}, "val_dataset": {"format": "os.system"}},
        {"model": "painn", "model_attributes": {}, "task": {"dataset": "os.system"}},
    ],
)
def test_a_config_cannot_name_any_function(tmp_path, config):
    torch.save({**CONTENT, "config": config}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        UntrustedError, match=r"checkpoint\.pt was not taken: its config names `[\w.]+`, .*--import.* --trust"
    ):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert read_checkpoint(tmp_path / "checkpoint.pt", trust=True)["config"] == config
    assert "antigravity" not in sys.modules


def test_models_of_fairchem_and_of_imported_modules_are_taken(tmp_path):
    dotted = {"model": {"name": "fairchem.core.models.painn.PaiNN"}, "dataset": {"format": "torch.utils.data.TensorDataset"}}
    config = {**dotted, "trainer": "fairchem_crack.CrackDistillTrainer", "val_dataset": {"format": "lmdb"}}
    torch.save({**CONTENT, "config": config}, tmp_path / "checkpoint.pt")
    assert read_checkpoint(tmp_path / "checkpoint.pt")["config"] == config
    torch.save({**CONTENT, "scale_dict": "scales.pt"}, tmp_path / "checkpoint.pt")
    with pytest.raises(UntrustedError, match="its `scale_dict` names a file"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def test_trust_is_read_of_any_config():
    assert trusts({"distill": {"teacher": {"trust": True}}})
    for task in (
        None,
        [],
        {},
        {"distill": None},
        {"distill": {"teacher": "file.pt"}},
        {"distill": {"teacher": {"trust": 1}}},
    ):
        assert not trusts(task)
