"""Writing files whole or not at all: here, because every package may import `configs`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends; makes the folder.

    If the block raises, `path` stays what it was and nothing is left behind.

    Raises:
        UserError: the folder or the file cannot be written (no permission, no space, a folder of that name); names it.
    """
    path = Path(path)
    # Cut, so that a name of the greatest length that the file system allows still fits. Processes and threads may
    # write the same file at a time: the last one stays.
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, *path.parents):
            raise  # of another file: the block read something
        reason = f"{error.filename} is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"{path}: cannot be written: {reason}") from error


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write bytes whole or not at all.

    Raises:
        UserError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8, whole or not at all; line ends stay as they are.

    Raises:
        UserError: see `replacing`.
    """
    write_bytes(path, text.encode("utf-8"))
