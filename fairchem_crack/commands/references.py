"""`fairchem-crack references`: element references and a normalizer, into a file and as lines for the YAML."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_crack.commands.flags import parser_of, read_or_refuse
from fairchem_crack.io.arguments import check_at_least

if TYPE_CHECKING:
    from fairchem_crack.training.references import References

NAMED = 12  # elements that a message lists


def references(arguments: list[str]) -> None:
    """Fit the references of the training's labels and write them to `--output`."""
    parser = parser_of(
        "references",
        "Element references and normalizer of the energies that the student is trained on: labels of dataset.train or, with "
        "task.distill.labels, of the teacher cache. Takes the flags and overrides of the training.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--systems", type=int, default=100_000, metavar="N", help="fit to at most N, evenly spaced (100000)")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = read_or_refuse(parser, arguments)
    output: Path = given.flags.output
    if output.suffix != ".npz":
        raise ValueError(f"--output {output}: expected the name of an .npz file.")
    check_at_least(given.flags, {"systems": 2})
    from fairchem_crack.training.references import fit_training_references

    fitted = fit_training_references(given.config, given.flags.systems)
    output.parent.mkdir(parents=True, exist_ok=True)
    fitted.write(output)
    print(summary(fitted))
    print(f"{output} written. Add to the YAML\n\n{yaml_of(fitted, output)}")


def summary(fitted: References) -> str:
    """What was fitted, what it leaves, and which references the systems do not determine."""
    fit = fitted.fit
    lines = [
        f"{len(fit.residuals)} systems with the labels {fitted.source}: {fit.compositions} compositions of "
        f"{len(fit.elements)} elements, {fit.per_atom:.4g} eV per atom.",
        f"The energies deviate from their mean by {fit.deviation:.3g} eV; minus references, by {fit.error:.3g} eV"
        + ("." if fit.left_out is None else f" ({fit.left_out:.3g} eV where a composition is left out of the fit)."),
        f"Ridge regression towards the {fitted.prior}; mean {fitted.mean:.3g} eV, standard deviation {fitted.stdev:.3g} eV.",
    ]
    if fitted.force_size is not None:
        if fitted.has_own_force_scale:
            scale = "it, since the student predicts them"
        else:
            reason = "they vanish" if fitted.has_direct_forces else "a gradient has its energy's scale"
            scale = f"the energies' standard deviation, since {reason}"
        lines.append(f"Force components on free atoms: root mean square {fitted.force_size:.3g} eV/A.")
        lines.append(f"Forces are divided by {scale}.")
    if fit.undetermined.any():
        lines.append(f"WARNING: {undetermined(fitted)}")
    return "\n".join(lines)


def undetermined(fitted: References) -> str:
    """The message about references that the systems do not determine."""
    from ase.data import chemical_symbols

    fit = fitted.fit
    listed = [
        f"{chemical_symbols[number]} ({systems})"
        for number, systems in zip(fit.elements[fit.undetermined], fit.systems[fit.undetermined])
    ]
    names = ", ".join(listed[:NAMED]) + (", ..." if len(listed) > NAMED else "")
    return (
        f"the compositions do not determine {len(listed)} of {len(fit.elements)} references: those of {names}, in brackets "
        f"the systems with the element. They are close to the {fitted.prior}, and only their sum over such a composition is "
        "known. Systems of other compositions of these elements may be off by much more than the error above."
    )


def yaml_of(fitted: References, file: Path) -> str:
    """The lines that a YAML needs."""
    import yaml

    return yaml.safe_dump({"dataset": {"train": {"transforms": fitted.transforms(file)}}}, sort_keys=False)
