"""The pretended GPU refuses what a GPU refuses, and counts what makes the host wait."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_tensors_of_two_devices_are_refused(gpu):
    from pretend_cuda import DeviceError

    values = torch.arange(3.0, device=gpu)
    with pytest.raises(DeviceError, match=r"all tensors to be on the same device, found cuda:0 \(3,\), cpu \(3,\)"):
        values + torch.ones(3)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        values.numpy()
    with pytest.raises(DeviceError, match="generator"):
        torch.rand(3, device=gpu, generator=torch.Generator())
    assert (values + torch.tensor(1.0)).tolist() == [1, 2, 3]  # a 0-dim CPU tensor may


def test_gradients_are_those_of_the_cpu(device):
    values = torch.linspace(-1, 1, 5, device=device, requires_grad=True)
    (values.exp()[values.detach() > 0] ** 2).sum().backward()
    assert values.grad.device == torch.device(device)
    torch.testing.assert_close(values.grad.cpu(), torch.tensor([0, 0, 0, 2 * torch.e, 2 * torch.e**2]))


def test_what_waits_is_counted_and_what_does_not_is_not():
    from pretend_cuda import PretendCuda

    with PretendCuda() as gpu:
        values = torch.ones(4).to("cuda", non_blocking=True)
        (values * 2).index_select(0, torch.zeros(2, dtype=torch.long, device="cuda")).sum()
        assert not gpu.stalls
        values.sum().item(), values[values > 0], values.unique(), torch.ones(2).to("cuda"), values.cpu()
        assert {stall for stall, _ in gpu.stalls} == {"item", "boolean index", "_unique2", "to(cuda)", "cpu()"}
        assert gpu.table() == sorted(gpu.table(), reverse=True) and len(gpu.table("fairchem_crack")) == 0
        with gpu.uncounted():
            values.tolist()
        assert sum(gpu.stalls.values()) == 5 and gpu.table(since=gpu.stalls.copy()) == []
