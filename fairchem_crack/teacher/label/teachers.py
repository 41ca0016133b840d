"""Teachers by their names on the command line: `framework:model`, or `package.module:function` of one's own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

from ase import Atoms

from fairchem_crack.io.calculators import energy_and_forces, is_calculator
from fairchem_crack.teacher.label.protocol import Labeller, Outputs

# Of each: what `pip install` takes, from the oldest version with all that its adapter calls; and an example of a model.
FRAMEWORKS = {
    "sevennet": ("sevenn>=0.11", "sevennet:7net-0"),
    "chgnet": ("chgnet>=0.3.8", "chgnet:0.3.0"),
    "mace": ("mace-torch>=0.3.13", "mace:weights/mace.model"),
    "nequix": ("nequix[torch]>=0.3", "nequix:weights/nequix-oam-1.pt"),
    "orb": ("orb-models>=0.7", "orb:orb-v3-conservative-inf-omat"),
    "fairchem2": ("fairchem-core>=2.16", "fairchem2:uma-s-1p1@oc20"),
}
OWN = (
    "package.module:function, which takes no argument and returns a Labeller, an ASE calculator, or a function of a list of "
    "Atoms"
)
EXPECTED = f"{', '.join(example for _, example in FRAMEWORKS.values())}, or {OWN}"


class CalculatorLabeller(Labeller):
    """Energies and forces of an ASE calculator."""

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator
        parameters = getattr(calculator, "parameters", None) or {}
        self.identity = {"parameters": {str(name): str(parameters[name]) for name in sorted(parameters)}}
        self.fingerprint = _source_digest(type(calculator))

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        values = [energy_and_forces(self.calculator, atoms) for atoms in systems]
        return [Outputs(float(energy), forces) for energy, forces in values]


class FunctionLabeller(Labeller):
    """The outputs that a function returns for a list of Atoms."""

    def __init__(self, function: Callable[[Sequence[Atoms]], list[Outputs]]) -> None:
        self.function, self.fingerprint = function, _source_digest(function)

    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """See `Labeller`."""
        return self.function(systems)


def labeller_of(teacher: str, device: Optional[str] = None) -> Labeller:
    """The teacher that `--teacher` names.

    Args:
        device: of torch; None takes a GPU where there is one.

    Raises:
        ValueError: there is none, or its framework is not installed or too old; the message begins with `--teacher`.
    """
    framework, colon, model = teacher.partition(":")
    if framework in FRAMEWORKS:
        return _of_framework(teacher, framework, model, device)
    if not colon:
        raise ValueError(f"--teacher {teacher}: expected {EXPECTED}.")
    try:
        make: Any = functools.reduce(getattr, model.split("."), importlib.import_module(framework))
    except (Exception, SystemExit) as error:  # what it runs is the user's
        raise ValueError(f"--teacher {teacher}: expected {EXPECTED}; {type(error).__name__}: {error}") from error
    try:
        made = make()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"--teacher {teacher}: `{model}` fails; {type(error).__name__}: {error}. Expected {OWN}."
        ) from error
    labeller = _labeller_from(made)
    if labeller is None:
        kind = f"the class {made.__name__}, no instance" if isinstance(made, type) else type(made).__name__
        raise ValueError(f"--teacher {teacher}: `{model}` returned {kind}. Expected {OWN}.")
    labeller.identity = {"source": _source_digest(make), **labeller.identity}
    return labeller


def _of_framework(teacher: str, framework: str, model: str, device: Optional[str]) -> Labeller:
    """The teacher of one of `FRAMEWORKS`."""
    from packaging.requirements import Requirement

    package, example = FRAMEWORKS[framework]
    if not model:
        raise ValueError(f"--teacher {teacher}: expected a model, for example {example}.")
    needed = Requirement(package)
    installed = _version(needed.name)
    if installed is not None and not needed.specifier.contains(installed, prereleases=True):
        raise ValueError(
            f"--teacher {teacher}: {needed.name} {installed} is installed here, which is too old. Run it where `{package}` "
            "is installed; where pip finds none, the environment's Python is too old for it."
        )
    try:
        labeller = importlib.import_module(f"{__package__}.frameworks.{framework}").load(model, device)
    except ModuleNotFoundError as error:
        raise ValueError(f"--teacher {teacher}: {error}. Run it where `{package}` is installed.") from error
    except Exception as error:  # a framework raises anything
        raise ValueError(f"--teacher {teacher}: {type(error).__name__}: {error}") from error
    labeller.identity = {needed.name: installed, **labeller.identity}
    return labeller


def _labeller_from(made: Any) -> Optional[Labeller]:
    """The teacher that a function of the user's returned; None for what is none."""
    if isinstance(made, Labeller):
        return made
    if isinstance(made, type):
        return None
    if is_calculator(made):
        return CalculatorLabeller(made)
    return FunctionLabeller(made) if callable(made) else None


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source_digest(part: Any) -> str:
    """Of the file that defines a class or function; of its name where it has none."""
    try:
        source = Path(inspect.getsourcefile(part) or "").read_bytes()
    except (TypeError, OSError):
        source = repr(part).partition(" at 0x")[0].encode()
    return hashlib.sha256(source).hexdigest()
