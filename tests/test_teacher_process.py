"""A teacher in another environment: what its command is given, and what is made of what it leaves."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import RECORDS as FILE
from caches import content
from stub_labeller import CALLS, DIES, outputs_of

from fairchem_crack.generate.records import bare
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.teacher.process import RECORDS, SYSTEMS, TeacherProcess

STUB = TeacherProcess(f"{sys.executable} -m fairchem_crack.teacher.label --teacher stub_labeller:Stub", chunk=1)
OF_ANY = replace(STUB, command=STUB.command.replace("Stub", "function"))


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    """The stub, in the command's process too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def bare_systems(systems) -> list:
    return [bare(copy.deepcopy(system), number) for number, system in enumerate(systems)]


def test_one_call_labels_systems_that_are_found_in_any_order(bare_systems, tmp_path):
    labelled = replace(OF_ANY, dtype="float32", has_vectors=True).label(iter(bare_systems), tmp_path / "labelling")
    for system, record in zip(bare_systems[::-1], labelled(bare_systems[::-1])):
        expected = outputs_of(to_atoms(system))
        assert np.array_equal(record.pairs, expected.pairs) and record.atoms == len(system.pos)
        for name, value in expected.fields.items():
            np.testing.assert_allclose(record.values[name], value, rtol=1e-5, atol=1e-5)
    bare_systems[1].pos[0] += 1
    with pytest.raises(ValueError, match=r"left no record of copy 0 of system 1 of dataset\.train in .*records\. It has to"):
        labelled(bare_systems)


def test_a_process_that_died_is_resumed_with_equal_records(bare_systems, tmp_path, monkeypatch):
    whole = OF_ANY.label(bare_systems, tmp_path / "whole")
    dying, calls = replace(OF_ANY, command=STUB.command.replace("Stub", "Dying")), tmp_path / "calls"
    monkeypatch.setenv(CALLS, str(calls))
    monkeypatch.setenv(DIES, str(tmp_path / "died"))
    with pytest.raises(ValueError, match=r"Dying` ended with status -9\. Its log, .*command\.log, ends with:\n.*is kept\."):
        dying.label(bare_systems, tmp_path / "labelling")
    dying.label(bare_systems, tmp_path / "labelling")
    assert content(tmp_path / "labelling" / RECORDS) == content(whole.cache.directory)
    assert len(calls.read_text().splitlines()) == 2 * 2 + 3  # two of the first system begin each process
    dying.label(bare_systems, tmp_path / "labelling")
    assert len(calls.read_text().splitlines()) == 7


def test_a_truncated_cache_is_refused_by_name(bare_systems, tmp_path):
    OF_ANY.label(bare_systems, tmp_path)
    os.truncate(tmp_path / RECORDS / FILE, 100)
    with pytest.raises(
        ValueError, match=r"left no whole teacher cache\. Delete .*records, .*shard.0000.records of 100 bytes"
    ):
        OF_ANY.label(bare_systems, tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no/such/python -m label", r"`no/such/python -m label` cannot be run \(.*No such file"),
        ('python "', r"task\.distill\.teacher\.command: 'python \"' is no command \(No closing quotation\)"),
        ("true", r"`true` left no whole teacher cache\. .*does not exist"),
        (STUB.command, r"ended with status 1\. .*\nlabel: --teacher stub_labeller:Stub: does not know an element of 2 of 3"),
        (f"{STUB.command}ber", r"--teacher stub_labeller:Stubber: expected .*AttributeError"),
        (STUB.command.replace("Stub", "raises_always"), r"No outputs\. row 3 .*parent 2, copy_number 0.*fails for all 3"),
        (STUB.command.replace("Stub", "emt"), r"gives energy, forces, and no vector_embedding\."),
    ],
)
def test_what_a_command_does_wrong_is_named(bare_systems, tmp_path, command, message):
    process = replace(OF_ANY, command=command, has_vectors=":emt" not in command)
    if ":emt" in command:
        process.label(bare_systems, tmp_path)
        process = replace(process, has_vectors=True)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        process.label(bare_systems, tmp_path)
    assert (tmp_path / SYSTEMS).is_file() or "quot" in message
