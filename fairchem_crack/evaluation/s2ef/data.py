"""Labelled data to evaluate models on: their format, and the options with which fairchem reads them.

All models of an evaluation are compared with the same labels: data are read as the first model's training read data of their
format, where it did, and else as OC20's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

import yaml

from fairchem_crack import keys
from fairchem_crack.io.arguments import named_values
from fairchem_crack.training.config_checks import ASE_SUFFIXES

FORMATS: dict[str, dict[str, Any]] = {  # what a dataset of a format needs where no training says it
    "lmdb": {"key_mapping": {"y": keys.ENERGY, "force": keys.FORCES}},
    "ase_db": {"a2g_args": {"r_energy": True, "r_forces": True}},
}
# Options of a dataset that choose among its own systems: they are not those of another `src`.
SELECTING = ("src", "splits", "first_n", "sample_n", "no_shuffle", "subset_to", "max_atoms", "metadata_path")
SPLIT_SETTINGS = tuple(f"{split}_split_settings" for split in ("train", "val", "test"))
# Of a training, and not of the data: the transforms are normalizers, which a checkpoint holds, or decompose other labels.
NOT_OF_THE_DATA = ("use_train_settings", "transforms", *SPLIT_SETTINGS)


def validation_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """fairchem's options of the validation data of a training, from its checkpoint's config; empty where it has none."""
    train, val = (config.get(name) for name in ("dataset", "val_dataset"))
    train, val = (options if isinstance(options, dict) else {} for options in (train, val))
    return {**(train if val.get("use_train_settings", True) else {}), **val}


def as_labelled(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Options of a dataset, changed so that its systems have `energy` and `forces`, whatever else a training read.

    Args:
        names: of each property that is evaluated, the name of the output that the labels are called by.
    """
    read = {name: value for name, value in options.items() if name not in NOT_OF_THE_DATA}
    properties = {name: prop for prop, name in names.items()}
    if read.get("key_mapping"):
        read["key_mapping"] = {old: _renamed(new, properties) for old, new in read["key_mapping"].items()}
    if _is_ase(read.get("format", "lmdb")):
        given = {name: value for name, value in (read.get("a2g_args") or {}).items() if name != "r_stress"}
        read["a2g_args"] = {**given, "r_energy": True, "r_forces": True}
    return read


def _renamed(new: Any, properties: Mapping[str, str]) -> Any:
    if isinstance(new, str):
        return properties.get(new, new)
    return list(dict.fromkeys(properties.get(name, name) for name in new))


def without_labels(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options for data that are only predicted."""
    if not _is_ase(options.get("format", "lmdb")):
        return dict(options)
    return {**options, "a2g_args": {**(options.get("a2g_args") or {}), "r_energy": False, "r_forces": False}}


def options_for(
    paths: Iterable[Path],
    trained: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    data_format: Optional[str] = None,
    given: Optional[Mapping[str, Any]] = None,
) -> dict[str, Any]:
    """fairchem's options, all but `src`, of datasets at these paths.

    Args:
        trained: the `validation_options` of a training, which are taken where its data are of this format.
        names: see `as_labelled`.
        data_format: instead of what the paths' names say.
        given: options that replace the others.

    Raises:
        ValueError: they are of several formats.
    """
    given = dict(given or {})
    data_format = given.pop("format", data_format)
    trained_format = trained.get("format", "lmdb") if trained else None
    formats = {data_format or format_of(path, trained_format) for path in paths}
    if len(formats) > 1:
        listed = ", ".join(map(str, paths))
        raise ValueError(f"{listed}: expected one format, found {', '.join(sorted(formats))}. Give it with --format.")
    chosen = formats.pop()
    options: dict[str, Any] = {"format": chosen, **FORMATS.get(chosen, {})}
    if chosen == trained_format:
        options.update({name: value for name, value in trained.items() if name not in SELECTING and value is not None})
    return {**as_labelled(options, names), **given}


def format_of(path: Path, trained: Optional[str] = None) -> str:
    """The format of the data at a path: by the names of its files; a training's where that reads such files.

    Args:
        trained: the format of a training's data.
    """
    files = [path] if path.suffix else list(path.glob("*")) if path.is_dir() else [path]
    if any(file.suffix in ASE_SUFFIXES for file in files):
        return "ase_db"
    if trained is not None and trained != "ase_db" and _is_ase(trained) is not any(file.suffix == ".lmdb" for file in files):
        return trained
    return "lmdb"


def _is_ase(data_format: str) -> bool:
    return data_format.startswith("ase_")


def given_options(entries: Iterable[str]) -> dict[str, Any]:
    """`OPTION=VALUE` entries of `--dataset`, the values as YAML.

    Raises:
        ValueError: an entry of another form.
    """
    named = named_values(entries, "--dataset", "OPTION=VALUE, for example key_mapping='{y: energy}'")
    try:
        return {name: yaml.safe_load(value) for name, value in named.items()}
    except yaml.YAMLError as error:
        raise ValueError(f"--dataset: a value is not valid YAML: {error}") from error
