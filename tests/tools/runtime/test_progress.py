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


def test_rates_and_what_is_left(monkeypatch):
    """From 4 of 10 on: 3 in 1.5 seconds are 2 a second, so 3 take another 1.5; 1 in 4 seconds is 4 seconds each."""
    for steps, seconds, words in ((3, 1.5, "7/10, 2 it/s, 00:01 left"), (1, 4.0, "5/10, 4 s/it, 00:20 left")):
        now, stream = [100.0], io.StringIO()
        monkeypatch.setattr("tools.runtime.progress.time.monotonic", lambda now=now: now[0])
        progress = Progress(10, "x", initial=4, seconds=1.0, stream=stream)
        now[0] += seconds
        progress.update(steps)
        assert stream.getvalue() == f"x {words}\n"
        now[0] += 0.5
        progress.update()
        assert stream.getvalue().count("\n") == 1, "a second has not gone by"
        progress.close()
        assert stream.getvalue().count("\n") == 2
        progress.close()
        assert stream.getvalue().count("\n") == 2
