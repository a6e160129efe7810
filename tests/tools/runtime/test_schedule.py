"""The learning rate, by arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import ScheduleConfig
from tools.runtime.schedule import make_schedule


def make(per_epoch: float = 10.0, rate: float = 0.1, **config):
    return make_schedule(ScheduleConfig(**config), rate=rate, iterations_per_epoch=per_epoch)


def test_multistep_changes_at_the_milestone():
    schedule = make(iterations=100, milestones=[30, 60])
    assert [schedule.rate(i) for i in (0, 29, 30, 59, 60, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_warmup_is_linear_and_ends_at_the_full_rate():
    """From 0.001 of the rate; iteration 50 of 100 has the mean of 0.0001 and 0.1; iteration 100 and later the whole."""
    schedule = make(iterations=1000, milestones=[500], warmup_iterations=100, warmup_factor=0.001)
    assert schedule.rate(0) == pytest.approx(0.0001)
    assert schedule.rate(50) == pytest.approx((0.0001 + 0.1) / 2)
    assert [schedule.rate(i) for i in (100, 499)] == [0.1, 0.1]
    assert schedule.rate(500) == pytest.approx(0.01)


def test_warmup_of_resnet_110():
    """He et al. 2016, Sec. 4.2: 0.01, then back to 0.1 (where some reproductions stay at 0.01)."""
    schedule = make(iterations=64000, milestones=[32000, 48000], warmup_iterations=400, warmup_factor=0.1)
    assert schedule.rate(0) == pytest.approx(0.01)
    assert [schedule.rate(i) for i in (400, 31999, 32000, 48000)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_cosine_falls_from_the_rate_to_zero():
    schedule = make(iterations=100, policy="cosine")
    expected = [0.1, 0.1 * 0.5 * (1 + math.sqrt(0.5)), 0.05, 0.0]
    assert [schedule.rate(i) for i in (0, 25, 50, 100)] == pytest.approx(expected)
    assert schedule.rate(101) == pytest.approx(0.0)


def test_epochs_become_iterations():
    """292 images at 8 a step are 36.5 iterations an epoch."""
    schedule = make(per_epoch=36.5, epochs=16, milestones=[8, 12])
    assert schedule.iterations == 584
    assert schedule.milestones == (292, 438)
    assert schedule.epoch(73) == 2.0
    assert [i for i in range(585) if schedule.is_due(i, 4)] == [146, 292, 438, 584]
    assert [i for i in range(150) if schedule.is_due(i, 1)] == [36, 73, 110, 146]


def test_due_in_iterations_and_at_the_end():
    schedule = make(iterations=10)
    assert [i for i in range(11) if schedule.is_due(i, 4)] == [4, 8, 10]
    assert [i for i in range(11) if schedule.is_due(i, None)] == [10]
    assert [i for i in range(11) if schedule.is_due(i, 20)] == [10]


@given(st.integers(1, 12), st.floats(1.0, 50.0), st.integers(1, 6))
def test_something_each_n_epochs_happens_once_each_n_epochs(epochs, per_epoch, every):
    schedule = make(per_epoch=per_epoch, epochs=epochs)
    due = [i for i in range(1, schedule.iterations + 1) if schedule.is_due(i, every)]
    assert len(due) == -(-epochs // every)


@given(st.integers(0, 99))
def test_rate_is_a_function_of_the_iteration_alone(iteration):
    config = {"iterations": 100, "policy": "cosine", "warmup_iterations": 10}
    first, second = make(**config), make(**config)
    for i in range(iteration):
        first.rate(i)
    assert first.rate(iteration) == second.rate(iteration)


def test_description_says_iterations_epochs_and_rates():
    text = make(per_epoch=36.5, epochs=16, milestones=[8], warmup_iterations=50).describe()
    assert text == "584 iterations, 16 epochs of 36.5, rate 0.1 -> 0.01 at 292, warm-up over 50"
