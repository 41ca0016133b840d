"""How often a training step makes the host wait for the GPU, by source line, counted on a pretended one."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest
import recorder
import torch
from conftest import TERMS, pretended_gpu, with_terms, write_cache, write_edited
from fairchem.core.common.utils import setup_imports

from fairchem_crack import CrackDistillTrainer
from fairchem_crack.training import trainer

STEP = 3  # that is counted: nothing is set up, validated or saved in it
CACHED = {
    "readout.py": 1,  # what is logged, and whether it is finite, before the backward pass
    "guard.py": 1,  # whether the gradients are, before the update
    "crack.py": 1,  # whether a pair has no direction
}
ALLOWED = {
    "cached": CACHED,
    "online": {**CACHED, "relations.py": 1},  # how many pairs the teacher's edges are
}

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counted on a pretended GPU")


def stalls_of_a_step(config: dict, directory: Path, monkeypatch) -> tuple[list[str], list[str]]:
    """The stalls of one training step: those of lines of ours, and all."""
    monkeypatch.setattr(trainer, "check_built_for_cuda", lambda cpu: None)
    setup_imports()
    gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
    options = {key: value for key, value in config.items() if key not in ("trainer", "optim")}
    names = {"identifier": "", "timestamp_id": "run", "run_dir": str(directory), "name": "ocp"}
    with pretended_gpu() as gpu:
        after_step: list[Counter] = []

        def end_step(_, values: dict, step: int, split: str = "") -> None:
            if split == "train" and "loss" in values:
                after_step.append(gpu.stalls.copy())
                if step == STEP:
                    raise recorder.Interrupted

        monkeypatch.setattr(recorder.Recorder, "log", end_step)
        training = CrackDistillTrainer(optimizer=config["optim"], **options, **names, local_rank=0, seed=0)
        with pytest.raises(recorder.Interrupted):
            training.train()
        assert training.device.type == "cuda" and len(after_step) == STEP
        return gpu.table("fairchem_crack", since=after_step[-2]), gpu.table(since=after_step[-2])


@pytest.mark.parametrize("source", ALLOWED)
def test_no_line_of_a_step_waits_for_the_gpu_but_these(source, distilled, data, tmp_path, monkeypatch):
    """All terms, on systems that have fixed atoms and periodic boundaries of their own."""
    config = with_terms(distilled, TERMS)
    split = write_edited(data / "train", tmp_path / "train", lambda _, system: setattr(system, "pbc", torch.ones(3).bool()))
    config["dataset"]["train"]["src"] = str(split)
    if source == "cached":
        config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, tmp_path))
    ours, everything = stalls_of_a_step(config, tmp_path, monkeypatch)
    by_file: Counter = Counter()
    for line in ours:
        number, _, rest = line.strip().partition(" ")
        by_file[rest.partition(" < ")[0].split("/")[-1].split(":")[0]] += int(number)
    total = sum(int(line.split()[0]) for line in everything)
    print(f"{source}: {sum(by_file.values())} of {total} stalls are of lines of ours", *ours, sep="\n")
    assert not by_file - Counter(ALLOWED[source]), "\n".join(ours)
    assert total > 50  # fairchem's own: the count works
