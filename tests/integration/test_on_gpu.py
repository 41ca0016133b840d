"""Trainings on a GPU take the steps that they take on the CPU; `benchmarks/gpu/run.sh` runs these."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
import yaml
from tolerances import REORDERED

from fairchem_crack import crack_loss
from fairchem_crack.commands import cli

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ON_GPU: tuple[str, ...] = ()  # fairchem's flags: without --cpu it takes the GPU
ROUNDING = 2e-3  # of a loss after six steps in float32


@pytest.mark.parametrize("anchor", ["student", "teacher", "symmetric"])
@pytest.mark.parametrize("atoms", [5, 130])
def test_loss_and_gradient_of_the_gpu_are_those_of_the_cpu(anchor, atoms):
    generator = torch.Generator().manual_seed(atoms)
    student, teacher = (torch.randn(atoms, 24, generator=generator) for _ in range(2))
    pairs = torch.combinations(torch.arange(atoms)).T[:, :3000]
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        leaf = student.to(device, dtype).requires_grad_()
        loss = crack_loss(student=leaf, teacher=teacher.to(device, dtype), pairs=pairs.to(device), anchor=anchor)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((loss.item(), gradient.double().cpu()))
    (exact, exact_gradient), (loss, gradient) = results
    assert loss == pytest.approx(exact, rel=REORDERED)
    assert (gradient - exact_gradient).norm() < 1e-4 * exact_gradient.norm()


@pytest.fixture
def losses(run):
    """Callable: the losses of a training with these flags."""
    return lambda config, name, *flags: run(config, name=name, flags_given=flags).losses()


def command(name: str, config: dict, file: Path, *flags: str) -> None:
    """Run `fairchem-crack NAME` on a config."""
    file.write_text(yaml.safe_dump(config))
    gc.collect()  # closes the LMDBs of the training before it, which a process opens only once
    cli.main([name, "--config-yml", str(file), *flags])


def test_a_distilled_training_takes_the_steps_of_the_cpu(distilled, losses):
    assert losses(distilled, "gpu", *ON_GPU) == pytest.approx(losses(distilled, "cpu", "--cpu"), rel=ROUNDING)


def test_a_training_from_a_cache_of_the_gpu_is_the_online_one(distilled, losses, tmp_path):
    online = losses(distilled, "online", *ON_GPU)
    distilled["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    command("cache-teacher", distilled, tmp_path / "cached.yml", "--dtype", "float32")
    assert losses(distilled, "cached", *ON_GPU) == pytest.approx(online, rel=ROUNDING)


def test_mixed_precision_begins_as_float32_and_takes_steps(distilled, losses):
    """The scaler of the loss begins at 65536 and halves in each step that overflows: float16 needs some before its first."""
    whole = losses(distilled, "float32", *ON_GPU)
    distilled["optim"]["max_epochs"] = 4
    mixed = losses(distilled, "amp", *ON_GPU, "--amp")  # a run that takes no step fails
    assert len(mixed) == 24 and all(map(math.isfinite, mixed))
    assert mixed[0] == pytest.approx(whole[0], rel=1e-2)  # float16 has 11 bits


def test_check_finds_no_problem_on_the_gpu(distilled, tmp_path, capsys):
    command("check", distilled, tmp_path / "check.yml")
    printed = capsys.readouterr().out
    assert "on cuda" in printed and "No problem found." in printed
