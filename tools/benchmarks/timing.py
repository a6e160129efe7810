"""Clocks and fair comparisons: rotating order, ratios within each repetition, medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def measure(work: Callable[[], object], device: torch.device, calls: int = 1) -> dict[str, float]:
    """Seconds of a call: `cpu` process time, `wall`, and on CUDA `device` between two events.

    With several calls in sequence their mean; the device is waited for once, at the end.
    """
    cuda = device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
    if cuda:
        torch.cuda.synchronize(device)
        events[0].record()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        work()
    if cuda:
        events[1].record()
        torch.cuda.synchronize(device)
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    if cuda:
        seconds["device"] = events[0].elapsed_time(events[1]) / 1000
    return {unit: value / calls for unit, value in seconds.items()}


def compare(
    works: dict[str, Callable[[], object]],
    *,
    reference: str | None,
    repetitions: int,
    warmup: int,
    device: torch.device,
    calls: int = 1,
) -> dict[str, Any]:
    """Time several pieces of work side by side.

    Each repetition runs all of them, in an order that rotates, so that a drift of the machine's speed meets all alike.
    A repetition calls each one `calls` times (see `measure`).
    The ratio of a repetition is of `cpu` seconds on the CPU and of `wall` seconds on CUDA.

    Returns:
        name -> {"cpu", "wall", ("device"): median and quartiles of the seconds; "ratio": those of the ratio to
        `reference`, where there is one}.
    """
    names = list(works)
    for name in names:
        for _ in range(warmup * calls):
            works[name]()
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(measure(works[name], device, calls))
    clock = "wall" if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {}
    for name in names:
        result[name] = {unit: quartiles([one[unit] for one in seconds[name]]) for unit in seconds[name][0]}
        if reference in works and name != reference:
            pairs = zip(seconds[name], seconds[reference], strict=True)
            result[name]["ratio"] = quartiles([one[clock] / other[clock] for one, other in pairs])
    return result


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, lower and upper quartile."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}
