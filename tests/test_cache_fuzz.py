"""Teacher caches with forged texts, rows and records: refused or as written, in little memory; never another exception."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import RECORDS, make_plan, make_records, write_cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairchem_crack.teacher.cache import HEADER, PLAN, CacheError, TeacherCache, encode, finish
from fairchem_crack.teacher.cache.index import HEAD, INDEX_FILE, PAGE, ROW, row_of
from fairchem_crack.teacher.cache.records import decode
from fairchem_crack.teacher.cache.schema import OF_HEADER, OF_PLAN, digest_of
from fairchem_crack.teacher.cache.shards import mark_of

CASES = int(os.environ.get("FUZZ_CASES", "100"))  # of each test; 2500 are 10 000 in all
fuzzed = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)

PLAN_OF_THEM = make_plan(5)
WRITTEN = make_records(PLAN_OF_THEM)
whole_numbers = st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 1, 2, 5, 8, 48, 10**10, 1 << 31, 1 << 63])
words = st.text(max_size=12) | st.sampled_from(["float16", "object", "../../etc/passwd", RECORDS, "energy", "pairs"])
atoms_of_json = st.none() | st.booleans() | whole_numbers | st.floats() | words
values = st.recursive(atoms_of_json, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The files of a whole cache."""
    with tempfile.TemporaryDirectory() as place:
        directory = write_cache(Path(place) / "cache", PLAN_OF_THEM, WRITTEN).directory
        return {file.name: file.read_bytes() for file in directory.iterdir()}


def outcome(files: dict[str, bytes]) -> int:
    """How many of the records a cache of these files gives, each of which is as it was written, or 0 where it is refused."""
    with tempfile.TemporaryDirectory() as place:
        directory, read = Path(place), 0
        for name, content in files.items():
            (directory / name).write_bytes(content)
        try:
            cache = TeacherCache(directory)
        except CacheError:
            return 0
        for record in WRITTEN:
            for names in (None, ["forces", "pairs"]):
                try:
                    held = cache.get(record.digest, names)
                except CacheError:
                    continue
                if held is not None:
                    read += 1
                    assert held.digest == record.digest and held.atoms == record.atoms
                    assert np.array_equal(held.values["forces"], record.values["forces"].astype("<f4"))
                    assert np.array_equal(held.pairs, record.pairs)
        return read


def sealed(header: dict[str, Any]) -> bytes:
    """With the digest that fits."""
    header = {name: value for name, value in header.items() if name != "digest"}
    return json.dumps({**header, "digest": digest_of(json.dumps(header, sort_keys=True).encode())}).encode()


def test_what_is_not_altered_is_read(files):
    assert outcome(files) == 2 * len(WRITTEN)


@fuzzed
@given(name=st.sampled_from([*OF_HEADER, "other"]), value=values)
def test_forged_headers(files, name, value):
    """Of which all but one entry is right, with a digest that fits."""
    outcome({**files, HEADER: sealed({**json.loads(files[HEADER]), name: value})})


@fuzzed
@given(name=st.sampled_from([*OF_PLAN, "other"]), value=values)
def test_forged_plans(files, name, value):
    """With a header, shards and an index that belong to them: only the plan is wrong."""
    plan = json.dumps({**json.loads(files[PLAN]), name: value}).encode()
    forged = {**files, PLAN: plan, HEADER: sealed({**json.loads(files[HEADER]), "plan": digest_of(plan)})}
    for file, kind in ((RECORDS, b"crackrec"), (INDEX_FILE, b"crackidx")):
        forged[file] = HEAD.pack(kind, mark_of(plan, file)) + files[file][HEAD.size :]
    if name not in ("dtype", "width", "fields"):  # which say what the bytes mean
        outcome(forged)


@fuzzed
@given(
    field=st.sampled_from(["position", "offset", "length", "atoms", "shard"]),
    value=st.integers(0, (1 << 64) - 1) | st.integers(0, 4000),
    row=st.integers(0, len(WRITTEN) - 1),
)
def test_forged_rows(files, field, value, row):
    """With a checksum that fits."""
    index = bytearray(files[INDEX_FILE])
    rows = np.frombuffer(index, ROW, len(WRITTEN), PAGE)
    rows[row][field] = value & ((1 << 8 * ROW[field].itemsize) - 1)
    begin = PAGE + row * ROW.itemsize
    index[begin + 44 : begin + 48] = zlib.crc32(index[begin : begin + 44]).to_bytes(4, "little")
    assert row_of(bytes(index[begin : begin + 48])) is not None
    outcome({**files, INDEX_FILE: bytes(index)})


@fuzzed
@given(data=st.data())
def test_altered_bytes(files, data):
    """Anywhere, also taken out or put in."""
    name = data.draw(st.sampled_from([RECORDS, INDEX_FILE, HEADER, PLAN, "shard.0000.rows"]))
    content = files[name]
    begin = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(begin, min(begin + 40, len(content))))
    altered = {**files, name: content[:begin] + data.draw(st.binary(max_size=40)) + content[end:]}
    outcome(altered)
    with tempfile.TemporaryDirectory() as place:
        for file, written in altered.items():
            if file not in (HEADER, INDEX_FILE):
                (Path(place) / file).write_bytes(written)
        try:
            finish(Path(place))
        except CacheError:
            return
        assert len(TeacherCache(Path(place))) == len(WRITTEN)


@fuzzed
@given(atoms=st.integers(0, 12), data=st.binary(max_size=300), pair=st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_forged_records(files, atoms, data, pair):
    """Any bytes; and a record whose checksums fit, and whose pairs are of atoms that the system may not have."""
    with pytest.raises(ValueError, match=r"is damaged|bytes, which"):
        decode(lambda begin, end: data[begin:end], PLAN_OF_THEM, atoms, len(data))
    record = WRITTEN[0]
    content = bytearray(encode(record, PLAN_OF_THEM))
    at = len(content) - 2 * record.pairs.shape[1]
    content[at], content[at + record.pairs.shape[1]] = pair
    head = 24 + 4 * len(PLAN_OF_THEM.parts)
    content[head - 4 : head] = zlib.crc32(content[at:]).to_bytes(4, "little")
    content[head : head + 4] = zlib.crc32(content[:head]).to_bytes(4, "little")
    read = bytes(content)
    try:
        pairs = decode(lambda begin, end: read[begin:end], PLAN_OF_THEM, record.atoms, len(read)).pairs
    except ValueError:
        assert not 0 <= pair[0] < pair[1] < record.atoms
    else:
        assert tuple(pairs[:, 0]) == pair and 0 <= pair[0] < pair[1] < record.atoms
