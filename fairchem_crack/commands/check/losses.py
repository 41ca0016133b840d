"""The section of `fairchem-crack check` that takes a step, validates and predicts on the samples, as fairchem does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from fairchem.core.modules.evaluator import Evaluator
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.commands.check.context import Check, LeftOut
from fairchem_crack.training.readout import Readout

HEAVY = 10.0  # times the student's own terms: a distillation term that is warned of


def examine_loss(check: Check) -> str:
    """Every term of the loss on the sample, with fairchem's metrics; then a validation and a prediction."""
    if check.problems:
        raise LeftOut("only a config without problems is tried")
    trainer, distillation, batch = check.need("trainer"), check.distillation, check.batch()
    trainer.model.train()
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        # before the student's losses: it may give the labels
        teacher_step = None if distillation is None else distillation.run_teacher(batch, 1)
        outputs = trainer._forward(batch)
        loss = trainer._compute_loss(outputs, batch)
        values = dict(trainer._own_losses)
        coefficients = {name: own["coefficient"] for name, own in trainer.loss_functions}
        if distillation is not None and teacher_step is not None:
            distilled = distillation.loss(teacher_step, outputs)
            loss = loss + distilled.total
            values.update(distilled.log)
            coefficients.update((term.key, coefficient) for term, coefficient in teacher_step.terms)
    loss.backward()
    trainer.model.zero_grad()
    _metrics(check, outputs, batch)
    terms = {
        name.removeprefix(keys.LOSS_PREFIX): value
        for name, value in Readout(values).numbers.items()
        if name.startswith(keys.LOSS_PREFIX)
    }
    for name, value in terms.items():
        if not math.isfinite(value):
            check.problems.append(f"loss_functions: `{name}` is {value} on a sample of {len(batch.natoms)} systems.")
    weighted = {name: coefficients[name] * value for name, value in terms.items()}
    _warn_of_heavy_terms(check, weighted, coefficients)
    for split in ("val", "test"):
        before = len(check.problems)
        with check.collecting():
            _check_elements(check, split)
        if check.samples.get(split) and len(check.problems) == before:
            with check.collecting(f"dataset.{split}"), torch.no_grad():
                _evaluate(check, split)
    total = sum(weighted.values()) or 1.0
    shares = ", ".join(f"{name} {value:.3g} ({weighted[name] / total:.0%})" for name, value in terms.items())
    return f"{shares}; unweighted, with random weights (share of the weighted loss)"


def _warn_of_heavy_terms(check: Check, weighted: Mapping[str, float], coefficients: Mapping[str, float]) -> None:
    """Name the distillation terms beside which the student's own have no say in the first steps.

    Args:
        weighted: the value of each term times its coefficient.
    """
    of_teacher = {term.key for term in check.terms}
    own = sum(value for name, value in weighted.items() if name not in of_teacher)
    for name, value in weighted.items():
        if name in of_teacher and own > 0 and value > HEAVY * own:
            check.warnings.append(
                f"loss_functions: `{name}` begins at {value:.3g}, {value / own:.0f} times the student's own terms together "
                f"({own:.3g}). With a coefficient of {coefficients[name] * own / value:.2g}, not {coefficients[name]:g}, it "
                "would begin level with them."
            )


def _check_elements(check: Check, split: str) -> None:
    systems = check.samples.get(split) or []
    if check.distillation is None or not systems:
        return
    largest = max(int(system.atomic_numbers.max()) for system in systems)
    limit = check.distillation.student_features.max_atomic_number
    if largest > limit:
        raise ValueError(
            f"dataset.{split} holds an atom of atomic number {largest}; the student knows elements up to {limit}. Leave "
            "such systems out, or raise the model's `num_elements`."
        )


def _evaluate(check: Check, split: str) -> None:
    """What fairchem does with a batch of the validation data, or of those that it predicts at each new best."""
    trainer, batch = check.need("trainer"), check.batch(split=split)
    trainer.model.eval()
    outputs = trainer._forward(batch)
    if split == "val":
        loss = float(trainer._compute_loss(outputs, batch))
        if not math.isfinite(loss):
            check.problems.append(f"dataset.val: the loss of a sample of {len(batch.natoms)} systems is {loss}.")
        _metrics(check, outputs, batch)
        return
    for name in ("sid", "fixed"):
        if name not in batch:
            check.problems.append(
                f"dataset.test: the systems have no `{name}`, without which fairchem predicts none of them."
            )


def _metrics(check: Check, outputs: dict, batch: Batch) -> None:
    trainer = check.need("trainer")
    with check.collecting("evaluation_metrics"):
        evaluator = Evaluator(task=trainer.name, eval_metrics=trainer.evaluation_metrics.get("metrics", {}))
        metrics = trainer._compute_metrics(outputs, batch, evaluator, {})
        primary = trainer.evaluation_metrics["primary_metric"]
        if primary not in (*metrics, "loss"):
            check.problems.append(
                f"evaluation_metrics.primary_metric: {primary!r} is not computed by fairchem's evaluation, which has "
                f"{', '.join(metrics) or 'no metric: give evaluation_metrics.metrics'}."
            )
