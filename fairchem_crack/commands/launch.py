"""Start a training: its trainer by its dotted path, and several ranks on a free port."""

from __future__ import annotations

import logging
from typing import Any

import fairchem.core._cli
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_logging
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import fairchem_crack.training.trainer  # noqa: F401, registers trainer and loss


def dotted_path(trainer: str | None) -> str | None:
    """Where a trainer that is registered by a short name comes from; None for fairchem's own, and for a dotted path.

    The processes that `--num-gpus` and `--submit` start import fairchem only, which knows no other short name.
    """
    registered = registry.mapping["trainer_name_mapping"].get(trainer)
    if registered is None or registered.__module__.startswith("fairchem."):
        return None
    return f"{registered.__module__}.{registered.__qualname__}"


def launch_ranks(config: dict[str, Any], ranks: int) -> None:
    """Run fairchem's `Runner` on several ranks of this machine.

    They meet on a free port: fairchem names none, and torch's default is one for the whole machine, on which a second
    training dies when the first ends.
    """
    setup_logging()
    logging.info(f"{ranks} ranks on this machine; they load their data without worker processes, as fairchem requires.")
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    config = {**config, "optim": {**config["optim"], "num_workers": 0}}  # an open LMDB cannot be sent to them
    elastic_launch(launch, fairchem.core._cli.runner_wrapper)(config)
