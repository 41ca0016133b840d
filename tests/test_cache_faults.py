"""What can happen to a teacher cache: it is refused by a message, or resumed, or repaired; never read wrongly."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from caches import RECORDS, ROWS, content, make_plan, make_record, make_records, read_all, write_cache, write_chunks
from killing import fork, in_fork
from tolerances import SUM_OF_FLOAT64

from fairchem_crack.teacher.cache import (
    FORMAT,
    HEADER,
    PLAN,
    CacheError,
    CacheWriter,
    Plan,
    Record,
    TeacherCache,
    explained,
    finish,
    repair,
    start,
    written_chunks,
)
from fairchem_crack.teacher.cache.index import INDEX_FILE

SAMPLES = Path(__file__).parent / "samples"
SYSTEM_CALLS = ("pwrite", "fdatasync", "fsync", "replace", "ftruncate", "unlink")  # of os: what writing is made of


@pytest.fixture
def cache(tmp_path) -> Path:
    """The directory of a finished cache of ten small systems in three chunks."""
    write_cache(tmp_path / "cache", make_plan(), make_records(make_plan()))
    return tmp_path / "cache"


def refused(directory: Path, message: str) -> None:
    """It is refused when opened, with this message and its name."""
    with pytest.raises(CacheError, match=message) as error:
        TeacherCache(directory)
    assert str(directory) in str(error.value)


def write_missing(directory: Path, plan: Plan, records: list[Record]) -> list[int]:
    """As `cache-teacher` resumes; the chunks that were missing."""
    missing = sorted(set(range(plan.chunks)) - written_chunks(directory, plan))
    writer = CacheWriter(directory, plan)
    try:
        for chunk in missing:
            write_chunks(writer, plan, records, range(chunk, chunk + 1))
    finally:
        writer.close()
    finish(directory, plan)
    return missing


def at_call(number: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do something in the place of the system call of this number; the names of the calls so far."""
    calls: list[str] = []

    def replaced(name: str) -> Callable:
        original = getattr(os, name)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == number + 1:
                action()
            return original(*arguments, **options)

        return call

    for name in SYSTEM_CALLS:
        monkeypatch.setattr(os, name, replaced(name))
    return calls


# ---- two at once


def test_a_shard_has_one_writer_and_no_finish_before_it_is_done(tmp_path):
    plan, records = make_plan(), make_records(make_plan())
    writer = CacheWriter(tmp_path, plan)
    write_chunks(writer, plan, records, range(plan.chunks))
    named = f"{tmp_path}: process {os.getpid()} on {socket.gethostname()} is writing it, and holds shard.0000.lock"
    for attempt in (CacheWriter, finish, repair):
        with pytest.raises(CacheError, match=re.escape(named)):
            attempt(tmp_path, plan)
    writer.close()
    finish(tmp_path, plan)
    assert len(TeacherCache(tmp_path)) == 10 and (tmp_path / "shard.0000.lock").is_file()


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(CacheError, match=r"cannot lock shard.0000.lock \(No locks available\).* another file system"):
        CacheWriter(tmp_path, make_plan())


# ---- killed


def test_a_killed_writer_leaves_whole_chunks(tmp_path):
    """SIGKILL of a writer at random moments, again and again until some chunks are there; then an undisturbed one."""
    plan, records = make_plan(400), make_records(make_plan(400))
    whole = write_cache(tmp_path / "whole", plan, records)
    directory = tmp_path / "killed"
    directory.mkdir()
    moments, before = random.Random(0), 0
    while before < 10:
        pid = fork()
        if pid == 0:
            try:
                writer = CacheWriter(directory, plan)
                for chunk in sorted(set(range(plan.chunks)) - written_chunks(directory, plan)):
                    time.sleep(0.01)
                    write_chunks(writer, plan, records, range(chunk, chunk + 1))
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        written = len(written_chunks(directory, plan))
        assert before <= written < plan.chunks  # which take 10 ms each at least
        before = written
    write_missing(directory, plan, records)
    assert content(directory) == content(tmp_path / "whole")
    killed = TeacherCache(directory)
    np.testing.assert_array_equal(killed.embedding_mean, whole.embedding_mean)
    np.testing.assert_array_equal(killed.embedding_std, whole.embedding_std)
    assert (directory / RECORDS).stat().st_size < 1.1 * (tmp_path / "whole" / RECORDS).stat().st_size


def test_a_constant_channel_stays_constant_after_a_kill(tmp_path, caplog):
    """Its value has no float16; sums of values before and after rounding would differ by more than they vary."""
    plan, records = make_plan(), make_records(make_plan())
    for record in records:
        record.values["node_embedding"][:, 0] = 0.1
    directory = tmp_path / "cache"
    killed = CacheWriter(directory, plan)
    write_chunks(killed, plan, records, range(1))
    killed._open.close()  # without its sums: the next writer reads the records
    writer = CacheWriter(directory, plan)
    write_chunks(writer, plan, records, range(1, 3))
    assert writer.sums.lost_in("float16") == 0
    writer.close()
    finish(directory)
    cache = TeacherCache(directory)
    assert cache.embedding_std[0] < SUM_OF_FLOAT64
    assert cache.embedding_mean[0] == pytest.approx(float(np.float16(0.1)), rel=SUM_OF_FLOAT64)
    assert "float16" not in caplog.text


@pytest.mark.parametrize("step", ["finish", "repair"])
def test_killed_at_each_step_of_finish_and_repair_it_resumes(tmp_path, monkeypatch, step):
    """The cache is unfinished then, or whole; nothing written is lost but the damaged chunk."""
    plan, records = make_plan(), make_records(make_plan())
    write_cache(tmp_path / "whole", plan, records)
    expected, number = content(tmp_path / "whole"), 0
    while True:
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", directory)
        if step == "finish":
            (directory / HEADER).unlink()
        else:
            overwrite(directory / RECORDS, 100, 255)

        def do(directory: Path = directory, number: int = number) -> int:
            with pytest.MonkeyPatch.context() as patch:
                at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
                (finish if step == "finish" else repair)(directory, plan)
            return 0

        outcome = in_fork(do)
        assert outcome in ("exit 0", "signal 9")
        if step == "repair":  # the same command again
            repair(directory, plan)
        assert write_missing(directory, plan, records) in ([], [0])
        assert content(directory) == expected
        if outcome == "exit 0":
            break
        number += 1
    assert number >= 3


# ---- a system that refuses


@pytest.mark.parametrize("number", range(0, 60, 5))
def test_a_full_disk_is_a_message_and_the_same_command_resumes(tmp_path, monkeypatch, number):
    """At system calls of writing and finishing, each of which writes half of what it is given."""
    plan, records, pwrite = make_plan(), make_records(make_plan()), os.pwrite

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a file")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[: len(data) // 2 + 1], at))
        at_call(number, fail, patch)
        with pytest.raises(CacheError, match=f"{tmp_path}: cannot write a file: the disk is full. Make room, and run"):
            write_missing(tmp_path, plan, records)
    write_missing(tmp_path, plan, records)
    write_cache(tmp_path / "whole", plan, records)
    assert content(tmp_path) == content(tmp_path / "whole")


@pytest.mark.parametrize("limit", [20, 700, 1000])
def test_a_limit_of_the_size_of_files(tmp_path, limit):
    """Really: at the first bytes of a file, in its rows, in its records."""
    plan, records = make_plan(), make_records(make_plan())

    def write() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CacheError, match=r"a file may not grow further\. Raise `ulimit -f`"):
            write_missing(tmp_path, plan, records)
        return 0

    assert in_fork(write) == "exit 0"
    write_missing(tmp_path, plan, records)
    assert len(list(TeacherCache(tmp_path).records())) == 10


def test_a_limit_of_address_space_is_no_obstacle(tmp_path):
    """Nothing is mapped: 1 GB on top of what the process has is plenty."""
    plan, records = make_plan(), make_records(make_plan())

    def write() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return int(len(list(write_cache(tmp_path, plan, records).records())) != 10)

    assert in_fork(write) == "exit 0"


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.EROFS, "its file system is read-only"),
        (errno.EACCES, "you may not write there. Give it permission, or another directory by --output"),
        (errno.EDQUOT, "your quota of the disk is used up"),
        (errno.ENOMEM, "there is no memory left. Raise `ulimit -v`"),
        (errno.ENOTDIR, "Not a directory"),
    ],
)
def test_what_the_system_refuses_is_explained(tmp_path, number, message):
    with pytest.raises(CacheError, match=f"{tmp_path}: cannot write .*{message}"), explained(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    with pytest.raises(CacheError, match="Raise `ulimit -v`"), explained(tmp_path):
        raise MemoryError


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError, match=r"cannot write .*cache: .*File exists"):
        CacheWriter(tmp_path / "cache", make_plan())


# ---- other places


@pytest.mark.parametrize("place", ["moved", "linked", "shard linked"])
def test_a_cache_that_lies_elsewhere_is_read(cache, tmp_path, place):
    expected = content(cache)
    if place == "moved":
        cache = cache.rename(tmp_path / "other")
    elif place == "linked":
        (tmp_path / "link").symlink_to(cache)
        cache = tmp_path / "link"
    else:
        (cache / RECORDS).rename(tmp_path / "disk")
        (cache / RECORDS).symlink_to(tmp_path / "disk")
    assert content(cache) == expected
    assert repair(cache, make_plan()) == []
    finish(cache)
    assert content(cache) == expected


def test_a_cache_that_is_moved_while_open_is_read_to_its_end(cache, tmp_path):
    opened = TeacherCache(cache)
    cache.rename(tmp_path / "gone")
    assert len(list(opened.records())) == 10


# ---- damage


def overwrite(file: Path, at: int, flip: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ flip]))


def test_a_damaged_chunk_is_repaired_and_no_other(cache):
    """A training that has the cache open continues."""
    plan, records = make_plan(), make_records(make_plan())
    expected, opened = content(cache), TeacherCache(cache)
    rows = np.fromfile(cache / ROWS, np.dtype("V48"), offset=32)
    overwrite(cache / RECORDS, int.from_bytes(rows[5].tobytes()[24:32], "little") + 60, 4)
    named = "the record of system 5 in shard.0000.records is damaged: the checksum of its .* does not fit. .*--repair"
    with pytest.raises(CacheError, match=f"{cache}: {named}"):
        content(cache)
    assert repair(cache, plan) == [1]
    refused(cache, "is unfinished")
    assert written_chunks(cache, plan) == {0, 2}
    assert opened[records[9].digest].atoms == records[9].atoms
    assert write_missing(cache, plan, records) == [1]
    assert content(cache) == expected
    assert opened[records[9].digest].atoms == records[9].atoms


@pytest.mark.parametrize("name", [RECORDS, INDEX_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "longer", "sparse", "of another cache"])
def test_a_damaged_file_is_refused_and_repaired(cache, tmp_path, name, damage):
    expected, file, size = content(cache), cache / name, (cache / name).stat().st_size
    if damage == "missing":
        file.unlink()
        message = f"lacks {name}"
    elif damage == "of another cache":
        other_cache = write_cache(tmp_path / "other", make_plan(fingerprint="g"), make_records(make_plan()))
        shutil.copy(other_cache.directory / name, file)
        message = f"has a {name} whose head is damaged, or belongs to another cache"
    elif damage == "sparse":  # a hole, as after a copy that went wrong
        os.truncate(file, 40)
        os.truncate(file, size)
        message = "is damaged|has no record"
    else:
        new = {"empty": 0, "cut short": size - 1, "longer": size + 1}[damage]
        os.truncate(file, new)
        message = f"has a {name} of {new} bytes where {size} were written"
    if damage == "sparse":
        assert read_all(cache, expected) == 1
    else:
        refused(cache, message)
    if name == RECORDS and damage in ("missing", "empty", "of another cache"):
        file.unlink(missing_ok=True)
    repair(cache, make_plan())
    write_missing(cache, make_plan(), make_records(make_plan()))
    assert content(cache) == expected


def test_swapped_shards(tmp_path):
    """Of the same size, so that only their heads differ."""
    plan = make_plan(8)
    write_cache(tmp_path, plan, [make_record(np.random.default_rng(seed), 5, plan) for seed in range(8)], shards=2)
    first, second = (tmp_path / f"shard.{number:04d}.records" for number in (0, 1))
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    refused(tmp_path, "has a shard.0000.records whose head is damaged, or belongs to another cache")


def test_records_cut_short_before_the_cache_is_finished(cache):
    """They are not written over: rows that are there would point to others."""
    (cache / HEADER).unlink()
    os.truncate(cache / RECORDS, 300)
    with pytest.raises(CacheError, match=r"shard.0000.records is cut short\. .*--repair"):
        CacheWriter(cache, make_plan())
    assert repair(cache, make_plan()) == [0, 1, 2]


@pytest.mark.parametrize("name", [RECORDS, INDEX_FILE, HEADER, PLAN])
def test_flipped_bits_are_refused_or_harmless(cache, name):
    expected, flips = content(cache), random.Random(0)
    size = min((cache / name).stat().st_size, 8192)
    for _ in range(150):
        at, flip = flips.randrange(size), 1 << flips.randrange(8)
        overwrite(cache / name, at, flip)
        assert read_all(cache, expected) in (0, 1)
        overwrite(cache / name, at, flip)
    assert content(cache) == expected


# ---- forged, and of other versions


def test_no_directory(tmp_path):
    refused(tmp_path / "gone", r"does not exist \(looked in .*cache-teacher --config-yml")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file, no directory")


@pytest.mark.parametrize("name", [HEADER, PLAN])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": "x"}', '{"format": true}', "\0\1", "[" * 9999])
def test_a_damaged_text(cache, name, text):
    (cache / name).write_text(text)
    refused(cache, f"has a damaged {name}")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"systems": 10**10}, "is too small for it|was altered"),
        ({"systems": "10"}, "has systems 10, expected a whole number"),
        ({"systems": True}, "has systems True, expected a whole number"),
        ({"chunk": 0}, "has chunk 0, expected a positive whole number"),
        ({"width": 10**9}, "has width 1000000000, expected a whole number"),
        ({"dtype": "object"}, "has dtype object, expected float16 or float32"),
        ({"fields": ["energy", "energy"]}, "expected some of energy, forces, .*, each once"),
        ({"fields": ["secret"]}, "expected some of energy"),
        ({"graph": {"cutoff": "6"}}, "expected the settings of a graph"),
        ({"graph": {"cutoff": float("nan")}}, "expected the settings of a graph"),
        ({"colour": 1}, "has an unknown entry 'colour'"),
        ({"teacher": None}, "has teacher None, expected text"),
    ],
)
def test_a_forged_plan(cache, change, message):
    """Refused at once, and without the memory that it asks for."""
    plan = json.loads((cache / PLAN).read_text())
    (cache / PLAN).write_text(json.dumps({**plan, **change}))
    refused(cache, message)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shards": {"../../etc/passwd": 10}}, "expected bytes by name"),
        ({"shards": {"shard.0000.records": "10"}}, "expected bytes by name"),
        ({"shards": {"shard.0000.records": -1}}, "expected bytes by name"),
        ({"shards": {}}, "whose row of system [0-9] is of no shard"),
        ({"pages": 0}, "has pages 0, expected a positive whole number"),
        ({"pages": 1 << 31}, "is too small for it"),
        ({"index_bytes": 1 << 50}, f"has a {INDEX_FILE} of .* bytes where {1 << 50} were written"),
        ({"embedding_mean": [1.0]}, "has 1 numbers in embedding_mean for a width of 8"),
        ({"embedding_std": [float("inf")] * 8}, "expected finite numbers"),
        ({"plan": "0" * 32}, "was altered, or belongs to another plan.json"),
        ({"colour": 1}, "has an unknown entry 'colour'"),
    ],
)
def test_a_forged_header(cache, change, message):
    """With a digest that fits."""
    from fairchem_crack.teacher.cache.schema import digest_of

    header = {**json.loads((cache / HEADER).read_text()), **change}
    del header["digest"]
    header["digest"] = digest_of(json.dumps(header, sort_keys=True).encode())
    (cache / HEADER).write_text(json.dumps(header))
    with pytest.raises(CacheError, match=message):
        content(cache)


@pytest.mark.parametrize("name", [HEADER, PLAN])
def test_an_altered_text(cache, name):
    """Each entry taken out or altered."""
    original = json.loads((cache / name).read_text())
    for entry in original:
        for altered in ({**original, entry: 7}, {key: value for key, value in original.items() if key != entry}):
            (cache / name).write_text(json.dumps(altered))
            refused(cache, f"has a damaged ({HEADER}|{PLAN})|has format 7")


@pytest.mark.parametrize("name", [HEADER, PLAN])
def test_a_newer_format(cache, name):
    text = json.loads((cache / name).read_text())
    (cache / name).write_text(json.dumps({**text, "format": FORMAT + 1}))
    refused(cache, f"has format {FORMAT + 1}; this fairchem-crack reads {FORMAT}. Update")


def test_a_cache_of_the_earlier_format_is_refused(tmp_path):
    """Written by 7cca9bc: three systems, as LMDB."""
    directory = shutil.copytree(SAMPLES / "cache_format_2", tmp_path / "old")
    message = r"has format 2, of an earlier fairchem-crack, .* `fairchem-crack cache-teacher --config-yml .* --output AN"
    refused(directory, message)
    with pytest.raises(CacheError, match=message):
        start(directory, make_plan(3))
