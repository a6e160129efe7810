"""Bars, lines and times."""

from __future__ import annotations

import io

from tools.runtime.progress import Progress, Timed


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(10, "training", initial=4, seconds=0.0, stream=stream) as progress:
        progress.update(loss=0.123456)
        progress.update(5)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("training 5/10, ")
    assert lines[0].endswith("loss 0.1235")
    assert "left" in lines[0]
    assert lines[1].startswith("training 10/10, ")


def test_no_more_than_all_is_done():
    """Two processes with 3 of 5 images each count 6."""
    stream = io.StringIO()
    with Progress(5, "val", seconds=0.0, stream=stream) as progress:
        progress.update(6)
    assert stream.getvalue().startswith("val 5/5, ")


def test_few_lines_in_a_log_file():
    stream = io.StringIO()
    with Progress(1000, "x", seconds=3600, stream=stream) as progress:
        for _ in range(1000):
            progress.update()
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(4, "training", stream=stream) as progress:
        for _ in range(4):
            progress.update(loss=1.5)
    assert "training: 100%" in stream.getvalue()
    assert "loss=1.5" in stream.getvalue()


def test_time_of_steps_and_of_waiting(monkeypatch):
    """Two batches that took 0.25 and 0.5 s to come, within 4 s from the start."""
    moments = iter([100.0, 100.0, 100.25, 102.0, 102.5, 104.0, 104.0, 105.0, 105.0])
    monkeypatch.setattr("tools.runtime.progress.time.perf_counter", lambda: next(moments))
    items = Timed([1, 2])
    for item in (1, 2):
        assert next(items) == item
        items.step_done()
    assert items.take_speed() == {"seconds": 2.0, "data_seconds": 0.375}
    assert items.take_speed() == {"seconds": 1.0, "data_seconds": 0.0}
