"""Averages of the weights, by arithmetic and bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tools.runtime.ema import Ema


def test_ema_by_arithmetic():
    """Decays min(0.5, 1/10), min(0.5, 2/11), ... at the start; 0.5 from iteration 8 on (9/18)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema.update(0)
    assert ema.state_dict()["weight"].item() == pytest.approx(0.9)
    ema.update(1)
    assert ema.state_dict()["weight"].item() == pytest.approx(1 - 0.1 * 2 / 11)
    ema.update(1000)
    assert ema.state_dict()["weight"].item() == pytest.approx(1 - 0.1 * 2 / 11 / 2)


def test_ema_takes_buffers_along_and_swaps_bit_for_bit():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = Ema(model, 0.9)
    for iteration in range(3):
        with torch.no_grad():
            model[0].weight.add_(0.1)
        model(torch.randn(5, 3))
        ema.update(iteration)
    assert ema.state_dict()["1.num_batches_tracked"].item() == 3
    assert not torch.equal(ema.state_dict()["1.running_mean"], model[1].running_mean)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    averages = {name: value.clone() for name, value in ema.state_dict().items()}
    with ema.swapped_in():
        assert all(torch.equal(value, averages[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in ema.state_dict().items())

    other = Ema(model, 0.9)
    other.load_state_dict(averages)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    for one in (ema, other):
        one.update(3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ema.state_dict().items())
    with pytest.raises(KeyError, match="another model"):
        ema.load_state_dict({"weight": torch.zeros(1)})
