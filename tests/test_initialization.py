"""A student that starts from its teacher's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import build

from fairchem_crack.testing import collate, slabs
from fairchem_crack.training.init_from_teacher import copy_weights


@pytest.mark.parametrize("teacher_form", ["equiformer_v2", "equiformer_v2 hydra"])
@pytest.mark.parametrize("student_form", ["equiformer_v2", "equiformer_v2 hydra"])
def test_a_student_of_all_blocks_is_the_teacher(teacher_form, student_form):
    teacher, student = build(teacher_form, num_layers=2).eval(), build(student_form, num_layers=2).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    copy_weights(teacher, student, [0, 1])
    outputs = []
    for model in (teacher, student):
        torch.manual_seed(0)
        outputs.append(model(collate(slabs())))
    assert torch.equal(outputs[0]["energy"], outputs[1]["energy"])
    assert torch.equal(outputs[0]["forces"], outputs[1]["forces"])


@pytest.mark.parametrize(("name", "blocks"), [("equiformer_v2", "blocks"), ("escn", "layer_blocks")])
def test_the_named_blocks_are_copied(name, blocks):
    teacher, student = build(name, num_layers=3), build(name, num_layers=2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_()
    before = copy.deepcopy(teacher.state_dict())
    copy_weights(teacher, student, [2, 0])
    for own, theirs in ((0, 2), (1, 0)):
        own_state, teacher_state = getattr(student, blocks)[own].state_dict(), getattr(teacher, blocks)[theirs].state_dict()
        assert all(torch.equal(value, teacher_state[key]) for key, value in own_state.items())
    assert torch.equal(student.sphere_embedding.weight, teacher.sphere_embedding.weight)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(
        parameter.data_ptr() == original.data_ptr()
        for parameter, original in zip(student.parameters(), teacher.parameters())
    )


@pytest.mark.parametrize(
    ("student", "blocks", "message"),
    [
        ({"num_layers": 2}, [0], r"blocks: the student has 2 blocks, and 1 are named: \[0\]"),
        ({"num_layers": 1}, [3], "block 3 is named, the teacher has 3, numbered from 0"),
        ({"num_layers": 1, "sphere_channels": 8}, [0], r"weights do not fit: .* is \(90, 8\), the teacher's \(90, 16\)"),
        ({"num_layers": 1, "lmax_list": [1], "mmax_list": [1]}, [0], r"\d+ of its \d+ weights do not fit: .* the teacher's"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_unchanged(student, blocks, message):
    model = build("equiformer_v2", **student)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        copy_weights(build("equiformer_v2", num_layers=3), model, blocks)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_every_head_of_a_hydra_starts_from_that_of_its_name():
    """Or from the one of the teacher that has its parameters."""
    models = teacher, student = build("equiformer_v2 hydra"), build("equiformer_v2 hydra")
    name = next(name for name, head in student.output_heads.items() if hasattr(head, "energy_block"))
    for model, names in zip(models, (["second"], ["second", "third"])):
        model.output_heads.update({added: copy.deepcopy(model.output_heads[name]) for added in names})
    with torch.no_grad():
        for number, parameter in enumerate((*teacher.parameters(), *student.parameters())):
            parameter.fill_(number)
    copy_weights(teacher, student, range(len(student.backbone.blocks)))
    after, before = student.state_dict(), teacher.state_dict()
    for key, value in after.items():
        third = key.startswith("output_heads.third.")
        assert torch.equal(value, before[key.replace(".third.", ".second.") if third else key])


def test_another_architecture_is_refused():
    for models, role in ((("equiformer_v2", "painn"), "student"), (("painn", "equiformer_v2"), "teacher")):
        with pytest.raises(ValueError, match=f"init_from_teacher: the {role} has no blocks to copy; EquiformerV2, eSCN"):
            copy_weights(*map(build, models), [0])
