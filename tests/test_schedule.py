"""The learning rate's schedule against the length of the training."""

from __future__ import annotations

import math

import pytest
import torch
from fairchem.core.modules.scheduler import LRScheduler
from tolerances import LEARNING_RATE

from fairchem_crack.training.schedule import check_length, learning_rates, schedule_notes

LR = 1e-3


def scheduler(name: str, **options) -> LRScheduler:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    return LRScheduler(optimizer, {"scheduler": name, **options})


@pytest.mark.parametrize("length", [{"total_steps": 9}, {"epochs": 3, "steps_per_epoch": 3}])
def test_a_one_cycle_shorter_than_the_training_is_refused(length):
    with pytest.raises(ValueError, match=r"OneCycleLR has 9 steps, the training 10; .* step 10\. Set optim\.total_st"):
        check_length(scheduler("OneCycleLR", max_lr=LR, **length), 10)


def test_it_is_refused_exactly_where_torch_refuses():
    for steps in (9, 10, 11):
        stepped = scheduler("OneCycleLR", max_lr=LR, total_steps=10)
        try:
            for _ in range(steps):
                stepped.step()
            is_long_enough = True
        except ValueError:
            is_long_enough = False
        assert is_long_enough is (steps <= 10)
        if is_long_enough:
            check_length(scheduler("OneCycleLR", max_lr=LR, total_steps=10), steps)


@pytest.mark.parametrize(
    "name, options, steps",
    [
        ("CosineAnnealingLR", {"T_max": 40}, 40),
        ("ExponentialLR", {"gamma": 0.99}, 40),
        ("StepLR", {"step_size": 7, "gamma": 0.5}, 40),
        ("MultiStepLR", {"milestones": [10, 20]}, 40),
        ("PolynomialLR", {"total_iters": 50}, 40),
        ("LinearLR", {}, 40),
        ("OneCycleLR", {"max_lr": LR, "total_steps": 40}, 40),
        ("CosineAnnealingWarmRestarts", {"T_0": 13}, 40),
        ("CosineAnnealingLR", {"T_max": 1500}, 1500),
    ],
)
def test_rates_are_those_of_stepping_through_the_training(name, options, steps):
    stepped, expected = scheduler(name, **options), {}
    for step in range(1, steps + 1):
        expected[step] = stepped.get_lr()
        stepped.step()
    rates = learning_rates(scheduler(name, **options).scheduler, steps)
    assert {1, steps} <= rates.keys() and len(rates) == min(steps, 500)
    assert rates == pytest.approx({step: expected[step] for step in rates}, abs=LEARNING_RATE * LR)


def notes(name: str, steps: int, **options) -> list[str]:
    return schedule_notes(scheduler(name, **options), steps)


def test_a_suitable_schedule_is_described_without_a_warning():
    (facts,) = notes("CosineAnnealingLR", 100, T_max=100)
    last = LR * (1 + math.cos(math.pi * 0.99)) / 2
    assert facts == f"learning rate 0.001 in step 1, at most 0.001, {last:.3g} in step 100"
    assert len(notes("OneCycleLR", 100, max_lr=LR, total_steps=100)) == 1
    assert notes("ReduceLROnPlateau", 100) == [] and notes("Null", 100) == []


@pytest.mark.parametrize(
    "name, options, part",
    [
        ("CosineAnnealingLR", {"T_max": 30}, "rises again after step 30 of 100; for one descent set optim.T_max: 100"),
        ("OneCycleLR", {"max_lr": LR, "total_steps": 400}, "ends after 100 of the schedule's 400 steps"),
        ("PolynomialLR", {}, "the learning rate is 0 from about step 6 of 100 on"),  # torch's default: 5 steps
        ("ExponentialLR", {"gamma": 0.8}, "from about step 43 of 100 on"),  # 0.8^42 < 1e-4
        ("StepLR", {"step_size": 10}, "from about step 51 of 100 on"),  # 0.1^5 < 1e-4
    ],
)
def test_an_unsuitable_schedule_is_warned_of(name, options, part):
    _, warning = notes(name, 100, **options)
    assert warning.startswith("WARNING: ") and part in warning
