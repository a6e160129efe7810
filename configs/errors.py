"""The one error class for mistakes that the user can mend."""


class UserError(Exception):
    """A mistake of the user's, told in one line: the file, the object, the key, and the mend.

    The scripts print the message without a traceback and exit with code 2 (`--debug` shows the traceback).
    """
