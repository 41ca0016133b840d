"""Write the demo's splits as OC20-format LMDBs: `fairchem-crack prepare-demo`."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
from ase import Atoms
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack.demo.systems import ADSORBATES, HELD_OUT_ADSORBATES, catalysts, draw_system
from fairchem_crack.io.processes import end_with_parent

# name -> (number that seeds it, adsorbates never trained on?, catalysts never trained on?)
SPLITS = {
    "train": (0, False, False),
    "val_id": (1, False, False),
    "val_ood_ads": (2, True, False),
    "val_ood_cat": (3, False, True),
    "val_ood_both": (4, True, True),
}
DATA_FILE, METADATA_FILE, MANIFEST_FILE = "data.0000.lmdb", "metadata.npz", "manifest.json"
MAP_SIZE = 1 << 36  # upper limit of the LMDB in bytes; the file grows with its content
CHUNK = 100  # systems between two commits: what an interruption can cost


@dataclass(frozen=True)
class Manifest:
    """What a split was made from; two splits with equal manifests hold the same systems."""

    split: str
    systems: int
    seed: int
    version: int = 1  # of fairchem_crack.demo.systems: raise it when the drawn systems change


def prepare_demo(directory: Path, *, sizes: dict[str, int], seed: int, workers: int) -> None:
    """Write `sizes[split]` systems of each split to `directory/split`.

    A split is written beside its final place and renamed when complete. A complete split with the same manifest is kept;
    an interrupted one resumes where it stopped; a different one is refused.

    Raises:
        ValueError: the directory holds splits of another seed or size.
    """
    manifests = [Manifest(split, systems, seed) for split, systems in sizes.items() if systems]
    pending = [manifest for manifest in manifests if not _is_complete(directory, manifest)]
    if not pending:
        logging.info(f"{directory} is complete: {', '.join(f'{m.split} {m.systems}' for m in manifests)} systems.")
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        for manifest in pending:
            _write_split(directory, manifest, pool)


def _is_complete(directory: Path, manifest: Manifest) -> bool:
    file = directory / manifest.split / MANIFEST_FILE
    if not file.exists():
        return False
    made = json.loads(file.read_text())
    if made != asdict(manifest):
        raise ValueError(
            f"{file.parent} was made with {made}, not with {asdict(manifest)}. "
            f"Choose another directory, or remove {file.parent} to make it anew."
        )
    return True


def _write_split(directory: Path, manifest: Manifest, pool: ProcessPoolExecutor) -> None:
    partial_directory = directory / f".{manifest.split}.partial"
    partial_directory.mkdir(parents=True, exist_ok=True)
    manifest_file = partial_directory / MANIFEST_FILE
    if manifest_file.exists() and json.loads(manifest_file.read_text()) != asdict(manifest):
        (partial_directory / DATA_FILE).unlink(missing_ok=True)
    manifest_file.write_text(json.dumps(asdict(manifest)))

    environment = lmdb.open(str(partial_directory / DATA_FILE), map_size=MAP_SIZE, subdir=False, lock=False)
    done = environment.stat()["entries"]
    make = partial(_make_record, manifest.split, manifest.seed)
    with tqdm(total=manifest.systems, initial=done, desc=f"{manifest.split:>12}", unit=" systems") as progress:
        for start in range(done, manifest.systems, CHUNK):
            indices = range(start, min(start + CHUNK, manifest.systems))
            records = pool.map(make, indices, chunksize=10)
            with environment.begin(write=True) as transaction:
                for index, record in zip(indices, records):
                    transaction.put(str(index).encode(), record)
            progress.update(len(indices))
    with environment.begin(write=True) as transaction:
        stored = (transaction.get(str(index).encode()) for index in range(manifest.systems))
        natoms = [pickle.loads(record).natoms for record in stored if record is not None]
        transaction.put(b"length", pickle.dumps(manifest.systems))
    environment.close()
    np.savez(partial_directory / METADATA_FILE, natoms=np.array(natoms))
    partial_directory.rename(directory / manifest.split)


def _make_record(split: str, seed: int, index: int) -> bytes:
    split_seed, new_adsorbates, new_catalysts = SPLITS[split]
    system = draw_system(
        np.random.default_rng([seed, split_seed, index]),
        catalysts(held_out=new_catalysts),
        HELD_OUT_ADSORBATES if new_adsorbates else ADSORBATES,
    )
    return pickle.dumps(oc20_record(system, sid=index, fid=system.info["frame"]), protocol=-1)


def oc20_record(system: Atoms, *, sid: int, fid: int) -> Data:
    """The record of one system as in OC20's S2EF LMDBs.

    Fields: pos (N, 3) in A, cell (1, 3, 3) in A, atomic_numbers (N,), natoms, tags (N,), fixed (N,), y in eV,
    force (N, 3) in eV/A, sid (trajectory), fid (frame).
    """
    record = AtomsToGraphs(r_energy=True, r_forces=True, r_edges=False, r_fixed=True).convert(system, sid=sid)
    record.y, record.force, record.fid = float(record.energy), record.forces, fid
    del record.energy, record.forces
    return record
