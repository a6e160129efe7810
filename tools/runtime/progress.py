"""Progress on a terminal (a bar with ETA and rate) or in a log file (a line every few seconds); the time data takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TextIO, TypeVar

from tqdm import tqdm

from tools.runtime import distributed

Item = TypeVar("Item")


class Progress:
    """Progress of `total` steps: `with Progress(...) as progress: ... progress.update(loss=0.3)`.

    Only process 0 shows it.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        *,
        initial: int = 0,
        unit: str = "it",
        seconds: float = 15.0,
        stream: TextIO | None = None,
    ) -> None:
        """
        Args:
            total: number of steps; None: unknown.
            what: a word for the front of the line.
            initial: steps done by an earlier run.
            unit: what a step is called.
            seconds: time between two lines where the stream is not a terminal.
            stream: default: the error stream.
        """
        self._stream = stream or sys.stderr
        self._total, self._what, self._unit, self._seconds = total, what, unit, seconds
        self._initial = self._done = initial
        self._values: dict[str, str] = {}
        self._silent = not distributed.is_main()
        self._start = self._shown = time.monotonic()
        terminal = getattr(self._stream, "isatty", lambda: False)()
        self._bar = None
        if terminal and not self._silent:
            self._bar = tqdm(
                total=total, desc=what, initial=initial, unit=unit, file=self._stream, dynamic_ncols=True, smoothing=0.1
            )

    def update(self, steps: int = 1, **values: float | str) -> None:
        """Count steps, and show values (kept until given anew)."""
        if self._total is not None:  # processes count for all of them, and the last batch of one may be the only one
            steps = min(steps, self._total - self._done)
        self._done += steps
        self._values.update(
            {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in values.items()}
        )
        if self._bar is not None:
            if values:
                self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(steps)
        elif not self._silent and time.monotonic() - self._shown >= self._seconds:
            self._line()

    def close(self) -> None:
        """Finish the bar, or print the last line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._silent and self._done > self._initial and time.monotonic() - self._start >= self._seconds:
            self._line()
        self._silent = True

    def _line(self) -> None:
        now = time.monotonic()
        self._shown = now
        rate = (self._done - self._initial) / max(now - self._start, 1e-9)
        parts = [f"{self._what} {self._done}" + (f"/{self._total}" if self._total else "")]
        parts.append(f"{rate:.3g} {self._unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s/{self._unit}")
        if self._total and rate > 0:
            parts.append(f"{tqdm.format_interval((self._total - self._done) / rate)} left")
        parts += [f"{name} {value}" for name, value in self._values.items()]
        print(", ".join(parts), file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Timed(Generic[Item]):
    """An iterator of batches that knows how long its user has waited for them (the data time)."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._iterator = iter(items)
        self.restart()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self._waited += time.perf_counter() - start

    def restart(self) -> None:
        """Forget the time until now."""
        self._waited, self._start, self._steps = 0.0, time.perf_counter(), 0

    def step_done(self) -> None:
        """Count a step."""
        self._steps += 1

    def take_speed(self) -> dict[str, float]:
        """Means over the steps since the last call: `seconds` each took, `data_seconds` of them waiting."""
        steps, seconds = max(1, self._steps), time.perf_counter() - self._start
        speed = {"seconds": seconds / steps, "data_seconds": self._waited / steps}
        self.restart()
        return speed
