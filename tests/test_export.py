"""The pure forward of a PaiNN: equal to fairchem's module, and in files that need torch only."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CUTOFF, build
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, molecule
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from tolerances import FLOAT32_SMALL, FLOAT64, PURE_ENERGY, PURE_FORCES

from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.commands.cli import main
from fairchem_crack.commands.export import FORMATS
from fairchem_crack.export.batches import BatchPairs
from fairchem_crack.export.checkpoint import forces_of, student_of
from fairchem_crack.export.neighbors import GraphRule, Pairs
from fairchem_crack.export.student import read_student, write_student
from fairchem_crack.export.weights import painn_of
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.testing import deviation

sys.path.append(str(Path(__file__).parent / "tools"))

STUDENTS = {
    "direct": ("painn", {}),
    "gradient": ("painn", {"direct_forces": False}),
    "hydra": ("painn hydra", {}),
    "hydra, gradient": ("painn hydra", {"direct_forces": False}),
    "conservative": ("painn hydra, gradient of its energy", {}),
    "bessel": ("painn", {"rbf": {"name": "spherical_bessel"}, "envelope": {"name": "exponential"}}),
    "bernstein": ("painn", {"rbf": {"name": "bernstein"}}),
    "few neighbors": ("painn", {"max_neighbors": 7}),
    "scaled": ("painn", {"scale_file": {"upd_out_scalar_scale_0": 1.3, "upd_out_scalar_scale_1": 0.7}}),
}
# Without fairchem, torch-scatter, PyG, ASE, numpy lists or this package; the pairs by brute force.
BARE = """
import itertools, json, sys
class Block:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("fairchem", "fairchem_crack", "torch_scatter", "torch_geometric", "ase", "vesin"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import torch
files = {"student.json": ""}
if sys.argv[2] == "torchscript":
    student = torch.jit.load(sys.argv[1], _extra_files=files)
else:
    student = torch.export.load(sys.argv[1], extra_files=files).module()
info = json.loads(files["student.json"])
given = json.load(sys.stdin)
positions, cell = (torch.tensor(given[name], dtype=torch.float64) for name in ("positions", "cell"))
numbers, count = torch.tensor(given["numbers"]), len(given["numbers"])
pairs, shifts = [], []
for i, j in itertools.product(range(count), repeat=2):
    for shift in itertools.product((-2, -1, 0, 1, 2), repeat=3):
        apart = positions[j] - positions[i] + torch.tensor(shift, dtype=torch.float64) @ cell
        if (j < i or (i == j and shift < (0, 0, 0))) and apart.norm() <= info["cutoff"]:
            pairs.append((i, j)), shifts.append(shift)
energy, forces, _ = student(
    numbers, positions, cell[None], torch.tensor(pairs).T, torch.tensor(shifts), torch.zeros(count, dtype=torch.long)
)
print(json.dumps([energy.tolist(), forces.tolist(), info]))
"""


def exact(atoms: Atoms) -> Atoms:
    """Numbers of which float32 holds all digits, sums and small multiples too: fairchem rounds positions and cells to it."""
    atoms.cell[:] = np.round(atoms.cell.array * 2**10) / 2**10
    atoms.positions[:] = np.round(atoms.positions * 2**10) / 2**10
    return atoms


def slab(pbc=(True, True, True), seed: int = 0) -> Atoms:
    """A rattled slab with an adsorbate, some atoms out of the cell."""
    atoms = fcc100("Cu", (2, 2, 2), vacuum=4.0)
    add_adsorbate(atoms, "O", 1.5, "hollow")
    atoms.pbc = pbc
    atoms.rattle(0.1, seed=seed)
    atoms.positions += [3.0, -7.0, 11.0]
    return exact(atoms)


def of_fairchem(name: str, systems: list[Atoms], **options):
    """The module's energies (B,) and forces (N, 3), each system by itself: fairchem's pbc are those of a batch."""
    model = build(name, **options).eval()
    convert = AtomsToGraphs(r_edges=False, r_pbc=True)
    outputs = []
    for system in systems:
        batch = data_list_collater([convert.convert(system, sid=0)], otf_graph=True)
        outputs.append(model(batch))
    return torch.cat([out["energy"] for out in outputs]), torch.cat([out["forces"].view(-1, 3) for out in outputs])


def pure(painn, rule: GraphRule, systems: list[Atoms]):
    """The pure forward of the systems as one batch."""
    system = np.repeat(np.arange(len(systems)), [len(atoms) for atoms in systems])
    positions = np.concatenate([atoms.positions for atoms in systems])
    cells, pbc = np.stack([atoms.cell.array for atoms in systems]), np.stack([atoms.pbc for atoms in systems])
    pairs, shifts, cells = BatchPairs(rule)(positions, cells, pbc, system)
    numbers = np.concatenate([atoms.numbers for atoms in systems])
    return painn(*map(torch.from_numpy, (numbers, positions, cells, pairs, shifts, system)))


def painn_and_rule(name: str, dtype: torch.dtype = torch.float32, **options):
    student = Teacher(name, build(name, **options).to(dtype), Path("toy.pt"))
    painn, backbone = painn_of(student), student.features.backbone
    student.close()
    return painn, GraphRule(backbone.cutoff, backbone.max_neighbors)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A PaiNN in the published format: normalizers, averaged weights, 12 neighbors."""
    from make_published_checkpoint import write_published_checkpoint

    path = tmp_path_factory.mktemp("student") / "student.pt"
    write_published_checkpoint(
        "painn_h512", path, hidden_channels=16, num_layers=2, num_rbf=8, max_neighbors=12, cutoff=CUTOFF
    )
    return path


@pytest.mark.parametrize("student", STUDENTS)
def test_the_pure_forward_equals_the_module(student):
    name, options = STUDENTS[student]
    systems = [slab((bool(a), bool(b), bool(c))) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    systems += map(exact, [bulk("Pt"), bulk("Fe"), molecule("CH3OH")])  # cells smaller than the cutoff, one atom, no cell
    painn, rule = painn_and_rule(name, **options)
    energy, forces, atom_energies = pure(torch.jit.script(painn), rule, systems)
    expected_energy, expected_forces = of_fairchem(name, systems, **options)
    assert deviation(expected_energy.detach(), energy) < PURE_ENERGY
    assert deviation(expected_forces.detach(), forces) < PURE_FORCES
    sums = [float(part.sum()) for part in atom_energies.split([len(atoms) for atoms in systems])]
    np.testing.assert_allclose(sums, energy, rtol=1e-12)


@pytest.mark.parametrize("student", ["direct", "gradient", "conservative"])
def test_in_float64_they_are_equal_to_rounding(student):
    atoms, (name, options) = slab(), STUDENTS[student]
    painn, rule = painn_and_rule(name, torch.float64, **options)
    energy, forces, _ = pure(painn, rule, [atoms])
    batch = data_list_collater([AtomsToGraphs(r_edges=False, r_pbc=True).convert(atoms, sid=0)], otf_graph=True)
    model = build(name, **options).eval()
    backbone = getattr(model, "backbone", model)
    graph = backbone.generate_graph(batch)
    batch.edge_index, batch.cell_offsets, batch.neighbors = graph.edge_index, graph.cell_offsets, graph.neighbors
    batch.pos, batch.cell, backbone.otf_graph = batch.pos.double(), batch.cell.double(), False
    torch.set_default_dtype(torch.float64)
    try:
        expected = model.double()(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(energy, expected["energy"].detach(), **FLOAT64)
    torch.testing.assert_close(forces, expected["forces"].detach(), **FLOAT64)


def test_the_energy_head_has_the_gradient_of_the_energy():
    atoms, direction = slab(), np.random.default_rng(0).normal(size=(9, 3))
    painn, rule = painn_and_rule("painn hydra, gradient of its energy", torch.float64)
    assert forces_of(painn) == "conservative"
    painn.force_scale.fill_(0.65)  # another scale than the energy's
    assert forces_of(painn) == "gradient"
    painn.force_scale.fill_(1.0)
    forces = pure(painn, rule, [atoms])[1]
    energies = []
    for step in (1e-5, -1e-5):
        moved = atoms.copy()
        moved.positions += step * direction
        energies.append(pure(painn, rule, [moved])[0].item())
    assert (energies[1] - energies[0]) / 2e-5 == pytest.approx(float((forces.numpy() * direction).sum()), rel=1e-6)


def test_lists_with_a_skin_give_the_pairs_of_a_new_search():
    rule, random, atoms = GraphRule(5.0, 9), np.random.default_rng(1), slab()
    cell = atoms.cell.array
    kept = Pairs(rule, skin=0.6)
    for _ in range(12):
        atoms.positions += random.normal(scale=0.08, size=(len(atoms), 3))
        pairs, shifts = kept(atoms.positions, cell, atoms.pbc)
        new, new_shifts = Pairs(rule, skin=0)(atoms.positions, cell, atoms.pbc)
        rows, new_rows = (
            sorted(map(tuple, np.column_stack([of.T, moved]).tolist())) for of, moved in ((pairs, shifts), (new, new_shifts))
        )
        assert rows == new_rows
    assert 1 < kept.searches < 8


@pytest.mark.parametrize("format_", FORMATS)
def test_an_exported_file_runs_with_torch_alone(format_, checkpoint, tmp_path, capsys):
    file = tmp_path / "new" / "student.pt2"
    elements = ["--elements", "Cu", "O", "Cu"]
    main(["export", "--checkpoint", str(checkpoint), "--output", str(file), "--format", format_, *elements])
    assert "2 elements, cutoff 5 A, the 12 nearest neighbors of an atom, direct forces" in capsys.readouterr().out
    assert list(file.parent.iterdir()) == [file]
    atoms = molecule("CH3OH", vacuum=2.0, pbc=True)  # no atom has more than 12 neighbors
    atoms.numbers[:] = 8
    painn, info = student_of(checkpoint)
    energy, forces, _ = pure(painn, info.rule, [atoms])
    values = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array}
    given = json.dumps({name: value.tolist() for name, value in values.items()})
    command = [sys.executable, "-I", "-W", "ignore", "-c", BARE, str(file), format_]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bare_energy, bare_forces, record = json.loads(done.stdout)
    np.testing.assert_allclose(bare_energy, energy, rtol=1e-6)
    np.testing.assert_allclose(bare_forces, forces, **FLOAT32_SMALL)
    assert record["units"] == {"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom"}
    assert record["elements"] == [8, 29] and record["cutoff"] == 5.0
    assert read_student(file, torch.device("cpu")).info.checkpoint == info.checkpoint


@pytest.mark.parametrize("student", ["gradient", "conservative"])
def test_an_exported_gradient_is_that_of_every_step(student, checkpoint, tmp_path):
    (name, options), file = STUDENTS[student], tmp_path / "student.pt"
    painn, rule = painn_and_rule(name, torch.float64, **options)
    info = replace(student_of(checkpoint)[1], max_neighbors=rule.max_neighbors, forces=student, dtype="float64")
    write_student(painn, info, file, "torchscript")
    atoms, calculator = slab(), StudentCalculator(file)
    for seed in range(3):  # the second step is compiled, by what the first one was
        atoms.rattle(0.05, seed=seed)
        energy, forces, atom_energies = pure(painn, rule, [atoms])
        np.testing.assert_allclose(calculator.get_forces(atoms), forces, **FLOAT64)
        np.testing.assert_allclose(calculator.get_potential_energies(atoms), atom_energies, **FLOAT64)
        assert calculator.get_potential_energy(atoms) == pytest.approx(energy.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gemnet_t"}, "is a GemNet (`gemnet_t`), which is not exported: its triplets"),
        ({"model": "schnet"}, "is a `schnet`; only PaiNN has a pure forward"),
        ({"use_pbc": False}, "was trained with use_pbc: False"),
        ({"regress_forces": False}, "was trained without forces"),
        ({"outputs": {"energy": {}}}, "was trained without forces"),
        ({"weight": math.nan}, "toy.pt: 1 weights are not finite: embedding.weight"),
    ],
)
def test_what_has_no_pure_forward_is_refused_with_the_reason(change, message):
    options = dict(change)
    name, outputs, weight = (options.pop(key, None) for key in ("model", "outputs", "weight"))
    model = build(name or "painn", **options)
    if weight is not None:
        model.atom_emb.embeddings.weight.data[5, 3] = weight
    student = Teacher(name or "painn", model, Path("toy.pt"), ModelOutputs("toy.pt", outputs))
    with pytest.raises(ValueError) as error:
        painn_of(student)
    student.close()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "none.pt"], "none.pt: no such file"),
        (["--checkpoint", "{exported}"], "exported.pt is an exported student; expected the checkpoint"),
        (["--checkpoint", "{unfit}"], "unfit.pt: its weights do not fit the `painn` its config describes"),
        (["--output", "{checkpoint}"], "student.pt would replace the checkpoint"),
        (["--elements", "Xx"], "--elements: Xx: expected symbols"),
        (["--elements", "U"], "has embeddings of the atomic numbers 1-83, not of [92]"),
        (["--format", "pt2", "--gradient"], "--format pt2: forces that are a gradient need autograd"),
        (["--format", "metatomic"], "--format metatomic needs `pip install metatomic-torch`"),
    ],
)
def test_an_export_that_cannot_be_is_one_message(arguments, message, checkpoint, tmp_path, monkeypatch):
    if "--gradient" in arguments:
        arguments = arguments[:-1]
        painn, info = painn_and_rule("painn", direct_forces=False)[0], student_of(checkpoint)[1]
        monkeypatch.setattr("fairchem_crack.export.checkpoint.student_of", lambda *_, **__: (painn, info))
    monkeypatch.delitem(sys.modules, "fairchem_crack.export.metatomic", raising=False)
    monkeypatch.setitem(sys.modules, "metatensor", None)  # as where it is not installed
    exported = checkpoint.with_name("exported.pt")
    with zipfile.ZipFile(exported, "w") as file:
        file.writestr("exported/extra/student.json", "{}")
    content = torch.load(checkpoint)
    content["config"]["model_attributes"]["num_rbf"] = 4
    unfit = checkpoint.with_name("unfit.pt")
    torch.save(content, unfit)
    arguments = [argument.format(checkpoint=checkpoint, exported=exported, unfit=unfit) for argument in arguments]
    before, new = checkpoint.read_bytes(), tmp_path / "new" / "student.pt"
    with pytest.raises(SystemExit) as error:
        main(["export", "--checkpoint", str(checkpoint), "--output", str(new), *arguments])
    assert message in str(error.value) and "Teacher" not in str(error.value)
    assert not list(tmp_path.iterdir()) and checkpoint.read_bytes() == before
