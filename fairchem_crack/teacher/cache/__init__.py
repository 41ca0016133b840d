"""The teacher cache: a teacher's outputs for every system of a dataset, on disk.

A cache is a directory. `plan.json`, written first, says what decides its records. Each writer appends to a shard: records
one after another, and a row for each that says where it lies. `index` has all rows by the digest of their system, and
`header.json`, written last, the sizes of all files: from then on the cache can be read. docs/cache.md has the bytes.
It takes numpy only, and any source of energies, forces and embeddings fills it: `CacheWriter`, `finish`.
"""

from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.finish import finish
from fairchem_crack.teacher.cache.lock import only_writer
from fairchem_crack.teacher.cache.reader import TeacherCache
from fairchem_crack.teacher.cache.records import (
    FIELDS,
    FORMAT,
    PAIRS,
    RESPONSE_STEP,
    CacheError,
    Plan,
    Record,
    empty_record,
    encode,
    system_digest,
)
from fairchem_crack.teacher.cache.repair import repair
from fairchem_crack.teacher.cache.schema import HEADER, PLAN, read_plan
from fairchem_crack.teacher.cache.shards import written_chunks
from fairchem_crack.teacher.cache.sums import LOST, Sums
from fairchem_crack.teacher.cache.writer import CacheWriter, differences, start

__all__ = [
    "FIELDS",
    "FORMAT",
    "HEADER",
    "LOST",
    "PAIRS",
    "PLAN",
    "RESPONSE_STEP",
    "CacheError",
    "CacheWriter",
    "Plan",
    "Record",
    "Sums",
    "TeacherCache",
    "differences",
    "empty_record",
    "encode",
    "explained",
    "finish",
    "only_writer",
    "read_plan",
    "repair",
    "start",
    "system_digest",
    "written_chunks",
]
