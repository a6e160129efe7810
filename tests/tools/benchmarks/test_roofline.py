"""The least time of an operator, by hand."""

from __future__ import annotations

import pytest
import torch

from tools.benchmarks.roofline import roofline_seconds


def test_roofline_takes_the_larger_of_arithmetic_and_traffic():
    a, b = torch.ones(4, 8), torch.ones(8, 16)
    arithmetic, elements = 2 * 4 * 8 * 16, 4 * 8 + 8 * 16 + 4 * 16
    assert roofline_seconds(lambda: a @ b, flops=1.0, bandwidth=1e9) == pytest.approx(arithmetic)
    assert roofline_seconds(lambda: a @ b, flops=1e9, bandwidth=1.0) == pytest.approx(2 * elements)
    assert roofline_seconds(lambda: a + a) == 0
