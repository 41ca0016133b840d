"""What to train, and how long: the recipes of the demo and of OC20, by the number of systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fairchem_crack import keys
from fairchem_crack.commands.init.data import DataSummary
from fairchem_crack.commands.init.teacher import TeacherSummary

MANY = 20_000  # systems, from which on the models of OC20 are worth their cost
ATOMS = 1000  # of a batch
LARGEST_BATCH = 32
FEWEST_BATCHES = 10  # of an epoch, where the systems are few
STEPS = 10_000  # of a training, within these epochs
EPOCHS = (20, 100)
WARMUP = 0.03  # of the training
VALIDATIONS = 10

MODELS: dict[tuple[str, bool], dict[str, Any]] = {  # by student, and whether there are many systems
    ("painn", False): {
        "name": "painn",
        **{"hidden_channels": 64, "num_layers": 3, "num_rbf": 64, "cutoff": 6.0, "max_neighbors": 30},
    },
    ("painn", True): {
        "name": "painn",
        **{"hidden_channels": 512, "num_layers": 6, "num_rbf": 128, "cutoff": 12.0, "max_neighbors": 50},
    },
    ("gemnet_dT", False): {
        "name": "gemnet_t",
        **{"cutoff": 6.0, "max_neighbors": 12, "num_spherical": 5, "num_radial": 32, "num_blocks": 2},
        **{"emb_size_atom": 64, "emb_size_edge": 64, "emb_size_trip": 16, "emb_size_rbf": 16, "emb_size_cbf": 16},
        **{"emb_size_bil_trip": 16, "num_before_skip": 1, "num_after_skip": 1, "num_concat": 1, "num_atom": 2},
    },
    ("gemnet_dT", True): {
        "name": "gemnet_t",
        **{"cutoff": 6.0, "max_neighbors": 50, "num_spherical": 7, "num_radial": 128, "num_blocks": 3},
        **{"emb_size_atom": 512, "emb_size_edge": 512, "emb_size_trip": 64, "emb_size_rbf": 16, "emb_size_cbf": 16},
        **{"emb_size_bil_trip": 64, "num_before_skip": 1, "num_after_skip": 2, "num_concat": 1, "num_atom": 3},
    },
}
GEMNET = {"extensive": True, "activation": "silu", "output_init": "HeOrthogonal"}
DIRECT = {"regress_forces": True, "direct_forces": True, "use_pbc": True, "otf_graph": True}
RATES = {("painn", False): 0.005, ("gemnet_dT", False): 0.005, ("painn", True): 1e-4, ("gemnet_dT", True): 5e-4}
TERMS: dict[str, tuple[str, dict[str, Any]]] = {  # the recipe of docs/accuracy.md: what each needs of a teacher
    keys.RELATIONS: (keys.NODE_EMBEDDING, {"fn": "crack", "coefficient": 40, "temperature": 0.15}),
    keys.NODE_EMBEDDINGS: (keys.NODE_EMBEDDING, {"fn": "mse", "coefficient": 300}),
    keys.VECTOR_EMBEDDINGS: (keys.VECTOR_EMBEDDING, {"fn": "mse", "coefficient": 300}),
    keys.ATOM_ENERGIES: (keys.ATOM_ENERGIES, {"fn": "mae", "coefficient": 100}),
}


@dataclass(frozen=True)
class Recipe:
    """Model, loss and schedule of a student.

    Attributes:
        model: fairchem's options.
        losses: of energy and forces, then the distillation terms.
        batch_size: of a rank.
        epochs: of the training.
        warmup_epochs: in which the learning rate rises.
        rate: the largest learning rate.
        eval_every: steps between two validations.
        leaves_out_energies: the teacher's, whose zero may be another than that of total energies.
    """

    student: str
    model: dict[str, Any]
    losses: list[dict[str, dict[str, Any]]]
    batch_size: int
    epochs: int
    warmup_epochs: float
    rate: float
    eval_every: int
    leaves_out_energies: bool

    @property
    def summary(self) -> str:
        """In words."""
        terms = [name for loss in self.losses for name in loss][2:]
        return (
            f"{self.student}, {self.epochs} epochs in batches of {self.batch_size}, distilled by "
            f"{', '.join(terms) or 'the labels of the teacher only'}"
        )


def recipe(student: str, data: DataSummary, teacher: TeacherSummary) -> Recipe:
    """The recipe of a student of these data."""
    is_large = data.systems >= MANY
    batch_size = batch_size_of(data)
    steps = math.ceil(data.systems / batch_size)  # of an epoch
    epochs = min(max(math.ceil(STEPS / steps), EPOCHS[0]), EPOCHS[1])
    model = {**MODELS[student, is_large], **(GEMNET if student == "gemnet_dT" else {}), **DIRECT}
    if data.has_several_pbc:
        model["use_pbc_single"] = True
    losses: list[dict[str, dict[str, Any]]] = [
        {keys.ENERGY: {"fn": "mae", "coefficient": 1 if is_large else 4}},
        {keys.FORCES: {"fn": "l2mae", "coefficient": 100}},
    ]
    leaves_out_energies = data.references is not None and data.labels != "teacher"
    left_out = [keys.VECTOR_EMBEDDING] if student == "gemnet_dT" else []  # which has none
    left_out += [keys.ATOM_ENERGIES] if leaves_out_energies else []
    for term, (field, options) in TERMS.items():
        if field in teacher.fields and field not in left_out:
            losses.append({term: options})
    return Recipe(
        student=student,
        model=model,
        losses=losses,
        batch_size=batch_size,
        epochs=epochs,
        warmup_epochs=math.ceil(max(WARMUP * epochs * steps, 1)) / steps,
        rate=RATES[student, is_large],
        eval_every=max(1, epochs * steps // VALIDATIONS),
        leaves_out_energies=leaves_out_energies,
    )


def batch_size_of(data: DataSummary) -> int:
    """About `ATOMS` atoms; fewer where an epoch would have fewer than `FEWEST_BATCHES` steps."""
    by_atoms = min(max(round(ATOMS / data.atoms), 1), LARGEST_BATCH)
    return max(1, min(by_atoms, data.systems // FEWEST_BATCHES))
