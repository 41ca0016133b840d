"""`fairchem-crack generate`: options in, a dataset and its teacher cache out."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_crack.commands.flags import Given, parser_of, read_or_refuse
from fairchem_crack.io.arguments import named_values

if TYPE_CHECKING:
    from fairchem_crack.generate.settings import Settings

STRATEGIES = """strategies, each with the number of systems of every parent:
  rattle=9        free atoms moved by normal random numbers
  displace=3      the adsorbate (tag 2) turned, and put elsewhere on the surface
  strain=2        the cell and all atoms strained
  relax=4         frames of a relaxation of the rattled parent
  md=4            frames of Langevin dynamics
  displace+rattle=3, strain+md=4: one after the other; relax and md can only be the last"""


# fairchem's options that hold for the parents only: which of them, whose metadata, by what their energies are shifted. The
# values have no effect; fairchem does not take None for all of them.
OF_PARENTS: dict[str, Any] = {
    **dict.fromkeys(("first_n", "sample_n", "max_atoms", "metadata_path", "lin_ref", "connect_args", "select_args")),
    **{"subset_to": [], "shard": 0, "total_shards": 1},
}
ABSENT: dict[str, Any] = {"atoms_transform_args": {}}  # what fairchem takes for an option that is absent, where not None
TRAIN_SETTINGS = "train_split_settings"


def parser() -> argparse.ArgumentParser:
    """fairchem's flags, and those of the command."""
    own = parser_of("generate", "New systems from those of dataset.train, labelled by the teacher, and their teacher cache.")
    own.formatter_class, own.epilog = argparse.RawDescriptionHelpFormatter, STRATEGIES
    own.add_argument("--output", type=Path, required=True, help="directory of data, cache and manifest")
    made = own.add_argument_group("systems")
    made.add_argument("--strategies", nargs="+", default=["rattle=9"], metavar="NAME=N", help="see below (rattle=9)")
    made.add_argument(
        "--sigma", nargs=2, type=float, default=(0.02, 0.12), metavar="A", help="of rattle, a range (0.02 0.12)"
    )
    made.add_argument("--temperature", type=float, default=500.0, metavar="K", help="of md (500)")
    made.add_argument("--every", type=int, default=10, metavar="N", help="steps between two frames of md and relax (10)")
    made.add_argument("--strain", type=float, default=0.01, help="standard deviation of a strain's entries (0.01)")
    made.add_argument(
        "--with", dest="checkpoint", metavar="CHECKPOINT", help="moves the atoms of md and relax (the teacher)"
    )
    made.add_argument("--without-parents", action="store_true", help="leave the systems of dataset.train out")
    made.add_argument(
        "--format", dest="output_format", default="lmdb", choices=["lmdb", "ase_db"], help="of the data (lmdb)"
    )
    selection = own.add_argument_group("selection").add_mutually_exclusive_group()
    selection.add_argument(
        "--select", type=int, metavar="N", help="keep the N systems that add most, by the teacher's embeddings"
    )
    selection.add_argument("--select-random", type=int, metavar="N", help="keep N systems at random")
    limits = own.add_argument_group("what is thrown out")
    limits.add_argument("--min-distance", type=float, default=0.6, help="of two atoms, in sums of covalent radii (0.6)")
    limits.add_argument("--max-force", type=float, default=20.0, help="eV/A, the teacher's on a free atom (20)")
    limits.add_argument("--max-energy-change", type=float, default=20.0, help="eV, the teacher's, from the parent's (20)")
    limits.add_argument("--max-gap", type=float, metavar="A", help="from the adsorbate to the nearest atom (no limit)")
    cache = own.add_argument_group("the teacher cache, as cache-teacher has it")
    cache.add_argument("--dtype", default="float16", choices=["float16", "float32"], help="of the embeddings (float16)")
    cache.add_argument("--chunk", type=int, default=16, help="systems in a teacher's batch, of one parent (16)")
    cache.add_argument("--vectors", action="store_true", help="keep the l=1 embedding, even where no term reads it")
    cache.add_argument("--all-degrees", action="store_true", help="keep the embeddings of all degrees l, likewise")
    cache.add_argument("--embedding-response", action="store_true", help="keep what embedding_response reads, likewise")
    cache.add_argument("--force-response", action="store_true", help="keep what force_response reads, likewise")
    cache.add_argument("--jacobian-rows", type=int, metavar="N", help="rows of the Jacobian of the forces")
    own.set_defaults(calculator=None, split="train")
    return own


def generate(arguments: list[str]) -> None:
    """Write a dataset and its teacher cache."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = read_or_refuse(parser(), arguments)
    from fairchem_crack.commands.cache_teacher.command import job_of
    from fairchem_crack.generate.counts import describe
    from fairchem_crack.generate.job import generate as make

    keep_order(given.config)
    summary = make(job_of(given, runs_commands=True), settings_of(given), given.flags.output, ranks=given.flags.num_gpus)
    kept = ", ".join(f"{count} {strategy}" for strategy, count in summary.kept.items())
    print(f"{summary.systems} systems of {summary.parents} parents: {kept}.")
    print(f"Thrown out: {describe(summary.thrown_out) or 'none'}.")
    print(yaml_of(given.config["dataset"], summary.dataset, given.flags.output / "cache"))


def keep_order(config: dict[str, Any]) -> None:
    """Have the parents read in the order of their files, unless options choose among them.

    By the settings of this split only: the others, which may choose among their own systems, take the options of `train`.

    Raises:
        ValueError: the config has no `dataset.train`.
    """
    from fairchem_crack.io.datasets import CHOOSING

    datasets = config.get("dataset")
    options = datasets.get("train") if isinstance(datasets, dict) else None
    if not isinstance(options, dict):
        raise ValueError("dataset.train: missing; it holds the systems from which others are made.")
    own = options.get(TRAIN_SETTINGS) or {}
    if not CHOOSING & {*options, *own}:
        options[TRAIN_SETTINGS] = {**own, "no_shuffle": True}


def settings_of(given: Given) -> Settings:
    """What of the flags decides the systems."""
    from fairchem_crack.generate.settings import Settings

    flags = given.flags
    values: dict[str, Any] = {
        field.name: getattr(flags, field.name) for field in fields(Settings) if hasattr(flags, field.name)
    }
    values |= {
        "strategies": counts_of(flags.strategies),
        "with_parents": not flags.without_parents,
        "sigma": tuple(flags.sigma),
    }
    return Settings(**values)


def counts_of(entries: list[str]) -> dict[str, int]:
    """`NAME=N` entries.

    Raises:
        ValueError: an entry of another form.
    """
    form = "NAME=N, for example rattle=9"
    counts = {}
    for name, count in named_values(entries, "--strategies", form).items():
        if not count.isdecimal():
            raise ValueError(f"--strategies {name}={count}: expected {form}.")
        counts[name] = int(count)
    return counts


def yaml_of(before: dict[str, Any], train: dict[str, Any], cache: Path) -> str:
    """What a training's YAML needs, to be laid over the one that was given.

    It takes back what chooses among the parents, or shifts their energies once more. fairchem reads every split by the
    options of `train` where it has none of its own: the other splits keep those of before.
    """
    import yaml

    were = {"format": "lmdb", **before["train"]}  # fairchem's default
    options = {name: value for name, value in train.items() if name != "transforms"}
    options |= {name: value for name, value in OF_PARENTS.items() if name in were}
    differing = (name for name, value in options.items() if name != "src" and value != were.get(name))
    changed = {name: were.get(name, ABSENT.get(name)) for name in differing}
    if chosen := {name: OF_PARENTS[name] for name in were.get(TRAIN_SETTINGS) or () if name in OF_PARENTS}:
        options[TRAIN_SETTINGS] = chosen
    datasets: dict[str, Any] = {"train": options}
    for split, own in before.items():
        takes_those = split != "train" and isinstance(own, dict) and own.get("src") and own.get("use_train_settings", True)
        kept = {name: value for name, value in changed.items() if name not in own} if takes_those else {}
        if kept:
            datasets[split] = kept
    content = {"dataset": datasets, "task": {"distill": {"labels": "teacher", "teacher": {"cache": str(cache)}}}}
    return "Train with\n\n" + yaml.safe_dump(content, sort_keys=False)
