"""What a model predicts, by property: the name of an output, and the conversion between the model's own unit and eV.

fairchem's `outputs` give each output a name and a `property`, by default the name. Labels, losses,
normalizers and element references go by the name; what is distilled goes by the property, energy or forces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairchem.core.modules.normalization.element_references import LinearReferences
from fairchem.core.modules.normalization.normalizer import Normalizer
from torch import Tensor
from torch_geometric.data import Batch


@dataclass(frozen=True)
class Output:
    """One output of a model.

    value = rmsd * normalised + mean + sum over the atoms i of a system of reference[Z_i], in eV (energy) or eV/A (forces).

    Attributes:
        name: in fairchem's `outputs`, and of its label in a batch.
        normalizer: mean and rmsd; None for 0 and 1.
        references: reference[Z], eV; None for 0.
    """

    name: str
    normalizer: Optional[Normalizer] = None
    references: Optional[LinearReferences] = None

    def in_ev(self, normalized: Tensor, batch: Batch) -> Tensor:
        """Values in eV or eV/A of values in the model's own unit, of the same shape: (B,), (B, 1) or (N, 3)."""
        values = normalized if self.normalizer is None else self.normalizer.denorm(normalized)
        if self.references is not None:
            values = self.references(values.view(len(values), -1), batch).view_as(values)
        return values

    def in_own_unit(self, values: Tensor, batch: Batch) -> Tensor:
        """The inverse of `in_ev`: what fairchem makes of a label before its loss compares it."""
        if self.references is not None:
            values = self.references.dereference(values.view(len(values), -1), batch).view_as(values)
        return values if self.normalizer is None else self.normalizer.norm(values)

    def differences_in_own_unit(self, values: Tensor) -> Tensor:
        """Differences or derivatives of values, which have neither mean nor reference, in the model's own unit."""
        return values / self._rmsd(values)

    def atoms_in_ev(self, normalized: Tensor, total: Tensor, batch: Batch) -> Tensor:
        """(N,) contributions of the atoms in eV of those in the model's own unit: rmsd * e_i + reference[Z_i] + rest.

        Args:
            normalized: (N,) e.
            total: (B,) eV, their sums; the rest, which the atoms of a system share alike, is the mean.
        """
        values = normalized * self._rmsd(normalized) + self._reference_of_atoms(normalized, batch)
        return share(values, total, batch)

    def atoms_in_own_unit(self, values: Tensor, total: Tensor, batch: Batch) -> Tensor:
        """(N,) the inverse of `atoms_in_ev`: (e_i - reference[Z_i]) / rmsd + rest.

        Args:
            values: (N,) e, eV.
            total: (B,) their sums in the model's own unit.
        """
        return share((values - self._reference_of_atoms(values, batch)) / self._rmsd(values), total, batch)

    def _rmsd(self, values: Tensor) -> Tensor:
        return values.new_ones(()) if self.normalizer is None else self.normalizer.rmsd.to(values)

    def _reference_of_atoms(self, values: Tensor, batch: Batch) -> Tensor:
        if self.references is None:
            return torch.zeros_like(values)
        return self.references.element_references.to(values)[batch.atomic_numbers.long()].view(-1)


def share(values: Tensor, total: Tensor, batch: Batch) -> Tensor:
    """Atom energies (N,) shifted so that they sum to `total` (B,), by the same for every atom of a system."""
    sums = torch.zeros_like(total, dtype=torch.float64).index_add(0, batch.batch, values.double())
    rest = (total.double() - sums) / batch.natoms
    return (values + rest[batch.batch]).to(values.dtype)


@dataclass(frozen=True)
class ModelOutputs:
    """The outputs of a model; `outputs["energy"]` is the one of property energy, whatever its name.

    Attributes:
        where: begins the messages, for example "outputs" of a config.
        declared: fairchem's `outputs`; None for a model whose outputs are named as their properties.
        normalizers: by name.
        references: by name.
    """

    where: str
    declared: Optional[Mapping[str, Any]] = None
    normalizers: Mapping[str, Normalizer] = field(default_factory=dict)
    references: Mapping[str, LinearReferences] = field(default_factory=dict)

    def names(self, property_: str) -> list[str]:
        """The names of the outputs of a property."""
        if self.declared is None:
            return [property_]
        return [name for name, options in self.declared.items() if ((options or {}).get("property") or name) == property_]

    def __getitem__(self, property_: str) -> Output:
        """The output of a property.

        Raises:
            ValueError: the model has none, or several.
        """
        names = self.names(property_)
        if len(names) != 1:
            available = ", ".join(f"`{name}`" for name in names or self.declared or ()) or "none"
            raise ValueError(
                f"{self.where}: expected one output of property `{property_}`, found {available}. "
                + ("Leave all but one out." if names else f"Name one `{property_}`, or give it `property: {property_}`.")
            )
        return Output(names[0], self.normalizers.get(names[0]), self.references.get(names[0]))

    def by_property(self, values: Mapping[str, Tensor], *properties: str) -> dict[str, Tensor]:
        """Values by name, with those of each property that has one output under its own name too."""
        names = {property_: self.names(property_) for property_ in properties}
        unique = {property_: listed[0] for property_, listed in names.items() if len(listed) == 1 and listed[0] in values}
        return {**values, **{property_: values[name] for property_, name in unique.items()}}


def predicted(raw: Mapping[str, Any], property_: str, name: str) -> Tensor:
    """The tensor of a property among what a model returns.

    A model, or a hydra that passes its heads' outputs through, returns tensors by name; another hydra a mapping for each
    head, of which fairchem takes `raw[name][property]`. A head that gives several properties has another name.

    Raises:
        ValueError: it is not there, or two heads give it.
    """
    for key in (name, property_):
        value = raw.get(key)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Mapping) and property_ in value:
            return value[property_]
    heads = {
        head: of_head[property_] for head, of_head in raw.items() if isinstance(of_head, Mapping) and property_ in of_head
    }
    if len(heads) != 1:
        raise ValueError(
            f"the model returns {len(heads) or 'no'} `{property_}`, but none under the name `{name}`; it returns "
            f"{', '.join(f'`{key}`' for key in heads or raw)}."
        )
    return next(iter(heads.values()))
