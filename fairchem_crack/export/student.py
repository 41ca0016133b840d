"""A student in a file: its forward as TorchScript or a torch.export program, and what an engine must know about it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Literal

import torch
from torch import Tensor

from fairchem_crack.export.neighbors import GraphRule
from fairchem_crack.export.painn import GradientPaiNN, PaiNN
from fairchem_crack.io.files import write_bytes

FORMAT = 1
RECORD = "student.json"  # in the file, beside the program
Format = Literal["torchscript", "pt2"]
UNITS = {"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom"}
Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class StudentInfo:
    """What an engine must know about a student.

    Attributes:
        cutoff: A.
        max_neighbors: of an atom, see `neighbors`; 0 for any number.
        elements: atomic numbers that it knows.
        forces: "direct"; "conservative", the gradient of the energy; or "gradient", of something else.
        checkpoint: SHA-256 of the checkpoint's file, hexadecimal.
        dtype: of its weights.
    """

    cutoff: float
    max_neighbors: int
    elements: tuple[int, ...]
    forces: str
    checkpoint: str
    dtype: str = "float32"

    @property
    def rule(self) -> GraphRule:
        """Which pairs it sees."""
        return GraphRule(self.cutoff, self.max_neighbors)


@dataclass(frozen=True)
class Student:
    """A student that can be called, as `painn.PaiNN.forward`, and what is known about it."""

    forward: Forward
    info: StudentInfo

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy, forces and atom energies, without a graph; autograd is on where its forces need it."""
        with torch.inference_mode() if self.info.forces == "direct" else torch.enable_grad():
            return self.forward(*arguments)


def write_student(painn: PaiNN, info: StudentInfo, path: Path, format_: Format) -> None:
    """Write one file, whole or not at all, and the directories that lead to it."""
    record = json.dumps({"format": FORMAT, **asdict(info), "units": UNITS, "torch": torch.__version__}, indent=1)
    content = io.BytesIO()
    if format_ == "pt2":
        torch.export.save(_program(painn), content, extra_files={RECORD: record})
    else:
        torch.jit.save(torch.jit.script(painn), content, _extra_files={RECORD: record})
    write_bytes(path, content.getvalue())


def _program(painn: PaiNN) -> torch.export.ExportedProgram:
    if isinstance(painn, GradientPaiNN):
        raise ValueError(
            "--format pt2: forces that are a gradient need autograd, which torch.export leaves out; take torchscript."
        )
    atoms, pairs, systems = (torch.export.Dim(name) for name in ("atoms", "pairs", "systems"))
    dimensions = ({0: atoms}, {0: atoms}, {0: systems}, {1: pairs}, {0: pairs}, {0: atoms})
    shapes = dict(zip(("numbers", "positions", "cell", "pairs", "shifts", "system"), dimensions))
    painn.in_blocks = False  # a loop whose length depends on the number of pairs
    try:
        return torch.export.export(painn, example(), dynamic_shapes=shapes)
    finally:
        painn.in_blocks = True


def example() -> tuple[Tensor, ...]:
    """Arguments of a forward: two systems, of three atoms and two."""
    numbers, system = torch.tensor([1, 8, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1])
    positions = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0.8]], dtype=torch.float64)
    pairs, shifts = torch.tensor([[1, 2, 2, 4], [0, 1, 0, 3]]), torch.zeros(4, 3, dtype=torch.long)
    return numbers, positions, 9 * torch.eye(3, dtype=torch.float64).repeat(2, 1, 1), pairs, shifts, system


def is_exported(path: Path) -> bool:
    """Whether a file is one that `write_student` wrote."""
    return zipfile.is_zipfile(path) and any(name.endswith(RECORD) for name in zipfile.ZipFile(path).namelist())


def read_student(path: Path, device: torch.device, dtype: torch.dtype | None = None) -> Student:
    """A student of a file that `write_student` wrote.

    Args:
        dtype: of its weights; None for that of the file.

    Raises:
        ValueError: no such file, or another one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file (looked in {Path.cwd()}).")
    if not is_exported(path):
        raise ValueError(
            f"{path} is no exported student: `fairchem-crack export --checkpoint FILE --output {path}` makes one."
        )
    files = {RECORD: ""}
    if any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        module: Any = torch.jit.load(str(path), map_location=device, _extra_files=files)
    else:
        module = torch.export.load(str(path), extra_files=files).module().to(device)
    info = _info(json.loads(files[RECORD]), path)
    if dtype is not None and info.dtype != _name(dtype):  # of all buffers, some of which are float64 in any file
        module, info = module.to(dtype), replace(info, dtype=_name(dtype))
    return Student(frozen(module, info), info)


def frozen(module: Any, info: StudentInfo) -> Any:
    """TorchScript with its weights as constants. Not where forces are a gradient: freezing takes out `detach`."""
    if info.forces != "direct" or not isinstance(module, torch.jit.ScriptModule):
        return module
    return torch.jit.freeze(module.eval())


def _info(record: dict[str, Any], path: Path) -> StudentInfo:
    if record["format"] != FORMAT:
        raise ValueError(f"{path} has format {record['format']}, this version reads {FORMAT}: export the checkpoint again.")
    fields = {name: record[name] for name in StudentInfo.__dataclass_fields__}
    return StudentInfo(**{**fields, "elements": tuple(fields["elements"])})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
