"""Fair comparisons by a clock in the test."""

from __future__ import annotations

import torch

from tools.benchmarks import timing

CPU = torch.device("cpu")


def test_order_rotates_and_ratios_are_of_one_repetition(monkeypatch):
    calls = []
    clock = iter([3.0, 1.0, 2.0, 8.0, 9.0, 3.0])  # a 3, b 1 | b 2, a 8 | a 9, b 3

    def measure(work, device, calls):
        work()
        return {"cpu": next(clock)}

    monkeypatch.setattr(timing, "measure", measure)
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    result = timing.compare(works, reference="b", repetitions=3, warmup=1, device=CPU)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert result["a"]["ratio"]["median"] == 3.0  # of 3, 4, 3
    assert result["a"]["cpu"] == {"median": 8.0, "q1": 5.5, "q3": 8.5}
    assert "ratio" not in result["b"]


def test_quartiles_by_hand():
    assert timing.quartiles([4.0]) == {"median": 4.0, "q1": 4.0, "q3": 4.0}
    assert timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


def test_the_clocks_run_while_the_work_is_done(monkeypatch):
    """Two seconds of waiting, half of them at work."""
    wall, cpu = iter([10.0, 12.0]), iter([1.0, 2.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(timing.time, "process_time", lambda: next(cpu))
    done = []
    assert timing.measure(lambda: done.append(1), CPU) == {"cpu": 1.0, "wall": 2.0}
    assert done == [1]
