"""`fairchem-crack train`: `fairchem --mode train`, with this package and the plugins known to it."""

from __future__ import annotations

import sys

from fairchem_crack.commands.flags import parser_of, read_or_refuse


def train(arguments: list[str]) -> None:
    """Train as `fairchem --mode train` does, in this process, in several of this machine, or as a job."""
    parser = parser_of("train", "Takes fairchem's flags, and overrides of the YAML.")
    try:
        given = read_or_refuse(parser, arguments)
        from fairchem_crack.training.config_checks import check_gpus

        if given.flags.num_gpus < 1:
            raise ValueError(f"--num-gpus {given.flags.num_gpus}: expected at least 1.")
        if not given.flags.submit:  # else the training runs on another machine
            check_gpus(given.flags.num_gpus, cpu=given.flags.cpu)
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack train: {error}")
    import fairchem.core._cli

    from fairchem_crack.commands.launch import dotted_path, launch_ranks

    trainer = dotted_path(given.config.get("trainer"))
    if given.flags.submit or given.flags.num_gpus == 1:
        fairchem.core._cli.main(given.flags, [*given.overrides, *([] if trainer is None else [f"--trainer={trainer}"])])
    else:
        launch_ranks({**given.config, **({} if trainer is None else {"trainer": trainer})}, given.flags.num_gpus)
