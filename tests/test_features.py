"""Each adapter against what it promises: the same checks for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from conftest import STUDENT_MODEL, TEACHER_MODEL
from scipy.spatial.transform import Rotation
from torch import nn

from fairchem_crack import features
from fairchem_crack.features import Features, attach_features, register_features

# More neighbours than any atom has: among equally distant ones (an atom's images left and right) the graph of a model that
# keeps fewer depends on the order of atoms and on rounding.
EVERY_NEIGHBOR = {"max_neighbors": 200, "otf_graph": True}
MODELS = {"equiformer_v2": {**TEACHER_MODEL, **EVERY_NEIGHBOR}, "painn": {**STUDENT_MODEL, **EVERY_NEIGHBOR}}
WIDTHS = {"equiformer_v2": "sphere_channels", "painn": "hidden_channels"}
ELEMENTS = {"equiformer_v2": "max_num_elements", "painn": "num_elements"}  # the option that limits them
# Largest deviation of a moved system's embedding over its largest entry. Measured 2e-6 and 1e-6; rattling atoms by 0.01 A
# deviates by 5e-2 and 3e-3. EquiformerV2 draws a random frame for each edge, whose effect is rounding at this lmax.
INVARIANCE = {"equiformer_v2": 1e-4, "painn": 1e-4}
ROUNDING = 1e-5  # sums of float32, relative


def build(name: str, **options) -> nn.Module:
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    attributes = {**MODELS[name], **options}
    attributes.pop("name")
    torch.manual_seed(3)
    return registry.get_model_class(name)(**attributes).eval()


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name) -> nn.Module:
    return build(name)


def slabs() -> list[Atoms]:
    """Two rattled slabs of different size, each with an adsorbate."""
    systems = []
    for seed, (metal, size, adsorbate) in enumerate([("Cu", (2, 2, 2), "O"), ("Pt", (2, 1, 3), "N")]):
        slab = fcc100(metal, size, vacuum=6.0)
        add_adsorbate(slab, adsorbate, 1.5, "hollow")
        slab.pbc = True
        slab.rattle(0.1, seed=seed)
        systems.append(slab)
    return systems


def collate(systems: list[Atoms]):
    from fairchem.core.datasets import data_list_collater
    from fairchem.core.preprocessing import AtomsToGraphs

    convert = AtomsToGraphs(r_edges=False, r_pbc=True)
    return data_list_collater([convert.convert(one, sid=sid) for sid, one in enumerate(systems)], otf_graph=True)


def forward(model: nn.Module, systems: list[Atoms], *, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)  # of EquiformerV2's edge frames
    with torch.no_grad():
        return {key: value.detach() for key, value in model(collate(systems)).items()}


def embedding(name: str, model: nn.Module, systems: list[Atoms], *, seed: int = 0) -> torch.Tensor:
    adapter = attach_features(name, model, "teacher")
    forward(model, systems, seed=seed)
    found = adapter.node_embedding.detach()
    adapter.close()
    return found


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_node_embedding_has_a_row_for_each_atom_and_tells_atoms_apart(name, model):
    systems = slabs()
    adapter = attach_features(name, model, "teacher")
    forward(model, systems)
    assert adapter.width == MODELS[name][WIDTHS[name]]
    assert adapter.node_embedding.shape == (sum(map(len, systems)), adapter.width)
    assert torch.pdist(adapter.node_embedding.detach()).min() > 100 * INVARIANCE[name]


def test_node_embedding_is_invariant_under_rotation(name, model):
    rotated = slabs()
    for seed, system in enumerate(rotated):
        turn = Rotation.random(random_state=seed).as_matrix()
        system.set_cell(system.cell @ turn.T)
        system.positions = system.positions @ turn.T
    assert deviation(embedding(name, model, slabs()), embedding(name, model, rotated)) < INVARIANCE[name]


def test_node_embedding_is_invariant_under_translation_and_wrapping(name, model):
    moved = slabs()
    moved[0].translate([0.3, -1.7, 0.9])
    moved[1].positions += np.arange(len(moved[1]))[:, None] % 3 * moved[1].cell[0]  # each atom to another periodic image
    moved[1].positions -= np.arange(len(moved[1]))[:, None] % 2 * moved[1].cell[1]
    assert deviation(embedding(name, model, slabs()), embedding(name, model, moved)) < INVARIANCE[name]


def test_node_embedding_goes_with_its_atom(name, model):
    systems, rng = slabs(), np.random.default_rng(0)
    orders = [rng.permutation(len(system)) for system in systems]
    rows = np.concatenate([orders[0], len(systems[0]) + orders[1]])
    permuted = embedding(name, model, [system[order] for system, order in zip(systems, orders)])
    assert deviation(embedding(name, model, systems)[rows], permuted) < INVARIANCE[name]


def test_node_embedding_depends_on_its_own_system_alone(name, model):
    one, other = slabs()
    alone = embedding(name, model, [other])
    assert deviation(embedding(name, model, [one, other])[len(one) :], alone) < INVARIANCE[name]


def test_atom_energies_add_up_to_the_energy_of_each_system(name, model):
    systems = slabs()
    adapter = attach_features(name, model, "teacher")
    energy = forward(model, systems)["energy"].flatten().numpy()
    parts = np.split(adapter.atom_energies.detach().numpy(), [len(systems[0])])
    assert [len(part) for part in parts] == [len(system) for system in systems]
    assert np.abs(energy).min() > 10 * ROUNDING
    assert [part.sum() for part in parts] == pytest.approx(energy, abs=ROUNDING * np.abs(energy).max())


def test_an_edge_joins_two_atoms_of_one_system_and_every_near_pair_has_one(name, model):
    systems = slabs()
    cutoff = MODELS[name].get("max_radius", MODELS[name].get("cutoff"))
    adapter = attach_features(name, model, "teacher")
    forward(model, systems)
    start, near = 0, set()
    for system in systems:  # the oracle: ASE's minimum image distances
        close = (system.get_all_distances(mic=True) < cutoff) & ~np.eye(len(system), dtype=bool)
        near |= {(int(i) + start, int(j) + start) for i, j in np.argwhere(close)}
        start += len(system)
    assert {(i, j) for i, j in adapter.edge_index.T.tolist() if i != j} == near


def test_the_model_computes_the_same_with_and_without_adapter(name, model):
    plain = forward(model, slabs())
    adapter = attach_features(name, model, "teacher")
    hooked = forward(model, slabs())
    adapter.close()
    after = forward(model, slabs())
    assert {"energy", "forces"} <= plain.keys()
    for key, value in plain.items():
        assert torch.equal(value, hooked[key]) and torch.equal(value, after[key])


def test_a_forward_can_stop_when_all_is_read(name, model):
    adapter = attach_features(name, model, "teacher")
    forward(model, slabs())
    whole = {"node_embedding": adapter.node_embedding, "edge_index": adapter.edge_index}
    adapter.clear()
    torch.manual_seed(0)  # as in forward
    with adapter.stopping_after(*whole):
        model(collate(slabs()))
        pytest.fail("the forward went on")
    assert adapter._values.keys() == whole.keys()
    assert torch.equal(adapter.node_embedding, whole["node_embedding"])
    assert torch.equal(adapter.edge_index, whole["edge_index"])
    assert "energy" in forward(model, slabs()) and adapter.atom_energies is not None  # whole again


def test_gradients_flow_through_the_node_embedding(name, model):
    adapter = attach_features(name, model, "student")
    model(collate(slabs()))
    adapter.node_embedding.square().sum().backward()
    parameter = dict(model.named_parameters())
    first = "atom_emb.embeddings.weight" if name == "painn" else "sphere_embedding.weight"
    assert parameter[first].grad.abs().sum() > 0


def test_close_leaves_no_hook_and_clear_no_tensor(name, model):
    before = hooks(model)
    adapter = attach_features(name, model, "teacher")
    assert hooks(model) > before
    forward(model, slabs())
    adapter.clear()
    with pytest.raises(KeyError):
        _ = adapter.node_embedding
    forward(model, slabs())
    adapter.close()
    assert hooks(model) == before and not adapter._values
    forward(model, slabs())
    assert not adapter._values


def test_max_atomic_number_is_the_last_one_that_runs(name):
    model = build(name, **{ELEMENTS[name]: 30})  # 29 or 30, by whether row 0 stands for hydrogen
    system = slabs()[0]
    largest = attach_features(name, model, "teacher").max_atomic_number
    system.numbers[0] = largest
    assert torch.isfinite(forward(model, [system])["energy"]).all()
    system.numbers[0] = largest + 1
    with pytest.raises(IndexError):
        forward(model, [system])


def test_unknown_architecture_names_the_role_and_the_known_ones():
    with pytest.raises(ValueError, match=r"The student is a `painm`.*`equiformer_v2`, `painn`.*Did you mean `painn`\?"):
        attach_features("painm", nn.Identity(), "student")


def test_an_adapter_of_ones_own_needs_a_few_lines(monkeypatch):
    monkeypatch.setattr(features, "_ADAPTERS", dict(features._ADAPTERS))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 1)

        def forward(self, numbers):
            return self.head(self.embed(numbers)).sum()

    @register_features("my_model")
    class MyFeatures(Features):
        def attach(self, model: nn.Module) -> None:
            self.width, self.max_atomic_number = 3, 4
            self.on_input(model.head, "node_embedding", lambda args: args[0])
            self.on_output(model.head, "atom_energies", lambda output: output)

    model, numbers = Model(), torch.tensor([1, 4, 2])
    adapter = attach_features("my_model", model, "teacher")
    energy = model(numbers)
    assert torch.equal(adapter.node_embedding, model.embed.weight[numbers])
    assert torch.equal(adapter.atom_energies.sum(), energy)
    adapter.close()
    assert hooks(model) == 0
