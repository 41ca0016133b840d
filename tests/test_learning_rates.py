"""Learning rates of parts of the student."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fairchem_crack.training.learning_rates import LearningRates


def model_of() -> nn.ModuleDict:
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    return nn.ModuleDict({"embedding": nn.Linear(3, 3), "blocks": blocks, "head": nn.Linear(3, 1)})


def trained(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, torch.Tensor]:
    for step in range(steps):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1) * (-1) ** step)
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def test_a_factor_is_that_of_the_learning_rate_and_0_freezes():
    """As a parameter group of its own with lr and weight decay of AdamW would do."""
    model, plain = model_of(), model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    rates = LearningRates(model, optimizer, {"embedding": 0, "blocks.1": 0.5})
    groups = [{"params": plain["blocks"][1].parameters(), "lr": 0.005}, {"params": plain["head"].parameters()}]
    groups.append({"params": plain["blocks"][0].parameters()})
    before = copy.deepcopy(model.state_dict())
    expected_optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    after, expected = trained(model, optimizer, 3), trained(plain, expected_optimizer, 3)
    for name, value in after.items():
        if name.startswith("embedding"):
            assert torch.equal(value, before[name])
        else:
            torch.testing.assert_close(value, expected[name])
    assert len(optimizer.param_groups) == 1
    rates.close()
    assert not torch.equal(trained(model, optimizer, 1)["embedding.weight"], before["embedding.weight"])


def test_what_is_frozen_does_not_count_in_the_clipped_norm():
    model = model_of()
    rates = LearningRates(model, torch.optim.SGD(model.parameters(), lr=1.0), {"embedding": 0})
    model["head"](1e3 * model["embedding"](torch.ones(1, 3))).sum().backward()
    of_head = torch.stack([parameter.grad.norm() for parameter in model["head"].parameters()]).norm()
    torch.testing.assert_close(
        nn.utils.clip_grad_norm_([*model["embedding"].parameters(), *model["head"].parameters()], 1), of_head
    )
    rates.close()


@pytest.mark.parametrize("name", ["backbone", "output_heads", "energy_block", "output_heads.first"])
def test_a_hydras_parts_have_their_own_names(name):
    """Two heads of one class have parameters that are called alike."""
    heads = {head: nn.ModuleDict({"energy_block": nn.Linear(3, 1)}) for head in ("first", "second")}
    model = nn.ModuleDict({"backbone": nn.Linear(3, 3), "output_heads": nn.ModuleDict(heads)})
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    LearningRates(model, optimizer, {name: 0})
    after = trained(model, optimizer, 1)
    unchanged = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert unchanged == {key for key in before if name in key}


@pytest.mark.parametrize(
    "factors, message",
    [
        ({"embeding": 0}, r"learning_rates\.embeding: no parameter .* Did you mean `embedding`\?"),
        ({"x": 0}, r"learning_rates\.x: no parameter .* Known are `bias`, `blocks`, `embedding`, `head`, `weight`\."),
        (
            {"blocks": 0.1, "blocks.1": 1},
            r"learning_rates: `blocks.1.weight` is part of `blocks` and of `blocks.1`\. Give one",
        ),
    ],
)
def test_a_name_of_no_part_or_of_one_twice_is_refused(factors, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        LearningRates(model, torch.optim.SGD(model.parameters(), lr=1.0), factors)
