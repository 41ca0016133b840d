"""The YAML that `init` writes: what was chosen, and in comments why, and what to change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

import yaml

from fairchem_crack import keys
from fairchem_crack.commands.init.data import DataSummary
from fairchem_crack.commands.init.recipe import Recipe
from fairchem_crack.commands.init.teacher import TeacherSummary

PAGE = """\
# A {student} student, distilled from {teacher_name}; written by `fairchem-crack init`.
# Data: {data}.
# Every option of the package: docs/configuration.md. What training would do: fairchem-crack check --config-yml THIS_FILE

trainer: fairchem_crack.CrackDistillTrainer

task:
  distill:
    teacher: {teacher}
{labels}
dataset:
  train:
{train}
    transforms:
{transforms}
{val}

outputs:
  energy: {{level: system}}
  # fixed atoms have forces, too: False leaves their errors in
  forces: {{level: atom, train_on_free_atoms: True, eval_on_free_atoms: True}}

evaluation_metrics:
  metrics:
    energy: [mae]
    forces: [mae, cosine_similarity]
  primary_metric: forces_mae # decides which checkpoint is the best

model:
{model}
{scales}
loss_functions:
  # the student's own, on the labels
{losses}
  # the distillation terms: docs/terms.md, and what each brought on the demo's data in docs/accuracy.md
{terms}

optim:
  batch_size: {batch_size} # of each rank: about {batch_atoms:.0f} atoms
  eval_batch_size: {batch_size}
  num_workers: {workers}
  load_balancing: atoms
  load_balancing_on_error: warn_and_no_balance # ASE databases have no metadata.npz
  optimizer: AdamW
  optimizer_params: {{weight_decay: 0.0}}
  lr_initial: {rate:g} # the largest
  scheduler: LambdaLR # in epochs, whatever the number of ranks
  scheduler_params:
    lambda_type: cosine
    warmup_epochs: {warmup:.4g}
    warmup_factor: 0.04
    lr_min_factor: 0.01
  max_epochs: {epochs} # {steps} steps on one rank; more gain as long as the validation does
  clip_grad_norm: 10
  ema_decay: 0.99
  eval_every: {eval_every} # steps

logger: tensorboard # or wandb
"""
WITHOUT_VAL = """\
  # No --val or --hold-out was given: nothing tells when to stop, and there is no best checkpoint. Systems not trained on:
  # val: {src: PATH}"""
OF_LABELS = {
    "data": "",
    "fill": "    labels: fill # systems without energy or forces have the teacher's\n",
    "teacher": "    labels: teacher # its energies and forces, to train and to validate on\n",
}
ATOM_ENERGIES = """\
  # These data have total energies. Where the teacher's have the same zero (`check` compares them), its atom energies help:
  # - atom_energies: {fn: mae, coefficient: 100}"""
SCALES = """\
  # Relaxations need fitted scale factors: fairchem-crack fit-scales --config-yml THIS_FILE --output scales.json
  # scale_file: scales.json
"""


def page(
    data: DataSummary,
    val: Optional[DataSummary],
    teacher: TeacherSummary,
    chosen: Recipe,
    references: Optional[Path],
    val_cache: Optional[str],
) -> str:
    """The YAML.

    Args:
        references: file of the element references, where there is one.
        val_cache: of the validation data's labels, where they have none.
    """
    given = {"checkpoint" if teacher.cache is None else "cache": teacher.given}
    given.update({} if val_cache is None else {"val_cache": val_cache})
    steps = chosen.epochs * math.ceil(data.systems / chosen.batch_size)
    losses = [f"  - {name}: {flow(options)}" for loss in chosen.losses for name, options in loss.items()]
    terms = losses[2:] or ["  # none: the cache has no embeddings and no atom energies"]
    terms += [ATOM_ENERGIES] if chosen.leaves_out_energies else []
    return PAGE.format(
        student=chosen.student,
        teacher_name=teacher.name,
        data=data.summary,
        teacher=flow(given),
        labels=OF_LABELS[data.labels],
        train=block(data.options, 4),
        transforms=transforms(data, references),
        val=WITHOUT_VAL if val is None else f"  val: {flow(options_of_val(val, data))} # otherwise read as train",
        model=block(chosen.model, 2),
        scales=SCALES,
        losses="\n".join(losses[:2]),
        terms="\n".join(terms),
        batch_size=chosen.batch_size,
        batch_atoms=chosen.batch_size * data.atoms,
        workers=0 if data.systems < 1000 else 2,
        rate=chosen.rate,
        warmup=chosen.warmup_epochs,
        epochs=chosen.epochs,
        steps=steps,
        eval_every=chosen.eval_every,
    )


def options_of_val(val: DataSummary, train: DataSummary) -> dict[str, Any]:
    """Those in which it differs from the training's, by which fairchem reads it otherwise."""
    return {name: value for name, value in val.options.items() if name == "src" or value != train.options.get(name)}


def transforms(data: DataSummary, references: Optional[Path]) -> str:
    """`dataset.train.transforms`: a normalizer, by the sample; and references where energies need them."""
    if references is not None and data.references is not None:
        given = data.references.transforms(references)
        comment = "of a sample, whose energies are total ones; `fairchem-crack references` fits to all (docs/energies.md)"
        return f"      # {comment}\n{block(given, 6)}"
    mean, stdev = (rounded(value) for value in data.energy)
    normalizer = {
        keys.ENERGY: {"mean": mean, "stdev": stdev or 1.0},
        keys.FORCES: {"mean": 0.0, "stdev": rounded(data.force_size) or 1.0},
    }
    return "      # eV and eV/A, of a sample: forces of the free atoms\n" + block({"normalizer": normalizer}, 6)


def rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def block(content: dict[str, Any], indent: int) -> str:
    """A line of YAML for each entry of a mapping, indented."""
    return "\n".join(f"{' ' * indent}{name}: {flow(value)}".replace("\n...", "") for name, value in content.items())
