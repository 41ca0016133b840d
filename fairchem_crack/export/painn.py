"""PaiNN as a function of numbers, positions, cell and pairs: torch only, no batch object, no graph, no scatter library.

The arithmetic is that of fairchem's PaiNN (Schuett et al. 2021, arXiv 2102.03150; MIT license). Constant factors are folded
into the weights where they are copied (`weights`), normalizers and element references into the outputs.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALED_SILU = 1 / 0.6  # times SiLU is fairchem's activation; mostly folded into the weights after it


class Gaussians(nn.Module):
    """PyG's GaussianSmearing on [0, 1]: (P,) to (P, R) exp(coefficient (d - offset_k)^2).

    Exponents end at -40, where float32 rounds: numbers below its normal range take a hundred times the time.
    """

    def __init__(self, coefficient: float, offset: Tensor) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.register_buffer("offset", offset)

    def forward(self, scaled: Tensor) -> Tensor:
        """Values (P, R) at scaled distances (P,)."""
        return (self.coefficient * (scaled.unsqueeze(1) - self.offset).square()).clamp_min(-40.0).exp()


class Radial(nn.Module):
    """Distances (P,) in A to (P, R): envelope times basis, of the distance over the cutoff."""

    def __init__(self, cutoff: float, envelope: nn.Module, basis: nn.Module) -> None:
        super().__init__()
        self.inverse_cutoff = 1 / cutoff
        self.envelope, self.basis = envelope, basis

    def forward(self, distances: Tensor) -> Tensor:
        """(P, R)."""
        scaled = distances * self.inverse_cutoff
        return self.envelope(scaled).unsqueeze(1) * self.basis(scaled)


class Interaction(nn.Module):
    """A message and an update block of H channels, with R radial functions.

    Args:
        is_first: vectors are 0 before it, so that its messages have two parts and not three.
    """

    def __init__(self, channels: int, radials: int, *, is_first: bool) -> None:
        super().__init__()
        parts = 2 if is_first else 3  # to scalars, along edges, along vectors
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.message = nn.Linear(channels, parts * channels)
        self.filters = nn.Linear(radials, parts * channels)
        self.vectors = nn.Linear(channels, 2 * channels, bias=False)
        self.update_hidden = nn.Linear(2 * channels, channels)
        self.update = nn.Linear(channels, 3 * channels)
        self.register_buffer("scale", torch.ones(()))

    def forward(
        self, x: Tensor, vec: Optional[Tensor], blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) after the two blocks.

        Args:
            x: (N, H).
            vec: (N, 3, H); None for 0, before the first block.
            blocks: of messages, see `messages`.
        """
        message = self.message(functional.silu(self.hidden(self.norm(x))))  # (N, 2H or 3H)
        scalars = torch.zeros_like(x)
        vectors = torch.zeros(x.shape[0], 3, x.shape[1], dtype=x.dtype, device=x.device)
        for source, target, unit, radial in blocks:
            self.send(message, vec, source, target, unit, radial, scalars, vectors)
        return self.updated((x + scalars) * 0.5**0.5, vectors if vec is None else vec + vectors)

    def send(
        self,
        message: Tensor,
        vec: Optional[Tensor],
        source: Tensor,
        target: Tensor,
        unit: Tensor,
        radial: Tensor,
        scalars: Tensor,
        vectors: Tensor,
    ) -> None:
        """Add a block of messages to `scalars` (N, H) and `vectors` (N, 3, H)."""
        channels = scalars.shape[1]
        filters = self.filters(radial)
        sent = message.index_select(0, source).view(2, -1, filters.shape[1]) * filters
        parts = sent.view(source.shape[0], -1).split(channels, dim=1)  # (2P, H) each
        scalars.index_add_(0, target, parts[0].contiguous())  # with strides it takes four times as long
        moved = unit * parts[1].unsqueeze(1)  # (2P, 3, H)
        if vec is not None:
            moved = torch.addcmul(moved, vec.index_select(0, source), parts[2].unsqueeze(1))
        vectors.index_add_(0, target, moved)

    def updated(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        """The update block."""
        first, second = self.vectors(vec).split(x.shape[1], dim=2)  # (N, 3, H)
        norms = (second.square().sum(1) + 1e-8).sqrt()  # fairchem's, whose gradient at 0 is finite
        gates = self.update(functional.silu(self.update_hidden(torch.cat([x, norms], dim=1))))
        own, along_products, stretch = gates.split(x.shape[1], dim=1)
        x = x + torch.addcmul(own, along_products, (first * second).sum(1))
        return x * self.scale, vec + stretch.unsqueeze(1) * first


def messages(pairs: Tensor, unit: Tensor, radial: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions of pairs: source and target (2P,), unit vectors to the source (2P, 3, 1), radial functions (P, R).

    Args:
        pairs: (2, P), i and j.
        unit: (P, 3) from i to j.
        radial: (P, R).
    """
    # cat and not reshape, of which torch.export makes a view
    source, target = torch.cat([pairs[1], pairs[0]]), torch.cat([pairs[0], pairs[1]])
    return source, target, torch.cat([unit, -unit]).unsqueeze(2), radial


def pairs_of_block(channels: int, element_size: int) -> int:
    """Pairs at a time, whose messages, 6 numbers of `element_size` bytes for each channel in 512 kB, stay in the cache."""
    return max(524288 // (6 * channels * element_size), 64)


class Gate(nn.Module):
    """An equivariant gated block (Schuett et al. 2021, figure 3): H channels to `out` ones."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norms = nn.Linear(channels, channels, bias=False)
        self.vectors = nn.Linear(channels, out, bias=False)
        self.hidden = nn.Linear(2 * channels, channels)
        self.gates = nn.Linear(channels, 2 * out)
        self.activation_scale = SCALED_SILU

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, out) and vectors (N, 3, out)."""
        norms = self.norms(vec).square().sum(1).sqrt()
        gates = self.gates(functional.silu(self.hidden(torch.cat([x, norms], dim=1))))
        scalars, stretch = gates.chunk(2, dim=1)
        return functional.silu(scalars) * self.activation_scale, stretch.unsqueeze(1) * self.vectors(vec)


class PaiNN(nn.Module):
    """A student that predicts forces directly.

    Args:
        radial: distances (P,) in A to (P, R) radial functions.
        channels: H.
        layers: of messages and updates.
        radials: R.
        elements: atomic numbers from 1 on that have an embedding.
    """

    def __init__(self, radial: nn.Module, *, channels: int, layers: int, radials: int, elements: int) -> None:
        super().__init__()
        self.radial = radial
        self.embedding = nn.Embedding(elements, channels)
        self.interactions = nn.ModuleList([Interaction(channels, radials, is_first=layer == 0) for layer in range(layers)])
        self.energy_hidden = nn.Linear(channels, channels // 2)
        self.energy = nn.Linear(channels // 2, 1)
        self.force_gates = nn.ModuleList(self.make_gates(channels))
        self.in_blocks = True  # on a CPU; False where torch.export traces
        self.register_buffer("energy_scale", torch.ones((), dtype=torch.float64))  # eV
        self.register_buffer("energy_mean", torch.zeros((), dtype=torch.float64))  # eV, of a system
        self.register_buffer("references", torch.zeros(elements, dtype=torch.float64))  # eV, of an atom of each element
        self.register_buffer("force_scale", torch.ones(()))  # eV/A
        self.register_buffer("force_mean", torch.zeros(()))  # eV/A

    @staticmethod
    def make_gates(channels: int) -> list[Gate]:
        """The head of the forces."""
        return [Gate(channels, channels // 2), Gate(channels // 2, 1)]

    def forward(
        self, numbers: Tensor, positions: Tensor, cell: Tensor, pairs: Tensor, shifts: Tensor, system: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (B,) in eV and float64, forces (N, 3) in eV/A, atom energies (N,) in eV, which sum to the energy.

        Args:
            numbers: (N,) long, atomic numbers.
            positions: (N, 3) in A, of any precision; differences are taken in it.
            cell: (B, 3, 3), rows are the vectors, A.
            pairs: (2, P) long, i and j: each pair of atoms, or of an atom and an image, once.
            shifts: (P, 3) of the cell's vectors by which j is moved: r = x_j + shift . cell - x_i.
            system: (N,) long, which of the B systems an atom belongs to.
        """
        vectors = pair_vectors(positions, cell, pairs, shifts, system)
        x, vec = self.embed(numbers, vectors, pairs)
        energy, atom_energies = self.energies(x, numbers, cell, system)
        return energy, self.direct_forces(x, vec), atom_energies

    def embed(self, numbers: Tensor, vectors: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, H) and vectors (N, 3, H) of the atoms; `vectors` (P, 3) of the pairs."""
        vectors = vectors.to(self.embedding.weight.dtype)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        unit, radial = vectors / lengths.unsqueeze(1), self.radial(lengths)
        x = self.embedding(numbers - 1)
        vec: Optional[Tensor] = None
        blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        if self.in_blocks and x.device.type == "cpu":
            size = pairs_of_block(x.shape[1], x.element_size())
            for start in range(0, pairs.shape[1], size):
                end = start + size
                blocks.append(messages(pairs[:, start:end], unit[start:end], radial[start:end]))
        else:
            blocks.append(messages(pairs, unit, radial))
        for interaction in self.interactions:
            x, vec = interaction(x, vec, blocks)
        assert vec is not None  # for TorchScript
        return x, vec

    def energies(self, x: Tensor, numbers: Tensor, cell: Tensor, system: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) and (N,), eV: scale * e_i + reference[Z_i] + mean / N."""
        outputs = self.energy(functional.silu(self.energy_hidden(x))).squeeze(1).to(self.energy_scale.dtype)
        systems = torch.zeros(cell.shape[0], dtype=outputs.dtype, device=x.device)
        atoms = systems.index_add(0, system, torch.ones_like(outputs))
        each = outputs * self.energy_scale + self.references[numbers - 1] + (self.energy_mean / atoms)[system]
        return systems.index_add(0, system, each), each

    def direct_forces(self, x: Tensor, vec: Tensor) -> Tensor:
        """(N, 3), eV/A."""
        for gate in self.force_gates:
            x, vec = gate(x, vec)
        return vec.squeeze(2) * self.force_scale + self.force_mean


class GradientPaiNN(PaiNN):
    """A student whose forces are a gradient: in fairchem 1.10 that of the sum of its scalars, f = -d(sum x)/dr."""

    @staticmethod
    def make_gates(channels: int) -> list[Gate]:
        """No head of the forces."""
        return []

    def forward(
        self, numbers: Tensor, positions: Tensor, cell: Tensor, pairs: Tensor, shifts: Tensor, system: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `PaiNN.forward`; not within torch.no_grad."""
        positions = positions.detach().requires_grad_(True)
        x, _ = self.embed(numbers, pair_vectors(positions, cell, pairs, shifts, system), pairs)
        slope = torch.autograd.grad([self.potential(x)], [positions])[0]
        assert slope is not None  # for TorchScript
        energy, atom_energies = self.energies(x.detach(), numbers, cell, system)
        forces = self.force_mean - slope.to(x.dtype) * self.force_scale
        return energy.detach(), forces.detach(), atom_energies.detach()

    def potential(self, x: Tensor) -> Tensor:
        """() of which the forces are the gradient, normalized."""
        return x.sum()


class ConservativePaiNN(GradientPaiNN):
    """A student with `fairchem_crack.heads.PaiNNEnergyGradient`: f = -dE/dr."""

    def potential(self, x: Tensor) -> Tensor:
        """() the energy of all systems, normalized."""
        return self.energy(functional.silu(self.energy_hidden(x))).sum()


def pair_vectors(positions: Tensor, cell: Tensor, pairs: Tensor, shifts: Tensor, system: Tensor) -> Tensor:
    """(P, 3) from atom i to atom j or its image, A: x_j - x_i + shift . cell."""
    apart = positions.index_select(0, pairs[1]) - positions.index_select(0, pairs[0])
    cells = cell.to(positions.dtype).index_select(0, system.index_select(0, pairs[0]))  # (P, 3, 3)
    return apart + torch.bmm(shifts.to(positions.dtype).unsqueeze(1), cells).squeeze(1)
