"""What is made so far, kept whatever becomes of the process: an LMDB, one transaction for each parent."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, TypeVar

import lmdb

from fairchem_crack.generate.unit import Drawn, Kept, Unit

MAP_SIZE = 1 << 40  # upper limit in bytes; the file grows with its content

Self = TypeVar("Self", bound="_Store")
Place = tuple[int, int]  # number of the parent, and of the system among those kept of it


class _Store:
    """An LMDB of pickles. Several processes may write at the same time."""

    file = ""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._environment = lmdb.open(str(directory / self.file), subdir=False, map_size=MAP_SIZE)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._environment.close()

    def done(self, number: int) -> bool:
        """Whether parent `number` is done."""
        return self._get(_key((number, None))) is not None

    def _get(self, key: bytes) -> Optional[bytes]:
        with self._environment.begin() as transaction:
            return transaction.get(key)

    def _read(self, place: tuple[int, Optional[int]]) -> Any:
        value = self._get(_key(place))
        assert value is not None, place
        return pickle.loads(value)


class Drawings(_Store):
    """What is drawn so far, and not yet labelled."""

    file = "drawn.lmdb"

    def put(self, number: int, drawn: Drawn) -> None:
        """Keep what is drawn of parent `number`."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(_key((number, None)), pickle.dumps(drawn, protocol=4))

    def __getitem__(self, number: int) -> Drawn:
        return self._read((number, None))


class Staging(_Store):
    """The systems made so far."""

    file = "systems.lmdb"

    def put(self, number: int, unit: Unit) -> None:
        """Keep what parent `number` has led to, all or nothing; when this returns, it is on disk."""
        with self._environment.begin(write=True) as transaction:
            for position, kept in enumerate(unit.kept):
                transaction.put(_key((number, position)), pickle.dumps(kept, protocol=4))
            strategies = [kept.row["strategy"] for kept in unit.kept]
            transaction.put(_key((number, None)), pickle.dumps((strategies, unit.thrown_out), protocol=4))

    def strategies(self, parents: int) -> dict[Place, str]:
        """Of all systems within the limits, in the order of the dataset: by parent, then by copy."""
        return {
            (number, position): strategy
            for number in range(parents)
            for position, strategy in enumerate(self._head(number)[0])
        }

    def thrown_out(self, parents: int) -> Counter[tuple[str, str]]:
        """How many systems, by strategy and reason."""
        return sum((self._head(number)[1] for number in range(parents)), Counter())

    def __getitem__(self, place: Place) -> Kept:
        return self._read(place)

    def _head(self, number: int) -> tuple[list[str], Counter[tuple[str, str]]]:
        return self._read((number, None))


class Systems(Sequence[Kept]):
    """Some of the systems of a staging, in the order of a dataset; each is read when it is needed."""

    def __init__(self, staging: Staging, places: Sequence[Place]) -> None:
        self._staging, self._places = staging, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._staging[self._places[index]]


def _key(place: tuple[int, Optional[int]]) -> bytes:
    number, position = place
    return f"{number}".encode() if position is None else f"{number}.{position}".encode()
