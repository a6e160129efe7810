"""Launches, syncs and FLOPs of a few operators, by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from tools.benchmarks.counting import Counts, count, make_fake


def test_what_is_counted():
    x = torch.arange(6.0).reshape(2, 3)

    def work() -> None:
        y = x.t().reshape(6)[1:]  # two views and a copy
        z = y + 1
        torch.relu_(z)
        z[z > 2]  # a comparison, and indexing by a mask
        z.sum().item()
        z.cpu().numpy()
        torch.tensor([1.0])

    counts = count(work)
    assert dict(counts.operators) == {"aten::clone": 1, "aten::add": 1, "aten::relu_": 1, "aten::gt": 1,
                                      "aten::index": 1, "aten::sum": 1}  # fmt: skip
    assert dict(counts.sync_sources) == {"boolean indexing": 1, "_local_scalar_dense": 1, "cpu": 1, "tensor": 1}
    assert count(lambda: torch.ones(4, 5) @ torch.ones(5, 6)).flops == 2 * 4 * 5 * 6


def test_the_summary_has_the_numbers_that_were_counted():
    assert Counts(launches=3, syncs=1).summary() == {"launches": 3, "syncs": 1}
    assert Counts(launches=3, flops=8).summary() == {"launches": 3, "syncs": 0, "flops": 8}


def test_outputs_that_the_data_size_wait_and_nms_of_ours_does_not():
    x = torch.tensor([0.0, 2.0, 2.0])
    counts = count(lambda: (x.nonzero(), x.unique()))
    assert counts.syncs == 2
    box = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    valid, group = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    counts = count(lambda: torch.ops.detection.nms(box, torch.ones(1, 1), valid, group, 0.5, 1))
    assert counts.operators["detection::nms"] == 1
    assert "nms" not in counts.sync_sources


def test_backward_counts_three_times_the_forwards_flops_but_for_the_input():
    """A layer's product, and in the backward pass that of the weight; of the input only where it wants a gradient."""
    layer, x = nn.Linear(4, 5, bias=False), torch.ones(3, 4)
    forward = 2 * 3 * 4 * 5
    assert count(lambda: layer(x).sum().backward()).flops == 2 * forward
    wanted = x.clone().requires_grad_()
    assert count(lambda: layer(wanted).sum().backward()).flops == 3 * forward


def test_fake_modules_keep_shapes_layouts_and_what_trains():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    module[0].bias.requires_grad_(False)
    shapes = {name: (value.shape, value.stride()) for name, value in module.state_dict().items()}
    mode = FakeTensorMode()
    assert make_fake(module, mode) is module
    assert {name: (value.shape, value.stride()) for name, value in module.state_dict().items()} == shapes
    assert not module[0].bias.requires_grad
    assert module[0].weight.requires_grad
    with mode:
        assert module(torch.empty(1, 2, 9, 9)).shape == (1, 3, 9, 9)
