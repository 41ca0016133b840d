"""A student as a model of metatomic, the common interface of several engines to atomistic models in TorchScript."""

# no annotations as strings: metatomic compares them
from pathlib import Path
from typing import Dict, List, Optional  # noqa: UP035, of which TorchScript reads the names

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import AtomisticModel, ModelCapabilities, ModelMetadata, ModelOutput, NeighborListOptions, System
from torch import Tensor, nn

from fairchem_crack.export.painn import PaiNN
from fairchem_crack.export.student import StudentInfo
from fairchem_crack.io.files import whole

FORCES = "non_conservative_force"  # metatomic's name of forces that a model predicts; others it derives from the energy


class MetatomicStudent(nn.Module):
    """Energies, and directly predicted forces, of the systems that an engine gives, with the engine's neighbor lists.

    Args:
        painn: the forward.
        info: of the same student.
    """

    def __init__(self, painn: PaiNN, info: StudentInfo) -> None:
        super().__init__()
        self.painn, self.limit, self.forces = painn, info.max_neighbors, FORCES
        self.options = NeighborListOptions(cutoff=info.cutoff, full_list=True, strict=True)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """Of each atom all neighbors within the cutoff."""
        return [self.options]

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """metatomic's entry point: `energy` (eV) of systems or atoms, forces (eV/A) of atoms."""
        first, places = 0, torch.jit.annotate(List[Tensor], [])  # noqa: UP006
        pairs, vectors = torch.jit.annotate(List[Tensor], []), torch.jit.annotate(List[Tensor], [])  # noqa: UP006
        for index, system in enumerate(systems):
            block = system.get_neighbor_list(self.options)
            samples = block.samples.values.to(torch.long)
            kept = fairchem_edges(samples, block.values.squeeze(-1), self.limit, len(system))
            pairs.append(samples[kept, :2].t() + first)
            vectors.append(block.values[kept].squeeze(-1))
            atom = torch.arange(len(system), device=samples.device)
            places.append(torch.stack([torch.full_like(atom, index), atom], dim=1))
            first += len(system)
        place = torch.cat(places)  # (N, 2): the system, and the atom within it
        numbers = torch.cat([system.types for system in systems]).to(torch.long)
        x, vec = self.painn.embed(numbers, torch.cat(vectors), torch.cat(pairs, dim=1))
        cells = torch.zeros(len(systems), 3, 3, dtype=x.dtype, device=x.device)
        atom_energies = self.painn.energies(x, numbers, cells, place[:, 0])[1].unsqueeze(1)
        rows = torch.arange(len(place), device=place.device)
        if selected_atoms is not None:
            chosen = selected_atoms.values.to(torch.long)
            starts = torch.bincount(place[:, 0], minlength=len(systems)).cumsum(0)
            starts = torch.cat([torch.zeros_like(starts[:1]), starts[:-1]])
            rows = starts[chosen[:, 0]] + chosen[:, 1]
        results = torch.jit.annotate(Dict[str, TensorMap], {})  # noqa: UP006
        if "energy" in outputs:
            if outputs["energy"].sample_kind == "atom":
                results["energy"] = _map("energy", atom_energies[rows].to(x.dtype), ["system", "atom"], place[rows], False)
            else:
                sums = torch.zeros(len(systems), 1, dtype=atom_energies.dtype, device=x.device)
                sums = sums.index_add(0, place[rows, 0], atom_energies[rows])
                numbered = torch.arange(len(systems), device=x.device).unsqueeze(1)
                results["energy"] = _map("energy", sums.to(x.dtype), ["system"], numbered, False)
        if self.forces in outputs:
            forces = self.painn.direct_forces(x, vec)[rows].unsqueeze(2)
            results[self.forces] = _map(self.forces, forces, ["system", "atom"], place[rows], True)
        return results


def fairchem_edges(samples: Tensor, vectors: Tensor, limit: int, atoms: int) -> Tensor:
    """The rows of a full neighbor list that fairchem's PaiNN has as pairs, see `neighbors`.

    Args:
        samples: (M, 5) long: atom, its neighbor, the cell's vectors by which that one is moved.
        vectors: (M, 3) from the atom to the neighbor.
        limit: neighbors of an atom; 0 for any number.
        atoms: how many there are.
    """
    atom, neighbor, shift = samples[:, 0], samples[:, 1], samples[:, 2:]
    order = torch.arange(len(samples), device=samples.device)
    if limit > 0:
        order = torch.argsort(vectors.detach().square().sum(1), stable=True)
        order = order[torch.argsort(atom[order], stable=True)]
        counts = torch.bincount(atom, minlength=atoms)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[atom[order]]
        order = order[rank < limit]
    a, b, c = shift[:, 0], shift[:, 1], shift[:, 2]
    is_earlier = (a < 0) | ((a == 0) & ((b < 0) | ((b == 0) & (c < 0))))
    is_half = (neighbor < atom) | ((neighbor == atom) & is_earlier)
    return order[is_half[order]]


def _map(name: str, values: Tensor, names: List[str], samples: Tensor, is_vector: bool) -> TensorMap:  # noqa: UP006
    device = values.device
    components = torch.jit.annotate(List[Labels], [])  # noqa: UP006
    if is_vector:
        components.append(Labels(["xyz"], torch.arange(3, device=device).unsqueeze(1)))
    one = torch.zeros(1, 1, dtype=torch.int32, device=device)
    block = TensorBlock(values, Labels(names, samples.to(torch.int32)), components, Labels([name], one))
    return TensorMap(Labels(["_"], one), [block])


def write_metatomic(painn: PaiNN, info: StudentInfo, path: Path) -> None:
    """Write one file, whole or not at all, and the directories that lead to it.

    Raises:
        ValueError: its forces are the gradient of something else than its energy.
    """
    if info.forces == "gradient":
        raise ValueError("--format metatomic: engines take the gradient of the energy, which this student's forces are not.")
    outputs = {"energy": ModelOutput(unit="eV", sample_kind="atom")}
    if info.forces == "direct":
        outputs[FORCES] = ModelOutput(unit="eV/Angstrom", sample_kind="atom")
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=list(info.elements),
        interaction_range=info.cutoff * len(painn.interactions),
        length_unit="Angstrom",
        supported_devices=["cpu", "cuda"],
        dtype=info.dtype,
    )
    metadata = ModelMetadata(name="fairchem-crack student", description=f"PaiNN of the checkpoint {info.checkpoint}")
    model = AtomisticModel(MetatomicStudent(painn, info).eval(), metadata, capabilities)
    others = {library for library in torch.ops.loaded_libraries if "metat" not in Path(library).name}
    torch.ops.loaded_libraries.difference_update(others)  # fairchem's, which the file would name as its own needs
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(path) as partial:
            model.save(str(partial))
    finally:
        torch.ops.loaded_libraries.update(others)
