"""Numbers of a step are read in one transfer."""

from __future__ import annotations

import torch

from fairchem_crack.readout import Readout


def test_all_numbers_are_read_at_once(gpu, monkeypatch):
    values = {"b": torch.tensor(0.1, device=gpu), "a": 3, "c": torch.tensor(True, device=gpu)}
    readout, reads = Readout(values), []
    read = torch.Tensor.tolist
    monkeypatch.setattr(type(values["b"]), "tolist", lambda tensor: reads.append(tensor.shape) or read(tensor.cpu()))
    assert list(readout.numbers.items()) == [("b", float(torch.tensor(0.1))), ("a", 3.0), ("c", 1.0)]
    assert readout.numbers["c"] == 1.0 and reads == [(2,)]


def test_numbers_that_the_host_has_are_not_read():
    assert Readout({"pairs": 7}).numbers == {"pairs": 7.0} and Readout({}).numbers == {}
