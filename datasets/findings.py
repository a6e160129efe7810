"""What readers find wrong in a set, kept where the linter listens. Imports no torch.

A reader only warns of some things, and refuses others at the first one. The linter wants each of them, with its code of
`datasets.lint`, file and place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from configs.errors import UserError


class Finding(NamedTuple):
    """One thing that is wrong, or may be."""

    code: str
    """A key of `datasets.lint.CODES`."""
    file: str
    thing: str = ""
    """The object, line or record in the file; empty: the file itself."""
    value: str = ""


_kept: list[Finding] | None = None


@contextmanager
def findings() -> Iterator[list[Finding]]:
    """What readers find within the block."""
    global _kept
    before, _kept = _kept, []
    try:
        yield _kept
    finally:
        _kept = before


def is_listening() -> bool:
    """Whether readers should look for all that is wrong, not for the first only."""
    return _kept is not None


def find(code: str, file: str | Path, thing: str = "", value: str = "") -> None:
    """Keep a finding, where somebody listens."""
    if _kept is not None:
        _kept.append(Finding(code, str(file), thing, value))


class Mistakes:
    """Mistakes in single files or records of a set. The first ends the reading; where the linter listens, only once
    all have been found."""

    def __init__(self) -> None:
        self._first: UserError | None = None

    @contextmanager
    def of(self, code: str, file: str | Path, *, image: Path | None = None) -> Iterator[None]:
        """Within the block, a UserError is about this file; about the image, where its message names that."""
        try:
            yield
        except UserError as error:
            if not is_listening():
                raise
            text, thing = str(error), ""
            if image is not None and text.startswith(f"{image}: "):
                code, file = "image-unreadable", image
            if text.startswith(f"{file} "):  # file line 3: what is wrong
                thing, _, text = text.removeprefix(f"{file} ").partition(": ")
            find(code, file, thing, text.removeprefix(f"{file}: "))
            self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first one, if there was any.

        Raises:
            UserError: as it was.
        """
        if self._first is not None:
            raise self._first
