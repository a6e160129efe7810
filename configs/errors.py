"""The one error class for mistakes that the user can fix, and the hint at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's, told in one line: the file, the object, the key, and the fix.

    The scripts print the message without a traceback and exit with code 2 (`--debug` shows the traceback).
    """


def nearest(name: object, choices: Iterable[object]) -> str | None:
    """The choice that is spelled most like `name`; None where none is similar."""
    found = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return found[0] if found else None


def did_you_mean(name: object, choices: Iterable[object]) -> str:
    """' (did you mean X?)' for the nearest choice, to stand behind a name in a message; nothing where none is near."""
    found = nearest(name, choices)
    return f" (did you mean {found}?)" if found else ""
