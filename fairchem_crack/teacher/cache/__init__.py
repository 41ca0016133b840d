"""The teacher cache: a teacher's outputs for every system of a dataset, on disk.

A cache is a directory of LMDB shards and two JSON files. `plan.json`, written first, says whose it is; `header.json`,
written when every system is there, repeats it and lists the shards. A shard maps the number of a chunk (8 bytes, big
endian) to the records of `chunk` consecutive systems, written in one transaction: a chunk is there whole or not at all.
docs/cache.md has the bytes. `CacheWriter` and `finish` fill a cache from any source of embeddings, energies and forces.
"""

from fairchem_crack.teacher.cache.reader import HEADER, PLAN, TeacherCache
from fairchem_crack.teacher.cache.records import FIELDS, FORMAT, CacheError, Plan, Record, decode, encode, system_digest
from fairchem_crack.teacher.cache.shards import written_chunks
from fairchem_crack.teacher.cache.writer import CacheWriter, finish, start

__all__ = [
    "FIELDS",
    "FORMAT",
    "HEADER",
    "PLAN",
    "CacheError",
    "CacheWriter",
    "Plan",
    "Record",
    "TeacherCache",
    "decode",
    "encode",
    "finish",
    "start",
    "system_digest",
    "written_chunks",
]
