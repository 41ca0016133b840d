"""Every adapter against the conformance check that the package ships, and what single adapters must hold beyond it."""

from __future__ import annotations

import pytest
import torch
from architectures import MODELS, build
from fairchem.core.common.registry import registry
from tolerances import FLOAT32_SMALL, FLOAT32_TINY, SPHERE
from torch import nn

from fairchem_crack.adapters import Features, architecture, attach_features, base, register_features
from fairchem_crack.testing import FeaturesConformance, collate, hooks, slabs

# Largest deviation of a moved system's embedding over its largest entry: 4e-6 measured, and 6e-4 for GemNet-OC, whose
# dihedral angles lose digits in float32.
TOLERANCES = {name: 5e-3 if "gemnet_oc" in name else 1e-4 for name in MODELS}
# What is tried on a GPU too: together they read all that adapter and teacher have of a model.
ON_A_GPU = [
    "test_atom_energies_add_up_to_the_energy_of_each_system",
    "test_a_teacher_builds_no_graph_and_keeps_the_batch",
]
# The option that limits the elements, where there is one.
ELEMENTS = {
    "equiformer_v2": "max_num_elements",
    "escn": "max_num_elements",
    "painn": "num_elements",
    "gemnet_t": "num_elements",
}


class TestEveryAdapter(FeaturesConformance):
    @pytest.fixture(autouse=True, params=MODELS)
    def _model(self, request) -> None:
        self.name, self.tolerance = request.param, TOLERANCES[request.param]

    def build(self) -> nn.Module:
        return build(self.name)


@pytest.mark.parametrize("holds", ON_A_GPU)
@pytest.mark.parametrize("name", MODELS)
def test_every_adapter_works_on_a_gpu(name, holds, gpu):
    conformance = TestEveryAdapter()
    conformance.name, conformance.tolerance, conformance.device = name, TOLERANCES[name], gpu
    getattr(conformance, holds)()


@pytest.mark.parametrize("name", MODELS)
def test_a_students_gradients_are_on_its_gpu(name, gpu):
    model = build(name).to(gpu).train()
    adapter = attach_features(model, "student")
    outputs = model(collate(slabs(), gpu))
    sum(value.sum() for value in (adapter.node_embedding, outputs["energy"], outputs["forces"])).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and {gradient.device.type for gradient in gradients} == {"cuda"}


@pytest.mark.parametrize("name", ELEMENTS)
def test_max_atomic_number_is_the_last_one_that_runs(name):
    model = build(name, **{ELEMENTS[name]: 30}).eval()  # 29 or 30, by whether row 0 stands for hydrogen
    system = slabs()[0]
    largest = attach_features(model, "teacher").max_atomic_number
    system.numbers[0] = largest
    assert torch.isfinite(model(collate([system]))["energy"]).all()
    system.numbers[0] = largest + 1
    with pytest.raises((IndexError, AssertionError)):
        model(collate([system]))


def test_spherical_atom_energies_come_from_the_node_embedding():
    """The heads, applied by hand to the coefficients that the adapter split, give the atom energies."""
    model = build("escn").eval()
    adapter = attach_features(model, "teacher")
    model(collate(slabs()))
    low = torch.cat((adapter.node_embedding[:, None], adapter.vector_embedding), dim=1)  # (N, 4, C)
    rest = model.sphere_points.new_zeros(len(low), 9 - 4, low.shape[2])
    seen: list[torch.Tensor] = []
    model.energy_block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    model(collate(slabs()))
    coefficients = torch.linalg.lstsq(  # of what enters the head, back from the values on the sphere
        model.sphharm_weights[0].expand(len(low), -1, -1), seen[0].view(len(low), -1, low.shape[2])
    ).solution
    torch.testing.assert_close(coefficients[:, :4], torch.cat((low, rest), dim=1)[:, :4], **SPHERE)


@pytest.mark.parametrize("name", ["equiformer_v2 hydra", "escn hydra", "esen hydra"])
def test_a_head_that_averages_divides_its_atom_energies(name, monkeypatch):
    attributes = {**MODELS[name], "heads": {**MODELS[name]["heads"]}}
    attributes["heads"]["energy"] = {**attributes["heads"]["energy"], "reduce": "mean"}
    monkeypatch.setitem(MODELS, name, attributes)
    model = build(name).eval()
    adapter = attach_features(model, "teacher")
    batch = collate(slabs())
    energy = model(batch)["energy"]
    sums = torch.zeros(2).index_add(0, batch.batch, adapter.atom_energies[:, 0])
    torch.testing.assert_close(sums, energy, **FLOAT32_TINY)


def test_atom_energies_hold_the_linear_references():
    model = build("equiformer_v2", use_energy_lin_ref=True, load_energy_lin_ref=True).eval()
    with torch.no_grad():
        model.energy_lin_ref.normal_()
    adapter = attach_features(model, "teacher")
    batch = collate(slabs())
    energy = model(batch)["energy"]
    sums = torch.zeros(2).index_add(0, batch.batch, adapter.atom_energies[:, 0])
    torch.testing.assert_close(sums, energy, **FLOAT32_SMALL)


def test_architecture_is_the_registered_name_of_the_backbone():
    assert architecture(build("gemnet_t")) == "gemnet_t"
    assert architecture(build("escn hydra")) == "escn_backbone"


def test_unknown_architecture_names_the_role_and_the_known_ones(monkeypatch):
    class PaiNM(nn.Module):
        pass

    monkeypatch.setitem(registry.mapping["model_name_mapping"], "painm", PaiNM)
    with pytest.raises(ValueError, match=r"The student is a `painm`.*`equiformer_v2`, .*`painn`.*Did you mean `painn`\?"):
        attach_features(PaiNM(), "student")


def test_a_users_own_adapter_needs_a_few_lines(monkeypatch):
    monkeypatch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 1)

        def forward(self, numbers):
            return self.head(self.embed(numbers)).sum()

    monkeypatch.setitem(registry.mapping["model_name_mapping"], "my_model", Model)

    @register_features("my_model")
    class MyFeatures(Features):
        def attach(self) -> None:
            self.width, self.max_atomic_number = 3, 4
            self.on_input(self.backbone.head, lambda args: {"node_embedding": args[0]})
            self.on_energies(self.backbone.head, lambda output: output)

    model, numbers = Model(), torch.tensor([1, 4, 2])
    adapter = attach_features(model, "teacher")
    energy = model(numbers)
    assert torch.equal(adapter.node_embedding, model.embed.weight[numbers])
    assert torch.equal(adapter.atom_energies.sum(), energy)
    adapter.close()
    assert hooks(model) == 0
