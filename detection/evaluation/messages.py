"""Words that several messages share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


def nearest(name: Any, choices: Sequence[Any]) -> str:
    """' (did you mean X?)' for the choice most like `name`, or nothing."""
    found = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def examples(values: Sequence[Any], at_most: int = 5) -> str:
    """The first values, separated by commas, and dots if there are more."""
    return ", ".join(str(value) for value in values[:at_most]) + (", ..." if len(values) > at_most else "")
