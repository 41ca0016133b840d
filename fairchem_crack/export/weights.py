"""fairchem's PaiNN, with its normalizers and element references, as `painn.PaiNN`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Optional

import torch
from fairchem.core.common.utils import setup_imports
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import GaussianSmearing

from fairchem_crack import keys
from fairchem_crack.adapters import architecture
from fairchem_crack.adapters.outputs import Output
from fairchem_crack.config import TeacherConfig
from fairchem_crack.export.neighbors import GraphRule
from fairchem_crack.export.painn import (
    SCALED_SILU,
    ConservativePaiNN,
    Gate,
    Gaussians,
    GradientPaiNN,
    Interaction,
    PaiNN,
    Radial,
)
from fairchem_crack.export.student import is_exported
from fairchem_crack.heads import PaiNNEnergyGradient
from fairchem_crack.teacher.frozen import Teacher, load_teacher

ARCHITECTURES = ("painn", "painn_backbone")


def load_painn(path: Path, *, trust: bool = False) -> tuple[PaiNN, GraphRule]:
    """The student of a checkpoint, with the weights that OCPCalculator takes, on the CPU.

    These are its `state_dict`: the averaged ones in a `best_checkpoint.pt`, those of the last step in a `checkpoint.pt`.

    Raises:
        ValueError: it cannot be read, or is none that has a pure forward.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file (looked in {Path.cwd()}).")
    if is_exported(path):
        raise ValueError(f"{path} is an exported student; expected the checkpoint that it was made from.")
    setup_imports()
    try:
        student = load_teacher(TeacherConfig(checkpoint=str(path), use_ema=False, trust=trust), torch.device("cpu"))
    except ValueError as error:
        raise type(error)(str(error).removeprefix("Teacher ")) from error
    try:
        return painn_of(student), rule_of(student)
    finally:
        student.close()


def rule_of(student: Teacher) -> GraphRule:
    """The graph of a fairchem PaiNN."""
    backbone: Any = student.features.backbone
    return GraphRule(float(backbone.cutoff), int(backbone.max_neighbors))


def painn_of(student: Teacher) -> PaiNN:
    """A copy of the weights of a fairchem model, one class or hydra, whose constants are folded in.

    Raises:
        ValueError: another architecture, or a PaiNN that gives no forces.
    """
    backbone: Any = student.features.backbone
    refuse_others(student)
    head: Any = student.features.owner("out_energy")
    is_direct, is_conservative = backbone.direct_forces, isinstance(head, PaiNNEnergyGradient)
    make = PaiNN if is_direct else ConservativePaiNN if is_conservative else GradientPaiNN
    painn = make(
        radial_of(backbone),
        channels=backbone.hidden_channels,
        layers=backbone.num_layers,
        radials=backbone.num_rbf,
        elements=backbone.atom_emb.embeddings.num_embeddings,
    )
    if backbone.atom_emb.embeddings.weight.dtype == torch.float64:
        painn.double()
    with torch.no_grad():
        painn.embedding.weight.copy_(backbone.atom_emb.embeddings.weight)
        for layer, interaction in enumerate(painn.interactions):
            _copy_interaction(backbone, layer, interaction)
        _copy_pair(head.out_energy[0], head.out_energy[2], painn.energy_hidden, painn.energy)
        if is_direct:
            of_forces: Any = student.features.owner("out_forces")
            for source, gate in zip(of_forces.out_forces.output_network, painn.force_gates):
                _copy_gate(source, gate)
        _copy_outputs(student, painn)
    not_finite = [name for name, value in painn.state_dict().items() if not value.isfinite().all()]
    if not_finite:
        raise ValueError(f"{student.checkpoint}: {len(not_finite)} weights are not finite: {', '.join(not_finite[:3])}.")
    return painn.requires_grad_(False).eval()


def radial_of(backbone: Any) -> Radial:
    """Envelope and basis; all but Gaussians are fairchem's own modules, which need only torch."""
    radial = backbone.radial_basis
    basis, envelope = copy.deepcopy(radial.rbf), copy.deepcopy(radial.envelope)
    if isinstance(basis, GaussianSmearing):
        basis = Gaussians(basis.coeff, basis.offset)
    return Radial(backbone.cutoff, envelope, basis)


def refuse_others(student: Teacher) -> None:
    """Raise ValueError for a model that has no pure forward here."""
    where, backbone = f"{student.checkpoint}", student.features.backbone
    name = architecture(student.model)
    if name.startswith("gemnet"):
        raise ValueError(
            f"{where} is a GemNet (`{name}`), which is not exported: its triplets, edges of edges, come from torch-sparse "
            "and its angular functions from sympy at run time, which TorchScript does not take. Run it by OCPCalculator, or "
            "distil a PaiNN."
        )
    if name not in ARCHITECTURES:
        raise ValueError(f"{where} is a `{name}`; only PaiNN has a pure forward.")
    if not getattr(backbone, "regress_forces", True) or not student.outputs.names(keys.FORCES):
        raise ValueError(
            f"{where} was trained without forces: regress_forces is False, or no output is of property `forces`."
        )
    if not getattr(backbone, "use_pbc", True):
        raise ValueError(
            f"{where} was trained with use_pbc: False, whose neighbors beyond max_neighbors fairchem leaves to chance. "
            "Train it with use_pbc: True, which takes each system's own boundaries."
        )


def _copy_interaction(backbone: Any, layer: int, interaction: Interaction) -> None:
    message, update, channels = backbone.message_layers[layer], backbone.update_layers[layer], backbone.hidden_channels
    interaction.norm.load_state_dict(message.x_layernorm.state_dict())
    _copy_pair(message.x_proj[0], _parts(message.x_proj[2], interaction), interaction.hidden, interaction.message)
    filters = _parts(message.rbf_proj, interaction)
    of_parts = _repeated(channels, 1.0, channels**-0.5, (3 * channels) ** -0.5)[: len(filters.bias)]
    interaction.filters.weight.copy_(filters.weight.double() * of_parts[:, None])
    interaction.filters.bias.copy_(filters.bias.double() * of_parts)
    interaction.vectors.weight.copy_(update.vec_proj.weight)
    of_parts = _repeated(channels, 0.5**0.5, (2 * channels) ** -0.5, 1.0)
    _copy_pair(update.xvec_proj[0], update.xvec_proj[2], interaction.update_hidden, interaction.update, of_parts)
    factor = getattr(backbone, f"upd_out_scalar_scale_{layer}").scale_factor
    if factor != 0:  # fairchem's 0 stands for one that was not fitted
        interaction.scale.copy_(factor)


def _parts(source: nn.Linear, interaction: Interaction) -> nn.Linear:
    """Rows in the order of `Interaction`; fairchem's parts are scalars, along vectors, along edges."""
    scalars, along_vectors, along_edges = torch.arange(source.out_features).chunk(3)
    rows = torch.cat([scalars, along_edges, along_vectors])[: interaction.message.out_features]
    parts = nn.Linear(source.in_features, len(rows), dtype=source.weight.dtype)
    parts.weight.copy_(source.weight[rows])
    parts.bias.copy_(source.bias[rows])
    return parts


def _repeated(channels: int, *factors: float) -> Tensor:
    return torch.tensor(factors, dtype=torch.float64).repeat_interleave(channels)


def _copy_gate(source: Any, gate: Gate) -> None:
    gate.norms.weight.copy_(source.vec1_proj.weight)
    gate.vectors.weight.copy_(source.vec2_proj.weight)
    _copy_pair(source.update_net[0], source.update_net[2], gate.hidden, gate.gates)


def _copy_pair(
    first: nn.Linear, second: nn.Linear, hidden: nn.Linear, out: nn.Linear, factors: Optional[Tensor] = None
) -> None:
    """Two linear maps, between which fairchem has a scaled SiLU: the scale goes into the second one.

    Args:
        factors: of its rows.
    """
    factors = torch.ones(len(out.weight), dtype=torch.float64) if factors is None else factors
    hidden.load_state_dict(first.state_dict())
    out.weight.copy_(second.weight.double() * SCALED_SILU * factors[:, None])
    out.bias.copy_(second.bias.double() * factors)


def _copy_outputs(student: Teacher, painn: PaiNN) -> None:
    energy, forces = student.outputs[keys.ENERGY], student.outputs[keys.FORCES]
    _copy_normalizer(energy, painn.energy_scale, painn.energy_mean)
    _copy_normalizer(forces, painn.force_scale, painn.force_mean)
    if energy.references is not None:
        painn.references.copy_(energy.references.element_references.view(-1)[1 : len(painn.references) + 1])


def _copy_normalizer(output: Output, scale: Tensor, mean: Tensor) -> None:
    if output.normalizer is not None:
        scale.copy_(output.normalizer.rmsd)
        mean.copy_(output.normalizer.mean)
