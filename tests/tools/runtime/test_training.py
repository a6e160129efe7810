"""Losses watched on the device, random numbers by iteration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs.errors import UserError
from tools.runtime import distributed, training
from tools.runtime.ema import Ema
from tools.runtime.training import (
    LossMonitor,
    NonFiniteLoss,
    autocast,
    average_statistics,
    count_parameters,
    place,
    refuse_several_processes,
    seed_step,
)


def step(
    monitor: LossMonitor, iteration: int, parts: list[dict[str, float]], gradient: float = 1.0, **options
) -> float:
    """One step with these losses (one dictionary for each accumulated part) and one gradient (3 g, 4 g)."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0]) * gradient
    for number, losses in enumerate(parts):
        tensors = {name: torch.tensor(value) for name, value in losses.items()}
        monitor.add(tensors, torch.tensor([10 * iteration + 2 * number, 10 * iteration + 2 * number + 1]))
    skip = monitor.finish_step(iteration, [parameter, nn.Parameter(torch.zeros(1))], **options)
    step.gradient = parameter.grad
    return skip.item()


def name(index: int) -> str:
    return f"image_{index}"


def rate(iteration: int) -> float:
    return 0.5 / (iteration + 1)


def test_means_over_parts_and_steps():
    """(1 + 3) / 2 = 2 in the first step, 4 in the second: mean 3. Gradient norms 5 and 10: mean 7.5."""
    monitor = LossMonitor(torch.device("cpu"))
    assert step(monitor, 0, [{"a": 1.0, "b": 0.5}, {"a": 3.0, "b": 0.5}]) == 0
    assert step(monitor, 1, [{"a": 4.0, "b": 0.5}, {"a": 4.0, "b": 0.5}], gradient=2.0) == 0
    assert monitor.read(name, rate) == {"a": 3.0, "b": 0.5, "loss": 3.5, "gradient_norm": 7.5}
    step(monitor, 2, [{"a": 8.0, "b": 0.0}] * 2)
    assert monitor.read(name, rate)["a"] == 8.0  # a new window
    assert monitor.read(name, rate) == {}


def test_gradients_are_cut_to_the_norm():
    monitor = LossMonitor(torch.device("cpu"))
    step(monitor, 0, [{"a": 1.0}], clip_norm=1.0)
    assert torch.allclose(step.gradient, torch.tensor([0.6, 0.8]))
    step(monitor, 1, [{"a": 1.0}], clip_norm=50.0)
    assert torch.equal(step.gradient, torch.tensor([3.0, 4.0]))
    assert monitor.read(name, rate)["gradient_norm"] == 5.0  # before the cut


@pytest.mark.parametrize(
    ("losses", "gradient", "words"),
    [
        ({"a": 1.0, "b": float("nan")}, 1.0, "b nan"),
        ({"a": float("-inf"), "b": 1.0}, 1.0, "a -inf"),
        ({"a": 1.0, "b": 1.0}, float("inf"), "gradient_norm inf"),
        ({"a": 3e38, "b": 3e38, "c": 3e38}, 1.0, "loss inf"),  # the sum alone overflows
    ],
)
def test_first_bad_step_is_remembered_and_all_later_ones_are_skipped(losses, gradient, words):
    monitor = LossMonitor(torch.device("cpu"))
    good = dict.fromkeys(losses, 1.0)
    assert step(monitor, 0, [good, good]) == 0
    assert step(monitor, 1, [good, losses], gradient) == 1
    assert step(monitor, 2, [good, good]) == 1
    assert step(monitor, 3, [good | {"a": float("nan")}, good]) == 1
    for look in (monitor.check, monitor.read):
        with pytest.raises(NonFiniteLoss) as error:
            look(name, rate)
        message = str(error.value)
        assert words in message
        assert "iteration 1: " in message
        assert "rate 0.25" in message
        assert "image_10, image_11, image_12, image_13" in message
        assert "a nan" not in message


def test_seeds_are_functions_of_seed_and_iteration():
    def draw(seed: int, iteration: int) -> list[float]:
        seed_step(seed, iteration)
        return torch.rand(3).tolist()

    first = draw(0, 5)
    draw(0, 6)
    assert draw(0, 5) == first
    assert len({tuple(draw(seed, iteration)) for seed in range(3) for iteration in range(3)}) == 9


def test_autocast_only_where_it_is_asked_for():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "none"):
        assert layer(x).dtype == torch.float32


def test_parameters_are_counted_by_whether_they_train():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    assert count_parameters(model) == (3, 8)


def test_a_monitor_goes_on_where_it_was_saved():
    """A step with 1 before, one with 3 after: the mean is 2, with or without a resumption between them."""
    monitor = LossMonitor(torch.device("cpu"))
    assert monitor.state_dict() == {"names": [], "parts": [(None, 0)]}
    step(monitor, 0, [{"a": 1.0}])
    again = LossMonitor(torch.device("cpu"))
    again.load_state_dict(monitor.state_dict())
    for one in (monitor, again):
        step(one, 1, [{"a": 3.0}])
        assert one.read(name, rate) == {"a": 2.0, "loss": 2.0, "gradient_norm": 5.0}
    again.load_state_dict(None)
    assert again.read(name, rate) == {}


def test_what_other_numbers_of_processes_had_is_shared_out(monkeypatch):
    """Two processes with sums of 2 and 4 after two steps: one has 3 after two."""
    parts = [([2.0, 2.0, 1.0], 2), ([4.0, 4.0, 1.0], 2)]
    alone = LossMonitor(torch.device("cpu"))
    alone.load_state_dict({"names": ["a"], "parts": parts})
    assert alone.read(name, rate) == {"a": 1.5, "loss": 1.5, "gradient_norm": 0.5}
    alone.load_state_dict({"names": ["a"], "parts": [(None, 0), (None, 0)]})
    assert alone.read(name, rate) == {}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    second = LossMonitor(torch.device("cpu"))
    second.load_state_dict({"names": ["a"], "parts": parts})
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [(None, 0), mine])
    assert second.state_dict() == {"names": ["a"], "parts": [(None, 0), ([4, 4, 1], 2)]}


def test_statistics_become_the_mean_of_all_processes(monkeypatch):
    """The other process holds 3 in place of 1; counters, weights and a single process's statistics stay."""
    net = nn.BatchNorm2d(2)
    average_statistics(net)
    assert net.running_var.tolist() == [1, 1]
    ema = Ema(net, 0.9)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "reduce_sum", lambda statistic: statistic.add_(3))
    average_statistics(net, ema)
    for state in (net.state_dict(), ema.state_dict()):
        assert (state["running_mean"].tolist(), state["running_var"].tolist()) == ([1.5, 1.5], [2, 2])
        assert state["weight"].tolist() == [1, 1]


def test_options_for_one_process(monkeypatch):
    refuse_several_processes("train.graphs")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"train\.graphs: is for one process"):
        refuse_several_processes("train.graphs")


def test_how_a_net_lies_in_memory(monkeypatch):
    trained = []
    monkeypatch.setattr(training, "train_by_winograd", trained.append)
    net = nn.Conv2d(3, 4, 3)
    assert place(net, torch.device("cpu"), channels_last=True).weight.is_contiguous(memory_format=torch.channels_last)
    assert trained == []
    plain = nn.Conv2d(3, 4, 3)
    assert place(plain, torch.device("cpu"), channels_last=False, winograd=True).weight.is_contiguous()
    assert trained == [plain]
    place(plain, torch.device("meta"), channels_last=False, winograd=True)
    assert trained == [plain], "on the CPU alone"
