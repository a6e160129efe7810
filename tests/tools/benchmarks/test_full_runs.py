"""The cost of the full runs: its arithmetic, and the work that is counted against published counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tools.benchmarks import full_runs


def test_hours_by_hand():
    cost = full_runs.cost_of("x", (0.5, 0.25), images=3_600_000, tflop=1.0, seconds=0.001)
    assert cost["gpu_hours"] == pytest.approx([2.0, 4.0]), "3,600 s at the roofline"
    assert cost["hours"]["1"] == pytest.approx([2.0, 4.0])
    assert cost["hours"]["8"] == pytest.approx([2.0 / 8 / 0.95, 4.0 / 8 / 0.95])
    assert cost["hours"]["16"] == pytest.approx([2.0 / 16 / 0.9, 4.0 / 16 / 0.9])
    assert cost["roofline_ms_per_image"] == pytest.approx(1.0)


def test_a_matrix_product_is_counted_by_hand():
    mode = FakeTensorMode()
    with mode:
        layer, vectors = nn.Linear(100, 50, bias=False), torch.empty(10, 100)
    tflop, seconds = full_runs.counted(mode, lambda: layer(vectors), 10)
    assert tflop == pytest.approx(2 * 100 * 50 / 1e12)
    traffic = 2 * (10 * 100 + 100 * 50 + 10 * 50) / full_runs.PEAK_BYTES
    assert 10 * seconds == pytest.approx(max(10 * tflop * 1e12 / full_runs.PEAK_FLOPS, traffic))


@pytest.mark.slow
def test_resnet_101_costs_what_the_paper_says():
    images, tflop, _ = full_runs.classifier_step("imagenet_resnet101")
    assert images == 600_000 * 256, "Sec. 3.4: 60 x 10^4 iterations of 256"
    # Table 1: 7.6e9 multiply-adds forward; backward twice that, but for the images' own gradient.
    assert tflop == pytest.approx(3 * 2 * 7.6e9 / 1e12, rel=0.03)
