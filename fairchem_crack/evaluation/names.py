"""What checkpoints are called in tables and pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

BEST, LAST = "best_checkpoint.pt", "checkpoint.pt"  # of a run, in a directory of its name


def short_names(checkpoints: Sequence[Path], taken: Collection[str] = ()) -> dict[Path, str]:
    """The shortest unique name of each checkpoint: its run, or else its file, with the directories that make it unique.

    Args:
        checkpoints: different files.
        taken: names that are in use.
    """
    paths = [path.absolute() for path in checkpoints]
    runs = [path.parent if path.name in (BEST, LAST) else path.with_suffix("") for path in paths]
    if len({*runs}) < len(paths):
        runs = paths  # two files of a run, or files that differ in their suffix only
    names = {}
    for path, given in zip(runs, checkpoints):
        others = [run.parts for run in runs if run != path] + [(name,) for name in taken]
        depth = 1
        while depth < len(path.parts) and any(parts[-depth:] == path.parts[-depth:] for parts in others):
            depth += 1
        names[given] = "/".join(path.parts[-depth:])
    return names
