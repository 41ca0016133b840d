"""What checkpoints are called in tables and pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

BEST, LAST = "best_checkpoint.pt", "checkpoint.pt"  # of a run, in a directory of its name


def short_names(checkpoints: Sequence[Path], taken: Collection[str] = ()) -> dict[Path, str]:
    """The shortest unique name of each checkpoint: its run, or else its file, after the directories that tell it apart.

    Args:
        checkpoints: different files.
        taken: names that are in use.
    """
    paths = [path.absolute() for path in checkpoints]
    runs = [path.parent if path.name in (BEST, LAST) else path.with_suffix("") for path in paths]
    if len({*runs}) < len(paths):
        runs = paths  # two files of a run, or files that differ in their suffix only
    names: list[str] = []
    for depth in range(1, max((len(path.parts) for path in runs), default=1)):
        names = ["/".join(path.parts[-depth:]) for path in runs]
        if len({*names, *taken}) == len(names) + len({*taken}):
            break
    return dict(zip(checkpoints, names))
