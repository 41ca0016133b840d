"""The tests that every adapter must pass, as a class to inherit: run it on an adapter of your own.

    class TestMyFeatures(FeaturesConformance):
        def build(self):
            return MyModel(cutoff=5.0)

pytest collects the tests; nothing else is needed. Give the model more neighbors than any atom has (`max_neighbors: 200`):
among equally distant ones, the graph of a model that keeps fewer depends on the order of atoms and on rounding.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from fairchem_crack.adapters import Features, attach_features
from fairchem_crack.teacher.channels import by_degree
from fairchem_crack.teacher.frozen import Teacher

ROUNDING = 1e-5  # of sums of float32, relative


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


def collate(systems: list[Atoms], device: torch.device | str = "cpu") -> Batch:
    """The systems as fairchem's trainer passes them to a model."""
    convert = AtomsToGraphs(r_edges=False, r_pbc=True)
    batch = data_list_collater([convert.convert(system, sid=sid) for sid, system in enumerate(systems)], otf_graph=True)
    return batch.to(device)


def deviation(expected: Tensor, actual: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((expected - actual).abs().max() / expected.abs().max())


def hooks(model: nn.Module) -> int:
    """Forward hooks on the model and its parts."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class FeaturesConformance:
    """The tests. Subclass it, and say how to build the model.

    Attributes:
        tolerance: largest deviation, relative to the largest entry, of embeddings that should be equal. Rattling atoms by
            0.01 A must change them by far more.
        device: where models and batches are, all but those of the test under DDP.
    """

    tolerance: float = 1e-4
    device: torch.device | str = "cpu"

    def build(self) -> nn.Module:
        """A small model of the architecture, the same at each call."""
        raise NotImplementedError

    def attached(self) -> tuple[nn.Module, Features]:
        """The model in evaluation mode, and its adapter."""
        model = self.build().to(self.device).eval()
        return model, attach_features(model, "teacher")

    @staticmethod
    def forward(model: nn.Module, systems: list[Atoms]) -> dict[str, Tensor]:
        """The model's outputs; from the same seed, since some models draw a random frame for each edge."""
        torch.manual_seed(0)
        return model(collate(systems, next(model.parameters()).device))

    def embedding(self, systems: list[Atoms]) -> Tensor:
        """(N, D) node embedding of the systems, on the CPU."""
        model, adapter = self.attached()
        self.forward(model, systems)
        return adapter.node_embedding.detach().cpu()

    def vectors(self, systems: list[Atoms]) -> Tensor:
        """(N, 3, vector_width) vector embedding of the systems, on the CPU; three zeros for a model without."""
        model, adapter = self.attached()
        self.forward(model, systems)
        return adapter.vector_embedding.detach().cpu() if adapter.vector_width else torch.zeros(sum(map(len, systems)), 3, 1)

    def lengths(self, systems: list[Atoms]) -> Tensor:
        """(N, L - 1, vector_width) lengths of the embeddings of the degrees 2 to L; nothing for a model without."""
        model, adapter = self.attached()
        self.forward(model, systems)
        if adapter.higher_lmax < 2:
            return torch.zeros(1, 0, 1)
        assert adapter.higher_embedding.shape[1:] == ((adapter.lmax + 1) ** 2 - 4, adapter.vector_width)
        return torch.stack([part.norm(dim=1) for part in by_degree(adapter.higher_embedding.detach().cpu())], dim=1)

    def test_each_atom_has_a_row_and_an_embedding_of_its_own(self) -> None:
        systems = slabs()
        model, adapter = self.attached()
        self.forward(model, systems)
        assert adapter.node_embedding.shape == (sum(map(len, systems)), adapter.width)
        assert torch.pdist(adapter.node_embedding.detach()).min() > self.tolerance * adapter.node_embedding.abs().max()
        if adapter.vector_width:
            assert adapter.vector_embedding.shape == (sum(map(len, systems)), 3, adapter.vector_width)
            assert adapter.vector_embedding.abs().max() > 0

    def test_rotation_keeps_node_embeddings_and_rotates_vectors(self) -> None:
        turn = Rotation.random(random_state=0).as_matrix()
        rotated = slabs()
        for system in rotated:
            system.set_cell(system.cell @ turn.T)
            system.positions = system.positions @ turn.T
        assert deviation(self.embedding(slabs()), self.embedding(rotated)) < self.tolerance
        vectors = self.vectors(slabs())
        if vectors.any():
            turned = torch.einsum("xy,nyc->nxc", torch.tensor(turn, dtype=vectors.dtype), vectors)
            # a vector is a small difference of large terms where a site is nearly symmetric
            assert deviation(turned, self.vectors(rotated)) < 10 * self.tolerance
        lengths = self.lengths(slabs())
        if lengths.numel():
            assert deviation(lengths, self.lengths(rotated)) < 10 * self.tolerance

    def test_translation_and_wrapping_change_nothing(self) -> None:
        moved = slabs()
        moved[0].translate([0.3, -1.7, 0.9])
        moved[1].positions += np.arange(len(moved[1]))[:, None] % 3 * moved[1].cell[0]  # each atom to another image
        moved[1].positions -= np.arange(len(moved[1]))[:, None] % 2 * moved[1].cell[1]
        assert deviation(self.embedding(slabs()), self.embedding(moved)) < self.tolerance

    def test_autograd_provides_the_derivative_of_the_forces(self) -> None:
        model, adapter = self.attached()
        if not adapter.has_position_gradients:
            return
        model.train()  # in evaluation some models free the graph of their forces
        batch, step = collate(slabs(), self.device), 0.005

        def force(positions: Tensor) -> Tensor:
            torch.manual_seed(0)
            moved = batch.clone()
            moved.pos = positions
            outputs = model(moved)
            forces = outputs["forces"] if "forces" in outputs else next(iter(outputs.values()))["forces"]
            return forces.reshape(-1)[4]

        positions = batch.pos.clone().requires_grad_(True)
        (row,) = torch.autograd.grad(force(positions), positions)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            direction = torch.randn(row.shape, generator=generator).to(row)
            direction = direction / direction.norm()
            difference = float(force(batch.pos + step * direction) - force(batch.pos - step * direction)) / (2 * step)
            assert abs(difference - float((row * direction).sum())) < 0.02 * float(row.norm())

    def test_embeddings_are_permuted_with_their_atoms(self) -> None:
        systems, rng = slabs(), np.random.default_rng(0)
        orders = [rng.permutation(len(system)) for system in systems]
        rows = np.concatenate([orders[0], len(systems[0]) + orders[1]])
        permuted = [system[order] for system, order in zip(systems, orders)]
        assert deviation(self.embedding(systems)[rows], self.embedding(permuted)) < self.tolerance

    def test_embeddings_depend_only_on_their_own_system(self) -> None:
        first, second = slabs()
        assert deviation(self.embedding([second]), self.embedding([first, second])[len(first) :]) < self.tolerance

    def test_embeddings_change_with_a_small_move(self) -> None:
        rattled = slabs()
        for system in rattled:
            system.rattle(0.01, seed=9)
        assert deviation(self.embedding(slabs()), self.embedding(rattled)) > self.tolerance

    def test_atom_energies_add_up_to_the_energy_of_each_system(self) -> None:
        systems = slabs()
        model, adapter = self.attached()
        energy = self.forward(model, systems)["energy"].detach().flatten()
        parts = adapter.atom_energies.detach().split([len(system) for system in systems])
        assert adapter.atom_energies.shape == (sum(map(len, systems)), 1)
        assert energy.abs().min() > 0
        assert deviation(energy, torch.stack([part.sum() for part in parts])) < ROUNDING

    def test_edges_join_all_near_pairs_within_each_system(self) -> None:
        systems = slabs()
        model, adapter = self.attached()
        self.forward(model, systems)
        start, near = 0, set()
        for system in systems:  # the oracle: ASE's minimum image distances
            close = (system.get_all_distances(mic=True) < adapter.backbone.cutoff) & ~np.eye(len(system), dtype=bool)
            near |= {(int(i) + start, int(j) + start) for i, j in np.argwhere(close)}
            start += len(system)
        assert {(i, j) for i, j in adapter.edge_index.T.tolist() if i != j} == near

    def test_the_model_computes_the_same_with_and_without_adapter(self) -> None:
        model = self.build().to(self.device).eval()
        before = hooks(model)
        plain = self.forward(model, slabs())
        adapter = attach_features(model, "teacher")
        hooked = self.forward(model, slabs())
        adapter.close()
        after = self.forward(model, slabs())
        assert hooks(model) == before
        assert {"energy", "forces"} <= plain.keys()
        for key, value in plain.items():  # forces by autograd differ in the last digit from run to run
            assert deviation(value, hooked[key]) < ROUNDING and deviation(value, after[key]) < ROUNDING

    def test_a_forward_forgets_the_last_one(self) -> None:
        model, adapter = self.attached()
        self.forward(model, slabs())
        once = adapter.atom_energies.detach()
        self.forward(model, slabs())
        assert torch.equal(adapter.atom_energies.detach(), once)
        adapter.clear()
        assert not adapter._values

    def test_a_forward_can_stop_after_the_last_read(self) -> None:
        model, adapter = self.attached()
        self.forward(model, slabs())
        whole = adapter.node_embedding, adapter.edge_index
        with adapter.stopping_after("node_embedding", "edge_index"):
            self.forward(model, slabs())
            raise AssertionError("the forward did not stop")
        assert torch.equal(adapter.node_embedding, whole[0]) and torch.equal(adapter.edge_index, whole[1])
        assert "energy" in self.forward(model, slabs())

    def test_a_teacher_builds_no_graph_and_keeps_the_batch(self) -> None:
        model = self.build().to(self.device)
        expected = self.embedding(slabs())
        teacher = Teacher("model", model, Path("model"))
        batch = collate(slabs(), self.device)
        before = {key: value.clone() for key, value in batch.to_dict().items() if isinstance(value, Tensor)}
        outputs = teacher(batch)
        for value in (outputs.node_embedding, outputs.edge_index):
            assert not value.requires_grad and value.grad_fn is None and not value.is_inference()
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert deviation(expected, outputs.node_embedding.cpu()) < self.tolerance
        after = {key: value for key, value in batch.to_dict().items() if isinstance(value, Tensor)}
        assert after.keys() == before.keys() and not batch.pos.requires_grad
        assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())

    def test_gradients_flow_from_a_students_embedding_under_ddp(self) -> None:
        def gradients(wrap: bool) -> dict[str, Tensor]:
            model = self.build().train()
            adapter = attach_features(model, "student")
            outputs = self.forward(DistributedDataParallel(model) if wrap else model, slabs())
            loss = adapter.node_embedding.square().mean() + outputs["energy"].square().mean()
            loss = loss + outputs["forces"].square().mean()
            loss.backward()
            return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

        unwrapped = gradients(wrap=False)
        with tempfile.TemporaryDirectory() as directory:
            store = torch.distributed.FileStore(os.path.join(directory, "store"), 1)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
            try:
                parallel = gradients(wrap=True)
            finally:
                torch.distributed.destroy_process_group()
        reached = [name for name, value in unwrapped.items() if value.any()]
        assert any("emb" in name for name in reached), (
            "no gradient reaches a parameter with 'emb' in its name, as every fairchem model calls its elements' embedding; "
            f"reached are {', '.join(reached)}"
        )
        assert unwrapped.keys() <= parallel.keys()
        for name, value in unwrapped.items():
            torch.testing.assert_close(parallel[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))

    def test_embeddings_under_autocast(self) -> None:
        expected = self.embedding(slabs())
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
            teacher = Teacher("model", self.build().to(self.device), Path("model"))
            embedding = teacher(collate(slabs(), self.device)).node_embedding
        assert embedding.dtype == torch.float32
        assert deviation(expected, embedding.cpu()) < 0.1  # bfloat16 keeps 8 bits; errors add up over layers
