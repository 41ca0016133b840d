"""Load, freeze and run a teacher from a fairchem checkpoint."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_state_dict, match_state_dict
from fairchem.core.models.model_registry import available_pretrained_models, model_name_to_local_file
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.modules.normalization.element_references import create_element_references
from fairchem.core.modules.normalization.normalizer import create_normalizer
from fairchem.core.modules.scaling.compat import load_scales_compat
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters import Features, attach_features
from fairchem_crack.adapters.outputs import ModelOutputs, predicted
from fairchem_crack.config import Precision, TeacherConfig
from fairchem_crack.io.boundaries import OwnBoundaries
from fairchem_crack.io.checkpoints import model_config, read_checkpoint, reading_safely
from fairchem_crack.io.progress import progress_of
from fairchem_crack.loss.precision import full_precision
from fairchem_crack.teacher.force_jacobian import JacobianRows, draw_coordinates, jacobian_columns
from fairchem_crack.teacher.identity import of_teacher
from fairchem_crack.teacher.responses import OF_RESPONSE, STEP, Response, displaced, draw_displacement

EMBEDDINGS = (keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING, keys.HIGHER_EMBEDDING)  # by the degrees l = 0, 1, and above


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's outputs for a batch: ordinary tensors, without gradient; None for a field that was not requested.

    Attributes:
        edge_index: (2, E) edges the teacher passed messages along.
        node_embedding: (N, D) invariant node embedding, dimensionless; D = 0 where a cache holds none.
        vector_embedding: (N, 3, D_v) components x, y, z.
        atom_energies: (N,) eV; their sum over a system is its energy.
        energy: (B,) eV.
        forces: (N, 3) eV/A.
        force_jacobian: the requested rows, see `Teacher.jacobian_at`.
        higher_embedding: (N, (L + 1)^2 - 4, D_v) degrees l = 2 to L, one after the other.
        embedding_response: see `Teacher.responses_to`.
        force_response: likewise; of the same displacement.
    """

    edge_index: Tensor
    node_embedding: Tensor
    vector_embedding: Tensor | None = None
    atom_energies: Tensor | None = None
    energy: Tensor | None = None
    forces: Tensor | None = None
    force_jacobian: JacobianRows | None = None
    higher_embedding: Tensor | None = None
    embedding_response: Response | None = None
    force_response: Response | None = None

    def __getitem__(self, name: str) -> Any:
        """A requested field."""
        value = getattr(self, name)
        assert value is not None, name
        return value


class Teacher:
    """A frozen model: no gradients, no training mode, no part in DDP, EMA, optimizer or checkpoint."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        checkpoint: Path,
        outputs: ModelOutputs | None = None,
        precision: Precision = "auto",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.precision = precision
        self.config = config or {}
        self.outputs = outputs or ModelOutputs(f"Teacher {checkpoint}")
        self._fingerprint: str | None = None
        self.model = model.requires_grad_(False).eval()
        self.features: Features = attach_features(model, f"teacher {checkpoint}", self.outputs.names(keys.ENERGY))
        self._boundaries = OwnBoundaries(model)
        self.width, self.max_atomic_number = self.features.width, self.features.max_atomic_number
        self.vector_width, self.lmax = self.features.vector_width, self.features.lmax
        self.cutoff: float | None = getattr(self.features.backbone, "cutoff", None)
        self.use_pbc: bool = getattr(self.features.backbone, "use_pbc", True)

    def __call__(self, batch: Batch, requested: Collection[str] = (keys.NODE_EMBEDDING,), seed: int = 0) -> TeacherOutputs:
        """Run the teacher on a batch on its device.

        Its outputs for a system do not depend on the other systems of the batch, see `_BatchIndependent`; the caller's
        random number stream is left as it was.

        Args:
            requested: fields of `TeacherOutputs`; where only embeddings are requested, the blocks after them do not run.
            seed: of the coordinates of `force_jacobian`, and of the displacement of the responses.
        """
        with self._as_configured(batch):
            if set(requested) <= {*EMBEDDINGS, keys.FORCE_JACOBIAN, *keys.RESPONSES}:
                outputs = self._embed(own(batch), requested)
            else:
                outputs = self._predict(own(batch), requested)
        if keys.FORCE_JACOBIAN in requested:
            outputs = replace(outputs, force_jacobian=self.jacobian_at(batch, draw_coordinates(batch, seed)))
        if not set(keys.RESPONSES).isdisjoint(requested):
            outputs = replace(outputs, **self.responses_to(batch, draw_displacement(batch, seed), requested))
        return outputs

    def responses_to(self, batch: Batch, displacement: Tensor, requested: Collection[str]) -> dict[str, Any]:
        """The `Response` of those of `keys.RESPONSES` that are requested, to a displacement (N, 3); two runs."""
        compared = {response: OF_RESPONSE[response] for response in keys.RESPONSES if response in requested}
        run = self._predict if keys.FORCE_RESPONSE in compared else self._embed
        with self._as_configured(batch), full_precision(batch.pos.device.type):
            rest = run(own(batch), compared.values())
            with self.features.edges_at(batch.pos.detach()):
                moved = run(own(displaced(batch, displacement)), compared.values())
        return {name: Response(displacement, (moved[field] - rest[field]) / STEP) for name, field in compared.items()}

    def jacobian_at(self, batch: Batch, coordinates: Tensor) -> JacobianRows:
        """Rows of the Jacobian of the forces; two runs of the teacher.

        Args:
            coordinates: one of each system, see `JacobianRows`.
        """
        edges = self.features.edges_at(batch.pos.detach())
        with self._as_configured(batch), full_precision(batch.pos.device.type), edges:
            rows = jacobian_columns(self._forces, own(batch), coordinates)
        return JacobianRows(coordinates, rows)

    def _run(self, batch: Batch) -> Any:
        self.model.eval()
        # autocast rounds the vectors between periodic images, 0.06 A of 20 A in bfloat16
        exact = partial(torch.autocast, batch.pos.device.type, enabled=False)
        with self.features.making_edges(_BatchIndependent, exact):
            return self.model(batch)

    @torch.inference_mode()
    def _run_embeddings(self, batch: Batch, *names: str) -> list[Tensor]:
        with self.features.stopping_after(*names):  # its energy and forces are not needed
            self._run(batch)
        values = [getattr(self.features, name) for name in names]
        self.features.clear()
        return values

    def _embed(self, batch: Batch, requested: Collection[str]) -> TeacherOutputs:
        names = ("edge_index", keys.NODE_EMBEDDING, *(name for name in EMBEDDINGS[1:] if name in requested))
        # a clone made outside of inference mode may enter the student's graph
        edges, *embeddings = [value.clone() for value in self._run_embeddings(batch, *names)]
        fields: dict[str, Any] = {name: value.float() for name, value in zip(names[1:], embeddings)}
        return TeacherOutputs(edges, **fields)

    def _forces(self, batch: Batch) -> Tensor:
        return self._predict(batch, (keys.FORCES,))[keys.FORCES]

    def _predict(self, batch: Batch, requested: Collection[str]) -> TeacherOutputs:
        """The embeddings, and energy and forces if they are among the requested fields, of the model run to its end."""
        features = self.features
        fields: dict[str, Any] = {}
        with torch.set_grad_enabled(features.has_gradient_forces):
            raw = self._run(batch)
        if not {keys.ENERGY, keys.ATOM_ENERGIES}.isdisjoint(requested):
            output = self.outputs[keys.ENERGY]
            energy = predicted(raw, keys.ENERGY, output.name).detach().float().view(-1)
            fields[keys.ENERGY] = total = output.in_ev(energy, batch)
            fields[keys.ATOM_ENERGIES] = output.atoms_in_ev(features.atom_energies.detach().float()[:, 0], total, batch)
        if keys.FORCES in requested:
            output = self.outputs[keys.FORCES]
            fields[keys.FORCES] = output.in_ev(predicted(raw, keys.FORCES, output.name).detach().float().view(-1, 3), batch)
        for name in EMBEDDINGS[1:]:
            if name in requested:
                fields[name] = getattr(features, name).detach().float()
        outputs = TeacherOutputs(features.edge_index, features.node_embedding.detach().float(), **fields)
        features.clear()
        return outputs

    @contextmanager
    def _as_configured(self, batch: Batch) -> Iterator[None]:
        device = batch.pos.device.type
        contexts: dict[str, Callable[[], AbstractContextManager]] = {
            "auto": nullcontext,
            "float32": partial(torch.autocast, device, enabled=False),
            "bfloat16": partial(torch.autocast, device, torch.bfloat16),
        }
        with contexts[self.precision](), _reproducible(batch):
            yield

    def graph_settings(self) -> dict[str, Any]:
        """What cached records depend on besides the weights: what makes the edges, and whose the element references are.

        Version 0.1.0 shared the references among the atoms of a system; its caches of such teachers do not have the entry.
        """
        names = ("cutoff", "max_neighbors", "use_pbc", "use_pbc_single", "enforce_max_neighbors_strictly")
        values = {name: getattr(self.features.backbone, name, None) for name in names}
        settings: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, (bool, int, float))}
        return {**settings, "element_references": "of each atom"} if self.outputs.references else settings

    def identity(self) -> dict[str, Any]:
        """What decides its outputs besides its weights and its graph."""
        return of_teacher(self.config, self.outputs, self.features)

    def settings(self) -> dict[str, Any]:
        """What decides its outputs besides its weights, by name."""
        return {"graph": self.graph_settings(), **self.identity()}

    def close(self) -> None:
        """Take the hooks off the model."""
        self.features.close()
        self._boundaries.close()

    def fingerprint(self) -> str:
        """Digest of architecture and weights: equal for the same teacher, wherever its file lies. Computed once."""
        if self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(self.name.encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def own(batch: Batch) -> Batch:
    """A shallow copy for a model of its own: some add to their batch, or require the gradient of its positions."""
    copied = copy.copy(batch)
    copied.pos = batch.pos.detach()
    return copied


class _BatchIndependent(TorchFunctionMode):
    """Context in which a model's outputs for a system, and so a cache's records, do not depend on the rest of the batch.

    EquiformerV2, eSCN and eSEN draw a random frame for each edge, which their grids make visible in the third digit: here
    all edges draw the same numbers. Among equally distant neighbors beyond `max_neighbors` the first ones are kept. Both
    happen where the adapter says that edges are made (`Features.makes_edges`); elsewhere each call of torch would take a
    detour in Python for nothing.
    """

    FRAME = (0.83, 0.31, 0.07)  # any numbers in [0, 1): where the vector is parallel to an edge, the models rotate it

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand_like and args[0].shape[1:] == (3,):
            frames = torch.empty_like(args[0])
            for column, number in zip(frames.T, self.FRAME):  # a fill does not wait for a GPU, a copy of numbers does
                column.fill_(number)
            return frames
        if func is torch.sort and args[0].dim() == 2:
            kwargs = {**kwargs, "stable": True}
        return func(*args, **kwargs)


@contextmanager
def _reproducible(batch: Batch) -> Iterator[None]:
    with torch.random.fork_rng([batch.pos.device] if batch.pos.is_cuda else []):
        torch.manual_seed(0)
        yield


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher:
    """Build the model a fairchem checkpoint describes and load its weights, in fairchem's own way.

    Raises:
        FileNotFoundError: neither a file nor the name of a pretrained model.
        ValueError: not a readable fairchem checkpoint, or of an architecture without adapter.
    """
    path = _locate(config)
    checkpoint = read_checkpoint(path, trust=config.trust)
    if progress_of(checkpoint).step == 0:
        logging.warning(f"Teacher {path} is of step 0: it is untrained.")
    name, attributes = model_config(checkpoint, path)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the random initial weights are overwritten
        try:
            with reading_safely(attributes, trust=config.trust):  # its config may name a file of scale factors
                model = registry.get_model_class(name)(**attributes)
        except RuntimeError as error:
            raise ValueError(f"Teacher {path} is a `{name}`, which this fairchem does not have: {error}") from error
        except TypeError as error:
            raise ValueError(f"Teacher {path}: `{name}` does not take the config's options: {error}") from error
    try:
        load_state_dict(model, match_state_dict(model.state_dict(), checkpoint["state_dict"]), strict=True)
    except RuntimeError as error:
        raise ValueError(f"Teacher {path}: its weights do not fit the `{name}` its config describes: {error}") from error
    if checkpoint.get("scale_dict"):
        load_scales_compat(model, checkpoint["scale_dict"])
    if config.use_ema and checkpoint.get("ema"):
        _check_ema(model, checkpoint["ema"], path)
        average = ExponentialMovingAverage([], checkpoint["ema"]["decay"])  # of the model it would hold a copy
        average.shadow_params = checkpoint["ema"]["shadow_params"]  # load_state_dict would copy them
        average.copy_to(model.parameters())
        logging.info(f"Teacher {path}: taking its EMA weights.")
    teacher = Teacher(name, model.to(device), path, _outputs(checkpoint, path, device), config.precision, attributes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logging.info(f"Teacher {path}: `{name}`, {parameters / 1e6:.2f}M parameters, D = {teacher.features.width}.")
    return teacher


def _outputs(checkpoint: dict, path: Path, device: torch.device) -> ModelOutputs:
    """What a checkpoint predicts, and in which units; by fairchem's names, old or new."""
    old = {"target": keys.ENERGY, "grad_target": keys.FORCES}
    normalizers = {old.get(name, name): state for name, state in (checkpoint.get("normalizers") or {}).items()}
    references = checkpoint.get("elementrefs") or {}
    return ModelOutputs(
        f"Teacher {path}",
        checkpoint["config"].get("outputs"),
        {name: create_normalizer(state_dict=state).to(device) for name, state in normalizers.items()},
        {name: create_element_references(state_dict=state).to(device) for name, state in references.items()},
    )


def _check_ema(model: nn.Module, ema: dict, path: Path) -> None:
    """Raise ValueError unless the EMA has one tensor for each trainable parameter: fairchem would load any number."""
    expected = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    shapes = [value.shape for value in ema["shadow_params"]]
    if shapes != expected:
        raise ValueError(
            f"Teacher {path}: its EMA has {len(shapes)} tensors that do not fit the model's {len(expected)} parameters. "
            "Take its own weights with `use_ema: false`, or another checkpoint."
        )


def _locate(config: TeacherConfig) -> Path:
    if config.checkpoint is None:
        raise ValueError(
            "task.distill.teacher.checkpoint: missing; the teacher itself is needed here, not its cache nor its command."
        )
    path = Path(config.checkpoint)
    if path.is_file():
        return path
    if config.checkpoint in available_pretrained_models:
        return Path(model_name_to_local_file(config.checkpoint, config.local_cache))
    raise FileNotFoundError(
        f"task.distill.teacher.checkpoint: {config.checkpoint} is neither a file (looked in {Path.cwd()}) nor a pretrained "
        f"model of fairchem. Its {len(available_pretrained_models)} names are in "
        "fairchem.core.models.model_registry.available_pretrained_models."
    )
