"""Labels from a teacher cache, for data that are read without a training step: validation, and what is fitted to labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, Labels
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import CacheError, TeacherCache
from fairchem_crack.teacher.cached import SAMPLE, difference_of_teachers, open_cache, record_of


class TeacherLabels(Dataset):
    """A dataset of fairchem, its labels replaced by those of a teacher cache: all of them, or those that are missing.

    Args:
        dataset: its systems may lack labels.
        names: of the outputs, by property: `keys.ENERGY`, `keys.FORCES`.
        where: of the dataset in the config, for messages.
        labels: `teacher` or `fill`, see `task.distill.labels`.

    Raises:
        CacheError: the cache lacks a label; or, when a system is read, its record.
    """

    def __init__(self, dataset: Dataset, cache: TeacherCache, names: Mapping[str, str], where: str, labels: Labels) -> None:
        self.dataset, self.cache, self.where, self.labels = OptionalLabels(dataset, names), cache, where, labels
        lacking = [property_ for property_ in names if property_ not in cache.plan.fields]
        if lacking:
            raise CacheError(
                f"Teacher cache {cache.directory} holds {', '.join(cache.plan.fields)}, and no {', '.join(lacking)}, which "
                f"would be labels of {where}. Write another cache, or train on the labels of the data."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Data:
        """System `index`, its labels in float32."""
        system = self.dataset[index]
        names = {
            property_: name
            for property_, name in self.dataset.names.items()
            if self.labels == "teacher" or bool(system[name].isnan().any())
        }
        record = record_of(self.cache, system, int(index), self.where, self.dataset, names) if names else None
        for property_, name in names.items():
            assert record is not None
            label = torch.tensor(record.values[property_], dtype=torch.float32)
            system[name] = label.view(-1) if property_ == keys.ENERGY else label
        return system


def validation_labels(config: DistillConfig, dataset: Dataset, names: Mapping[str, str]) -> TeacherLabels:
    """The validation data with labels of `task.distill.teacher.val_cache`.

    Args:
        names: of the outputs, by property.

    Raises:
        CacheError: the cache cannot be used, is of another teacher than the training's, or of other data.
    """
    given = config.teacher
    checkpoint = given.checkpoint if given.cache is None else None  # the two caches are compared with each other
    cache = open_cache(replace(given, cache=given.val_cache, checkpoint=checkpoint), torch.device("cpu"))
    difference = "" if given.cache is None else difference_of_teachers(cache, TeacherCache(Path(given.cache)))
    if difference:
        raise CacheError(
            f"Teacher cache {given.val_cache} (val_cache) was made by another teacher than {given.cache} (cache): "
            f"{difference}. Give two caches of one teacher."
        )
    labelled = TeacherLabels(dataset, cache, names, "dataset.val", config.labels)
    for index in evenly_spaced(len(labelled), SAMPLE):
        _ = labelled[index]
    return labelled
