"""Outputs by property, and the way between a model's unit and eV, against arithmetic written out for each atom."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from architectures import MODELS, build
from conftest import TEACHER_MODEL
from fairchem.core.modules.normalization.element_references import LinearReferences
from fairchem.core.modules.normalization.normalizer import Normalizer
from tolerances import FLOAT32, FLOAT32_DIFFERENCE, FLOAT32_LARGE, RANDOM_FRAMES
from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs, Output, predicted
from fairchem_crack.config import TeacherConfig, TermConfig
from fairchem_crack.teacher.frozen import TeacherOutputs, load_teacher
from fairchem_crack.training.terms import TermContext, inputs_of

MEAN, RMSD = -0.7, 2.5  # of a normalizer
NUMBERS = [1, 8, 8, 29, 1]  # of two systems, of 3 and 2 atoms
REFERENCE = {1: -3.4, 8: -7.0, 29: -11.5}  # eV
CPU = torch.device("cpu")
ALL = (keys.ENERGY, keys.FORCES, keys.ATOM_ENERGIES)


def references(scale: float = 1.0) -> LinearReferences:
    values = torch.zeros(119)
    for number, value in REFERENCE.items():
        values[number] = scale * value
    return LinearReferences(values)


def two_systems() -> SimpleNamespace:
    natoms = torch.tensor([3, 2])
    return SimpleNamespace(batch=torch.tensor([0, 0, 0, 1, 1]), natoms=natoms, atomic_numbers=torch.tensor(NUMBERS))


def output() -> Output:
    return Output("energy", Normalizer(torch.tensor(MEAN), torch.tensor(RMSD)), references())


def test_an_atoms_reference_is_its_own_and_the_mean_is_shared():
    batch, normalized = two_systems(), torch.tensor([0.1, -0.4, 2.0, 0.3, 0.0])
    energy = torch.tensor([1.7 * RMSD + MEAN - 3.4 - 7.0 - 7.0, 0.3 * RMSD + MEAN - 11.5 - 3.4])
    torch.testing.assert_close(output().in_ev(torch.tensor([1.7, 0.3]), batch), energy)
    energies = output().atoms_in_ev(normalized, energy, batch)
    atoms = zip(normalized.tolist(), NUMBERS, [3, 3, 3, 2, 2])
    expected = torch.tensor([RMSD * e + REFERENCE[number] + MEAN / size for e, number, size in atoms])
    torch.testing.assert_close(energies, expected)
    torch.testing.assert_close(output().in_own_unit(energy, batch), torch.tensor([1.7, 0.3]))
    torch.testing.assert_close(output().atoms_in_own_unit(expected, torch.tensor([1.7, 0.3]), batch), normalized)
    torch.testing.assert_close(output().differences_in_own_unit(energy), energy / RMSD)


def test_energies_of_many_atoms_keep_their_digits():
    """Total energies of 200 atoms, -600 eV each: float32 sums of them are off by more than 1e-3 eV."""
    size = 200
    batch = SimpleNamespace(
        batch=torch.zeros(size).long(), natoms=torch.tensor([size]), atomic_numbers=torch.ones(size).long()
    )
    heavy = Output("energy", None, LinearReferences(torch.full((119,), -600.0)))
    expected = torch.linspace(-1, 1, size)
    energies = heavy.atoms_in_own_unit(expected - 600.0, torch.zeros(1), batch)
    assert float((energies - expected).abs().max()) < 1e-4


def test_a_students_target_has_its_own_element_references():
    """(e_i - reference[Z_i]) / rmsd - mean / (rmsd N), whatever the teacher's references are."""
    batch, energies = two_systems(), torch.tensor([-2.0, -9.5, -6.0, -14.0, -3.0])
    context = object.__new__(TermContext)
    context.batch, context.student = batch, SimpleNamespace(atom_energies=torch.zeros(5, 1))
    fields = {"atom_energies": energies, "energy": torch.tensor([-17.5, -17.0])}
    context.teacher = TeacherOutputs(torch.zeros(2, 0).long(), torch.zeros(5, 0), **fields)
    named = {"oc20_energy": {"property": "energy"}}
    normalizer = {"oc20_energy": output().normalizer}
    context.targets = ModelOutputs("outputs", named, normalizer, {"oc20_energy": references(0.9)})
    _, target = inputs_of(TermConfig(keys.ATOM_ENERGIES, "mae", 1.0), context)
    atoms = zip(energies.tolist(), NUMBERS, [3, 3, 3, 2, 2])
    expected = [(e - 0.9 * REFERENCE[number]) / RMSD - MEAN / RMSD / size for e, number, size in atoms]
    torch.testing.assert_close(target[:, 0], torch.tensor(expected))


@pytest.mark.parametrize("form", ["today's", "published", "hydra", "hydra of named outputs"])
def test_a_teachers_atoms_have_the_references_of_its_checkpoint(form, batch, tmp_path):
    """Against the model's own contributions, read by a hook, and the checkpoint's numbers."""
    named = form == "hydra of named outputs"
    config = copy.deepcopy(TEACHER_MODEL if "hydra" not in form else MODELS["equiformer_v2 hydra"])
    energy, forces = ("oc20_energy", "oc20_forces") if named else ("energy", "forces")
    if named:
        config["heads"] = {energy: config["heads"]["energy"], forces: config["heads"]["forces"]}
        config["pass_through_head_outputs"] = False
    model = model_of(config)
    content = {"config": {"model": config}, "state_dict": model.state_dict(), "elementrefs": {}, "ema": None}
    content["normalizers"] = {name: {"mean": MEAN, "std": torch.tensor(RMSD)} for name in ("target", "grad_target")}
    values = torch.linspace(-9, 4, 119)
    if form == "published":
        attributes = dict(config)
        content["config"] = {"task": {}, "model": attributes.pop("name"), "model_attributes": attributes}
        values = torch.zeros(119)
    else:
        normalizer = {"mean": torch.tensor(MEAN), "rmsd": torch.tensor(RMSD)}
        content["normalizers"] = {energy: normalizer, forces: {**normalizer, "mean": torch.tensor(0.0)}}
        content["elementrefs"] = {energy: {"element_references": values}}
        content["config"]["outputs"] = {energy: {"property": "energy"}, forces: {"property": "forces"}}
    torch.save(content, tmp_path / "teacher.pt")
    teacher = load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), CPU)
    read: list[Tensor] = []
    head = model_blocks(teacher.model, energy)
    head.energy_block.register_forward_hook(lambda _, __, x: read.append(x.embedding[:, 0, 0].detach()))
    outputs = teacher(batch, ALL)
    own = read[0] / head.avg_num_nodes  # (N,) in the model's unit
    sizes = batch.natoms[batch.batch]
    expected = RMSD * own + values[batch.atomic_numbers.long()] + MEAN / sizes
    torch.testing.assert_close(outputs.atom_energies, expected, **FLOAT32)
    sums = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, expected)
    torch.testing.assert_close(outputs.energy, sums, **FLOAT32_LARGE)
    assert outputs.atom_energies.std() > 1 or form == "published"


def model_of(config: dict) -> torch.nn.Module:
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    attributes = copy.deepcopy(config)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return registry.get_model_class(attributes.pop("name"))(**attributes)


def model_blocks(model: torch.nn.Module, energy: str) -> torch.nn.Module:
    """What has the block of the energy."""
    return model.output_heads[energy] if hasattr(model, "output_heads") else model


def test_references_inside_a_model_are_those_of_its_atoms(batch, tmp_path):
    """EquiformerV2's `use_energy_lin_ref`, in units of the normalizer's rmsd."""
    outputs = []
    for has_references in (False, True):
        config = {**TEACHER_MODEL, "load_energy_lin_ref": True, "use_energy_lin_ref": has_references}
        model = model_of(config)
        values = torch.linspace(-3, 2, model.max_num_elements)
        model.energy_lin_ref.data.copy_(values)
        normalizer = {"energy": {"mean": torch.tensor(MEAN), "rmsd": torch.tensor(RMSD)}}
        content = {"config": {"model": config}, "state_dict": model.state_dict(), "normalizers": normalizer}
        torch.save(content, tmp_path / "teacher.pt")
        outputs.append(load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), CPU)(batch, ALL))
    difference = outputs[1].atom_energies - outputs[0].atom_energies
    torch.testing.assert_close(difference, RMSD * values[batch.atomic_numbers.long()], **FLOAT32_DIFFERENCE)


@pytest.mark.parametrize("passed", [False, True], ids=["a mapping per head", "passed through"])
def test_of_several_scalar_heads_the_energys_is_read(batch, passed, tmp_path):
    """A head of the same kind that predicts something else comes first in the alphabet."""
    config = copy.deepcopy(MODELS["equiformer_v2 hydra"])
    head = config["heads"]["energy"]["module"]
    config["pass_through_head_outputs"] = passed
    config["heads"] = {"band_gap": {"module": head, "output_name": "band_gap"}, **config["heads"]}
    model = model_of(config)
    declared = {"energy": {"property": "energy"}, "forces": {"property": "forces"}, "band_gap": {}}
    content = {"config": {"model": config, "outputs": declared}, "state_dict": model.state_dict(), "normalizers": {}}
    torch.save(content, tmp_path / "teacher.pt")
    outputs = load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), CPU)(batch, ALL)
    model.eval()
    torch.manual_seed(0)
    raw = model(batch)
    expected = raw["energy"] if passed else raw["energy"]["energy"]
    torch.testing.assert_close(outputs.energy, expected.detach(), **RANDOM_FRAMES)
    sums = torch.zeros(len(batch.natoms)).index_add(0, batch.batch, outputs.atom_energies)
    torch.testing.assert_close(sums, outputs.energy)
    owner = load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), CPU)
    assert owner.features.owner("energy_block") is owner.model.output_heads["energy"]


def test_two_outputs_of_a_property_are_refused_by_name():
    declared = {"oc20_energy": {"property": "energy"}, "omat_energy": {"property": "energy"}, "forces": None}
    outputs = ModelOutputs("outputs", declared)
    with pytest.raises(ValueError, match=r"one output of property `energy`, found `oc20_energy`, `omat_energy`\. Leave"):
        _ = outputs["energy"]
    assert outputs["forces"].name == "forces"
    values = {"oc20_energy": torch.zeros(2), "forces": torch.zeros(3)}
    assert outputs.by_property(values, keys.ENERGY, keys.FORCES).keys() == values.keys()


def test_an_output_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"outputs: expected one output of property `forces`, found `energy`\. Name"):
        _ = ModelOutputs("outputs", {"energy": {"level": "system"}})["forces"]


def test_what_a_model_returns_is_read_by_name_then_by_property():
    zero, unity = torch.zeros(1), torch.ones(1)
    assert predicted({"energy": zero, "oc20_energy": unity}, "energy", "oc20_energy") is unity
    assert predicted({"oc20_energy": {"energy": zero}, "omat_energy": {"energy": unity}}, "energy", "oc20_energy") is zero
    assert predicted({"efs": {"energy": zero, "forces": unity}}, "forces", "forces") is unity
    with pytest.raises(ValueError, match="returns 2 `energy`, but none under the name `energy`; it returns `a`, `b`"):
        predicted({"a": {"energy": zero}, "b": {"energy": unity}}, "energy", "energy")
    with pytest.raises(ValueError, match="returns no `forces`"):
        predicted({"energy": zero}, "forces", "forces")


def test_missing_forces_are_an_error_once_requested(batch, tmp_path):
    model = build("painn")
    declared = {"energy": {"level": "system"}}
    content = {
        "config": {"model": MODELS["painn"], "outputs": declared},
        "state_dict": model.state_dict(),
        "normalizers": {},
    }
    torch.save(content, tmp_path / "teacher.pt")
    teacher = load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), CPU)
    assert teacher(batch, [keys.ENERGY]).energy.shape == (3,)
    with pytest.raises(ValueError, match=r"Teacher .*teacher\.pt: expected one output of property `forces`, found `energy`"):
        teacher(batch, [keys.FORCES])
