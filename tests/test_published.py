"""Checkpoints in the format of fairchem's published OC20 files: we load what stock fairchem loads, with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tolerances import SPHERE
from tools.make_published_checkpoint import PUBLISHED, TARGET_MEAN, TARGET_STD, write_published_checkpoint

from fairchem_crack.config import TeacherConfig
from fairchem_crack.teacher.frozen import Teacher, load_teacher

CPU = torch.device("cpu")
SMALL_ESCN = {"num_layers": 2, "sphere_channels": 8, "hidden_channels": 8, "lmax_list": [2], "mmax_list": [1]}
SMALL_GEMNET = {"num_blocks": 1, "num_radial": 8, "num_spherical": 3, "emb_size_atom": 8, "emb_size_edge": 8}
SMALL = {
    "eqV2_31M": {
        "num_layers": 2,
        "sphere_channels": 8,
        "attn_hidden_channels": 8,
        "num_heads": 2,
        "attn_alpha_channels": 8,
        "attn_value_channels": 4,
        "ffn_hidden_channels": 8,
        "lmax_list": [2],
        "mmax_list": [1],
        "edge_channels": 8,
        "grid_resolution": 8,
        "max_radius": 6.0,
    },
    "escn_L4_M2_Lay12": {**SMALL_ESCN, "cutoff": 6.0},
    "painn_h512": {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 6.0},
    "gemnet_dT": SMALL_GEMNET,
    "gemnet_oc": {**SMALL_GEMNET, "cutoff": 6.0, "cutoff_qint": 6.0, "cutoff_aeaint": 6.0, "cutoff_aint": 6.0},
}
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}  # of the random edge frames


def slab():
    """O on Cu(111), 13 atoms: periodic in the plane, its lowest layer tagged 0."""
    from ase.build import add_adsorbate, fcc111
    from ase.constraints import FixAtoms

    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    height = atoms.positions[:, 2]
    tags = [2 if symbol == "O" else int(z > height.min() + 0.1) for symbol, z in zip(atoms.symbols, height)]
    atoms.set_tags(tags)
    atoms.set_constraint(FixAtoms(mask=[tag == 0 for tag in tags]))
    return atoms


def slab_batch():
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.preprocessing import AtomsToGraphs

    return data_list_collater([AtomsToGraphs(r_edges=False, r_pbc=True).convert(slab(), sid=0)], otf_graph=True)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Callable: write a small checkpoint of a published model; returns its path and the model it holds."""
    directory = tmp_path_factory.mktemp("published")

    def write(name: str, **options):
        path = directory / f"{name}.pt"
        return path, write_published_checkpoint(name, path, seed=3, **SMALL[name], **options)

    return write


def content(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def with_ema_weights(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The model, its trainable parameters set to the file's EMA weights by their order."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = content(path)["ema"]["shadow_params"]
    assert len(trainable) == len(averages)
    with torch.no_grad():
        for parameter, average in zip(trainable, averages):
            parameter.copy_(average)
    return model


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_a_teacher_has_the_embeddings_of_the_written_model(write, name, use_ema):
    path, model = write(name)
    expected = with_ema_weights(model, path) if use_ema else model
    loaded = load_teacher(TeacherConfig(checkpoint=str(path), use_ema=use_ema), CPU)(slab_batch())
    written = Teacher(PUBLISHED[name][0], expected, path)(slab_batch())
    assert torch.equal(loaded.node_embedding, written.node_embedding)
    assert torch.equal(loaded.edge_index, written.edge_index)
    of_other_weights = load_teacher(TeacherConfig(checkpoint=str(path), use_ema=not use_ema), CPU)(slab_batch())
    assert not torch.allclose(loaded.node_embedding, of_other_weights.node_embedding, **SPHERE)


def test_a_teacher_of_a_file_without_ema_has_its_own_weights(write):
    path, model = write("eqV2_31M", ema=False)
    loaded = load_teacher(TeacherConfig(checkpoint=str(path)), CPU)(slab_batch())
    assert torch.equal(loaded.node_embedding, Teacher("equiformer_v2", model, path)(slab_batch()).node_embedding)


@pytest.mark.parametrize("name", SMALL)
def test_stock_fairchem_reads_the_file(write, name):
    from fairchem.core.common.relaxation.ase_utils import OCPCalculator

    path, model = write(name)
    atoms = slab()
    atoms.calc = OCPCalculator(checkpoint_path=path, cpu=True, seed=0)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    assert forces.shape == (len(atoms), 3)
    # OCPCalculator takes a file's own weights, not its EMA's; the normalizers `target` and `grad_target` give eV and eV/A
    model.eval().otf_graph = True  # as OCPCalculator sets it
    expected = model(slab_batch())
    torch.testing.assert_close(
        torch.tensor(energy), TARGET_STD * expected["energy"].detach().view(()) + TARGET_MEAN, check_dtype=False, **ROUNDING
    )
    torch.testing.assert_close(torch.tensor(forces), TARGET_STD * expected["forces"].detach(), **ROUNDING)


@pytest.mark.parametrize("name", SMALL)
def test_the_file_is_in_the_old_format(write, name):
    path, model = write(name)
    checkpoint = content(path)
    registered, attributes = PUBLISHED[name]
    assert checkpoint["config"]["model"] == registered
    assert checkpoint["config"]["model_attributes"] == {**attributes, **SMALL[name]}
    assert checkpoint["config"]["task"]["dataset"] == "trajectory_lmdb" and "loss_functions" not in checkpoint["config"]
    assert list(checkpoint["state_dict"]) == [f"module.module.{key}" for key in model.state_dict()]
    assert {key: sorted(value) for key, value in checkpoint["normalizers"].items()} == {
        "target": ["mean", "std"],
        "grad_target": ["mean", "std"],
    }
    assert all(torch.is_tensor(value) for normalizer in checkpoint["normalizers"].values() for value in normalizer.values())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [value.shape for value in checkpoint["ema"]["shadow_params"]] == [value.shape for value in trainable]
    has_scales = registered in ("painn", "gemnet_t", "gemnet_oc")
    assert ("scale_dict" in checkpoint) is has_scales
    if has_scales:
        assert checkpoint["scale_dict"] and all(scale == 1 for scale in checkpoint["scale_dict"].values())


def test_a_teacher_takes_the_scale_factors_of_the_scale_dict(write, tmp_path):
    path, _ = write("painn_h512")
    changed = content(path)
    for key in list(changed["state_dict"]):
        if key.endswith(".scale_factor"):  # which fairchem requires to equal the scale dict's where it has both
            del changed["state_dict"][key]
    changed["scale_dict"] = dict.fromkeys(changed["scale_dict"], torch.tensor(0.25))
    torch.save(changed, tmp_path / "scaled.pt")
    model = load_teacher(TeacherConfig(checkpoint=str(tmp_path / "scaled.pt")), CPU).model
    assert [float(model.get_parameter(f"{name}.scale_factor")) for name in changed["scale_dict"]] == [0.25, 0.25]


def test_only_the_seed_decides_the_file_and_global_rng_stays(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    file, second = tmp_path / "one.pt", tmp_path / "other.pt"
    write_published_checkpoint("painn_h512", file, seed=5, **SMALL["painn_h512"])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    write_published_checkpoint("painn_h512", second, seed=5, **SMALL["painn_h512"])
    weights, others = content(file)["state_dict"], content(second)["state_dict"]
    assert all(torch.equal(value, others[key]) for key, value in weights.items())
    write_published_checkpoint("painn_h512", second, seed=6, **SMALL["painn_h512"])
    assert not all(torch.equal(value, content(second)["state_dict"][key]) for key, value in weights.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pt", "other.pt"]


def test_an_unknown_name_or_option_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eqV2_13M"):
        write_published_checkpoint("eqV2_13M", tmp_path / "no.pt")
    with pytest.raises(ValueError, match="num_layer;"):
        write_published_checkpoint("eqV2_31M", tmp_path / "no.pt", num_layer=1)
