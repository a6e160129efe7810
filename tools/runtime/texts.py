"""What all scripts print and write in one form: nested figures by dotted names, differing classes, Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings under dotted names; lists and empty mappings are values."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differing(names: Sequence[str], others: Sequence[str]) -> str:
    """How two lists differ, for a message: 'a, b differ', up to five names that one of them has, or their order."""
    only_one = sorted(set(names) ^ set(others))
    return f"{', '.join(only_one[:5])} differ" if only_one else "their order differs"


def net_name(backbone: str | Mapping[str, Any] | None) -> str:
    """What to call a net: its name, where it is not described by a table."""
    return backbone if isinstance(backbone, str) else "a net of one's own"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, without the last line's end; bars in cells are escaped."""
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---" * len(titles) + "|", *lines[1:]])
