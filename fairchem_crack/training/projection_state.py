"""What a training checkpoint keeps of the projections, and what it kept before.

Format 1, without a number, had projections that gave the teacher's embedding in its own units; since format 2 they give it
standardised, and the statistics by which it is are in the state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Optional

from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.teacher.channels import ChannelStatistics

FORMAT = 2
OF_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "step": 0}  # by which power of the gradient each goes


def upgraded(state: Mapping[str, Any], statistics: ChannelStatistics) -> dict[str, Any]:
    """A state of any format in the current format: the same function from the student's embedding to the teacher's units.

    W a + c in the teacher's units is (W / std) a + (c - mean) / std standardised. The gradient of a weight is multiplied by
    std, and so are Adam's averages of it; those of another optimizer begin anew.

    Args:
        statistics: by which the embeddings are standardised, where the state has none.

    Raises:
        ValueError: the state is of a later format.
    """
    written = state.get(keys.STATE_FORMAT, 1)
    if written > FORMAT:
        raise ValueError(
            f"The checkpoint to resume has a `{keys.CHECKPOINT_KEY}` of format {written}; this version of fairchem-crack "
            f"reads up to {FORMAT}. Install the version that wrote it."
        )
    if written == FORMAT:
        return dict(state)
    std, rms = statistics.channel_std, statistics.vector_rms
    node, of_node = _standardized(state[keys.PROJECTION], statistics.channel_mean, std)
    vector, of_vector = _standardized(state.get(keys.VECTOR_PROJECTION) or {}, None, rms)
    return {
        **state,
        keys.STATE_FORMAT: FORMAT,
        keys.PROJECTION: node,
        keys.VECTOR_PROJECTION: vector,
        keys.PROJECTION_OPTIMIZER: _rescaled(state[keys.PROJECTION_OPTIMIZER], [*of_node, *of_vector]),
        keys.CHANNEL_STATISTICS: statistics.state_dict(),
    }


def _standardized(
    weights: Mapping[str, Tensor], mean: Optional[Tensor], scale: Optional[Tensor]
) -> tuple[dict[str, Tensor], list[Optional[Tensor]]]:
    """The weights of a projection whose last map is divided by `scale`, and by what the gradient of each is multiplied."""
    if not weights or scale is None or len(scale) != len(list(weights.values())[-1]):  # of other terms, which is refused
        return dict(weights), [None] * len(weights)
    scale = scale.to(next(iter(weights.values())).device)
    last = list(weights)[-1].rpartition(".")[0]  # of a linear one, whose parameters are called `weight` and `bias`, ""
    changed: dict[str, Tensor] = {}
    factors: list[Optional[Tensor]] = []
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        factor = None if module != last else scale[:, None] if kind == "weight" else scale
        shifted = value - mean.to(value) if factor is not None and kind == "bias" and mean is not None else value
        changed[f"trainable.{name}"] = shifted if factor is None else shifted / factor
        factors.append(factor)
    first = next(iter(weights.values()))
    return {**changed, "shift": first.new_zeros(first.shape[1]), "scale": first.new_ones(())}, factors


def _rescaled(optimizer: dict[str, Any], factors: list[Optional[Tensor]]) -> dict[str, Any]:
    """The state of the projections' optimizer for gradients that are multiplied by `factors`."""
    of_parameters: dict[int, dict[str, Any]] = optimizer.get("state") or {}
    if any(not values.keys() <= OF_ADAM.keys() for values in of_parameters.values()):
        logging.warning(
            "The checkpoint to resume was written when projections gave the teacher's own units: its projection is "
            "converted, and the state of the projection's optimizer, which is not Adam's, begins anew."
        )
        return {**optimizer, "state": {}}
    rescaled = {number: _powers(values, factors[number]) for number, values in of_parameters.items()}
    return {**optimizer, "state": rescaled} if optimizer else optimizer


def _powers(averages: dict[str, Any], factor: Optional[Tensor]) -> dict[str, Any]:
    if factor is None:
        return averages
    return {name: value * factor.to(value) ** OF_ADAM[name] if OF_ADAM[name] else value for name, value in averages.items()}
