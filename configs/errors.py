"""The one error class for mistakes that the user can fix, and what makes any text safe to print."""

from __future__ import annotations

import logging

MESSAGE_LIMIT = 1500
"""Characters of a message; what is longer is cut in its middle, for the file stands first and the fix last."""


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
    if len(text) > limit:
        half = (limit - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class PrintableFilter(logging.Filter):
    """Makes each message of a logger `printable`: `logger.addFilter(PrintableFilter())`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; nothing is held back."""
        record.msg, record.args = printable(record.getMessage()), None
        return True
