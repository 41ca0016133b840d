"""`fairchem-crack check` on a config: section by section, and every problem at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from fairchem.core.common.utils import setup_imports

from fairchem_crack.commands.check import energies, inputs, losses, models, sample
from fairchem_crack.commands.check.context import Check, LeftOut

SECTIONS: dict[str, Callable[[Check], str]] = {
    "config": inputs.examine_config,
    "data": inputs.examine_data,
    "labels": inputs.examine_labels,
    "student": models.examine_student,
    "training": models.examine_training,
    "scales": models.examine_scales,
    "teacher": models.examine_teacher,
    "pairs": sample.examine_pairs,
    "agreement": sample.examine_agreement,
    "energies": energies.examine_energies,
    "loss": losses.examine_loss,
    "memory": sample.examine_memory,
    "step": sample.time_step,
}


def check_config(config: dict, config_yml: str, problems: Sequence[str] = (), *, opens_data: bool = True) -> list[str]:
    """Print what training by this config would do, and return every problem found.

    Args:
        config: what fairchem's `build_config` makes of YAML, flags and overrides.
        config_yml: its path, for the commands that are printed.
        problems: what is wrong with the flags and the names in the YAML.
        opens_data: False for what can be reported without reading a record of a dataset, each of which may run code.
    """
    setup_imports(config)
    check = Check(config, config_yml, opens_data, problems=list(problems))
    for name, section in SECTIONS.items():
        check.section, check.warnings, before, line = name, [], len(check.problems), ""
        try:
            with check.collecting():
                line = section(check)
        except LeftOut as reason:
            line = f"left out: {reason}"
        number = len(check.problems) - before
        print(f"{name:<9}", "; ".join(filter(None, [line, f"{number} problem{'s'[: number > 1]}" if number else ""])))
        for warning in check.warnings:
            print(f"{'':<9} WARNING: {warning}")
    return check.problems
