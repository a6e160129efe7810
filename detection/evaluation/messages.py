"""Words that several messages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def examples(values: Sequence[Any], at_most: int = 5) -> str:
    """The first values, separated by commas, and dots if there are more."""
    return ", ".join(str(value) for value in values[:at_most]) + (", ..." if len(values) > at_most else "")
