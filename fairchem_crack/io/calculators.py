"""ASE calculators by their names on a command line, and what they compute."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import get_calculator_class

from fairchem_crack.io.arguments import CALCULATOR


def calculator_of(name: str) -> Any:
    """The ASE calculator that a `--calculator` option names: by ASE's name of it, or as `package.module:function`.

    The function may be a class, an attribute of one (`module:Class.method`), or a calculator that is already made.

    Raises:
        ValueError: there is none; the message begins with `--calculator`.
    """
    module, colon, attribute = name.partition(":")
    calculator: Any
    try:
        if colon:
            calculator = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        else:
            calculator = get_calculator_class(name)
        # a class has the methods of a calculator, too
        if isinstance(calculator, type) or not is_calculator(calculator):
            calculator = calculator()
    except (Exception, SystemExit) as error:  # what it runs is the user's, and raises what it likes
        raise ValueError(f"--calculator {name}: expected {CALCULATOR}; {type(error).__name__}: {error}") from error
    if not is_calculator(calculator):
        raise ValueError(
            f"--calculator {name}: expected {CALCULATOR}; it returned {type(calculator).__name__}, which has no "
            "get_potential_energy and get_forces."
        )
    return calculator


def is_calculator(value: Any) -> bool:
    """Whether it has the two methods of ASE's calculators that are called here."""
    return all(callable(getattr(value, name, None)) for name in ("get_potential_energy", "get_forces"))


def energy_and_forces(calculator: Any, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Energy () in eV and forces (N, 3) in eV/A of a calculator; a constraint changes neither.

    Raises:
        ValueError: they are not that many finite numbers.
        Exception: of any kind, the calculator's own.
    """
    atoms = atoms.copy()
    atoms.set_constraint()
    atoms.calc = calculator
    energy = np.array(atoms.get_potential_energy(), dtype=np.float64)  # None becomes NaN
    energy = energy.reshape(()) if energy.size == 1 else energy
    forces = np.array(atoms.get_forces(), dtype=np.float64)  # a copy: some calculators write to the same array again
    for name, value, shape in (("energy", energy, ()), ("forces", forces, (len(atoms), 3))):
        if value.shape != shape:
            raise ValueError(f"{name} of shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} not finite")
    return energy, forces
