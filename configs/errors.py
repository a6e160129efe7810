"""The one error class for mistakes that the user can fix, what makes any text safe to print, and words of messages."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence

MESSAGE_LIMIT = 1500
"""Characters of a message; what is longer is cut in its middle, for the file comes first and the fix last."""


class UserError(Exception):
    """A mistake of the user's, told in one line: the file, the object, the key, and the fix.

    The scripts print the message without a traceback and exit with code 2 (`--debug` shows the traceback). Names in it
    come from files that anybody may have written: control characters are escaped and the length is bounded.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str, limit: int = MESSAGE_LIMIT) -> str:
    r"""The text with control characters and broken surrogates escaped (`\x1b`), at most `limit` characters long.

    Line ends and tabs stay. An escape code in the name of a class would otherwise command the terminal.
    """
    text = _cut(text, limit)
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return _cut("".join(escaped), limit)


def _cut(text: str, limit: int) -> str:
    """The text, or its beginning and its end."""
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


class PrintableFilter(logging.Filter):
    """Makes each message of a logger `printable`: `logger.addFilter(PrintableFilter())`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; nothing is held back."""
        record.msg, record.args = printable(record.getMessage()), None
        return True


def printable_logger(name: str) -> logging.Logger:
    """The logger of a module whose messages hold names from files."""
    logger = logging.getLogger(name)
    logger.addFilter(PrintableFilter())
    return logger


def nearest(name: object, choices: Iterable[object]) -> str | None:
    """The choice that is spelled most like `name`; None where none is similar."""
    if len(str(name)) > 200:  # the search takes the product of the lengths
        return None
    found = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return found[0] if found else None


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """' (did you mean X?)' for the nearest choice, to follow a name in a message; nothing where none is near."""
    found = nearest(name, choices)
    return f" (did you mean {found}?)" if found else ""


def examples(values: Sequence[object], at_most: int = 5) -> str:
    """The first values, separated by commas, and dots if there are more."""
    return ", ".join(str(value) for value in values[:at_most]) + (", ..." if len(values) > at_most else "")


def some(texts: Sequence[str], at_most: int = 5) -> str:
    """The first texts, separated by commas, and how many more there are."""
    return ", ".join(texts[:at_most]) + (f" and {len(texts) - at_most} more" if len(texts) > at_most else "")


def counted(number: int, thing: str, one: str = "", several: str = "") -> str:
    """'1 image', '2 images', '1,234 classes': a number and a thing, whose plural ends in -s or -es (none in -y).

    `one` or `several` follows, where the verb depends on the number: `counted(n, "image", " is", " are")`.
    """
    ending = "" if number == 1 else "es" if thing.endswith(("s", "x", "tch")) else "s"
    return f"{number:,} {thing}{ending}{one if number == 1 else several}"
