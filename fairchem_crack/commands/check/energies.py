"""The section of `fairchem-crack check` that looks for energies which element references or a normalizer should shift."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import Output
from fairchem_crack.commands.check.context import Check, LeftOut
from fairchem_crack.training.labels import take_teachers_labels
from fairchem_crack.training.reference_fit import ReferenceFit, fit_references

FAR = 10.0  # times: the deviation that references would leave, or the student's unit
FEWEST = 4  # systems from which a fit is judged


def examine_energies(check: Check) -> str:
    """The energies that the student is trained on, in eV and in its own unit."""
    outputs, batch = check.need("trainer").model_outputs(), check.batch()
    if len(outputs.names(keys.ENERGY)) != 1:
        raise LeftOut("the student has no output of property `energy`, or several")
    output = outputs[keys.ENERGY]
    if check.takes_labels:
        take_teachers_labels(
            batch, outputs, check.need("teacher")(batch, {keys.ENERGY, keys.FORCES}), check.need("distill").labels
        )
    if output.name not in batch or not bool(batch[output.name].isfinite().all()):
        raise LeftOut(f"not all systems of the sample have a finite `{output.name}`")
    values = batch[output.name].view(-1).float()
    in_own_unit = output.in_own_unit(values, batch)
    size, center = _deviation(in_own_unit), abs(float(in_own_unit.mean()))
    fit = _fit(values, output, batch)
    if len(values) >= FEWEST and fit.left_out is not None and fit.deviation > FAR * fit.left_out:
        check.warnings.append(
            f"energies deviate by {fit.deviation:.3g} eV, because systems differ in their atoms ({fit.per_atom:.3g} eV per "
            f"atom): a reference for each element would leave {fit.left_out:.3g} eV. {_advice(check)}"
        )
    elif max(size, center) > FAR:
        check.warnings.append(f"in the student's unit, the energies are far from 0 or from each other. {_advice(check)}")
    return (
        f"of the sample: mean {values.mean():.4g} eV, deviation {_deviation(values):.3g} eV; in the student's unit "
        f"mean {in_own_unit.mean():.3g}, deviation {size:.3g}"
    )


def _fit(values: Tensor, output: Output, batch: Batch) -> ReferenceFit:
    """Of what the references of the YAML leave."""
    if output.references is not None:
        values = output.references.dereference(values[:, None], batch)[:, 0]
    elements, columns = np.unique(batch.atomic_numbers.long().cpu().numpy(), return_inverse=True)
    counts = np.zeros((len(values), len(elements)), int)
    np.add.at(counts, (batch.batch.cpu().numpy(), columns), 1)
    return fit_references(counts, elements, values.double().cpu().numpy())


def _deviation(values: Tensor) -> float:
    return float((values - values.mean()).abs().mean())


def _advice(check: Check) -> str:
    return (
        f"Fit element references and a normalizer: `fairchem-crack references --config-yml {check.config_yml} --output "
        "references.npz`, which prints the lines for the YAML."
    )
