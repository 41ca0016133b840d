"""The one place that opens datasets, by fairchem's own code: a split of a training, or the records of any data."""

from __future__ import annotations

import copy
import gc
from typing import Any

from fairchem.core.common.utils import setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer
from torch.utils.data import Dataset
from torch_geometric.data import Data

SPLITS = ("train", "val", "test", "relax")
VAL_SETTINGS = "val_split_settings"  # which fairchem takes over the options that choose among a dataset's own systems
CHOOSING = {"first_n", "sample_n", "no_shuffle"}  # options that say which systems, or that they are not shuffled


class _Loader(OCPTrainer):
    """The part of fairchem's trainer that reads the options of datasets and opens them."""

    def load(self, inference_only: bool) -> None:
        """Nothing: `load_split` loads one split."""

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> None:
        """None: no sampler is needed."""

    def get_dataloader(self, dataset: Any, sampler: Any, workers: Any = None) -> None:
        """None: no loader is needed."""


def dataset_key(split: str) -> str:
    """Where fairchem's trainer keeps the options of a split."""
    return "dataset" if split == "train" else f"{split}_dataset"


def only_split(config: dict, split: str) -> dict:
    """A trainer's config in which only one split has a source. The training's settings stay: other splits use them."""
    without_source = {name: value for name, value in config["dataset"].items() if name != "src"}
    kept = {**config, **{dataset_key(name): {} for name in SPLITS}, "dataset": without_source}
    return {**kept, dataset_key(split): config[dataset_key(split)]}


def load_split(config: dict, split: str) -> Dataset:
    """The systems of a split, in the order in which a training sees their indices.

    Args:
        config: as of `build_config`; fairchem's trainer reads it, with split settings, transforms and old formats.
        split: of `SPLITS`.

    Raises:
        ValueError: there is no such split, or it has no `src`.
    """
    if split not in SPLITS:
        raise ValueError(f"--split {split}: fairchem's trainer has the splits {', '.join(SPLITS)}.")
    setup_imports()
    task = config.get("task") or {}
    loader = _Loader(
        task=task,
        model=config.get("model") or {},
        outputs=config.get("outputs") or {},
        dataset=config.get("dataset") or {},
        optimizer={"batch_size": 1, **(config.get("optim") or {})},
        # without, fairchem takes a config for one of the old format, which names its data in `task`
        loss_functions=config.get("loss_functions") or ({} if "dataset" in task else [{}]),
        evaluation_metrics=config.get("evaluation_metrics") or {},
        identifier="",
        local_rank=0,
        timestamp_id="dataset",
        is_debug=True,  # writes no files
        logger="none",
        cpu=True,
    )
    if not loader.config[dataset_key(split)].get("src"):
        raise ValueError(f"dataset.{split}.src: missing.")
    loader.config = only_split(loader.config, split)
    loader.load_datasets()
    return getattr(loader, f"{split}_dataset")


def open_dataset(options: dict, split: str = "val") -> Dataset:
    """A dataset by fairchem's options only, `{split}_split_settings` among them; see `load_split`."""
    return load_split({"dataset": {split: {**options, "use_train_settings": False}}, "loss_functions": [{}]}, split)


class Records(Dataset):
    """The records of a dataset, in the order of its files unless the options choose among them; closed with its block.

        with Records({"src": "data/val_id"}) as records:
            first = records[0]

    Args:
        options: fairchem's, of the dataset.
    """

    def __init__(self, options: dict) -> None:
        self._options = copy.deepcopy(options)  # fairchem adds to nested ones
        if not CHOOSING & {*options, *(options.get(VAL_SETTINGS) or {})}:
            self._options["no_shuffle"] = True
        self._dataset: Any = None

    def __enter__(self) -> Records:
        close_unused()
        self._dataset = open_dataset(self._options)
        return self

    def __exit__(self, *_: Any) -> None:
        self._dataset = None
        close_unused()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Data:
        return self._dataset[index]

    def first(self, count: int) -> list[Data]:
        """At most `count` of them."""
        return [self[index] for index in range(min(count, len(self)))]


def close_unused() -> None:
    """Close the LMDBs of the datasets that are no longer used; until then a process cannot open them again.

    fairchem's dataset closes its files when it is collected, and trainers hold it in reference cycles.
    """
    gc.collect()
