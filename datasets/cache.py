"""Annotations that were read once, kept as arrays in a file that all processes map. Imports no torch.

Of a set there are two files: `KEY.inputs` says what was read (each file's and folder's state and digest, see
`configs.inputs`) and what was logged; `KEY-*.records` holds the arrays. They are written whole or not at all, the
second first, under a name of its own: two writers cannot mix theirs, and who has a file open keeps it. Both end with a
checksum; what is damaged is read anew. KEY is a digest of the question (sources, classes, ...) and of the readers'
code, so nothing has to be removed after an update.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import home, replacing
from configs.inputs import State, digest_of, noting, state_of
from datasets.names import Names
from datasets.records import Records

logger = logging.getLogger(__name__)

MIN_IMAGES, MIN_OBJECTS = 2_000, 20_000
"""Sets with fewer images and fewer objects are read in a second and not kept."""
MAX_AGE = 90 * 86_400
"""Seconds. What nobody used for so long is removed."""
MAX_AGE_REPLACED = 3_600
"""Seconds. So are arrays of a set that was read again since; another process may have written them just now."""

_MAGIC = b"annotations 1\n\0\0"
_FRESH = 50_000_000  # ns. Changes that follow each other faster may bear the same time.
_FRESH_IN_SECONDS = 2_000_000_000  # of file systems that count whole seconds
_told: list[str] = []


def kept_records(question: Mapping[str, Any], read: Callable[[], Records]) -> Records:
    """What `read` returns and logs; from the cache where nothing that it looked at has changed since.

    Where `annotations` in `configs.files.home` cannot be written, this is said once, and each start reads.

    Args:
        question: all that decides what `read` does, besides files; plain values.
        read: reads annotations by way of `configs.files` and `datasets.images`, which note what they look at.

    Raises:
        UserError: `read` raised it; nothing is kept then.
    """
    try:
        folder = home() / "annotations"
    except RuntimeError as error:  # a user without an entry in the system's list, and no $HOME
        _say_not_kept(error)
        return read()
    text = json.dumps([question, _code()], sort_keys=True, default=str)
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    found = _load(folder, name)
    if found is not None:
        return found
    start = time.time_ns()
    with _logged() as messages, noting() as inputs:
        records = read()
    if len(records) >= MIN_IMAGES or len(records.labels) >= MIN_OBJECTS:
        _keep(folder, name, records, inputs, messages, start)
    return records


def open_records(path: str) -> Records:
    """The records in a `.records` file, their arrays mapped from it and read-only.

    Raises:
        ValueError: it is damaged, as far as its beginning tells.
    """
    values, arrays = _map_file(Path(path))
    for name in [name for name in arrays if name.endswith(".offsets")]:
        name = name.removesuffix(".offsets")
        arrays[name] = Names(arrays.pop(f"{name}.data"), arrays.pop(f"{name}.offsets"))
    counts = arrays.pop("counts")
    records = Records(**values, **arrays)
    object.__setattr__(records, "counts", counts)
    object.__setattr__(records, "reopen", (open_records, (path,)))  # workers that are not forks open the file too
    return records


@functools.cache
def _code() -> str:
    """A digest of all code that decides what is read."""
    root = Path(__file__).resolve().parent
    files = sorted(root.rglob("*.py")) + sorted((root.parent / "configs").glob("*.py"))
    parts = [np.__version__.encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


class _logged(logging.Handler):
    """What the readers log within a block: [logger, level, message] of each; it is shown as it would be without."""

    def __enter__(self) -> list[list[Any]]:
        self.messages: list[list[Any]] = []
        # A program that set up no logging sees warnings by the handler of last resort, which any other one silences.
        self.shows = None if logging.getLogger("datasets").hasHandlers() else logging.lastResort
        logging.getLogger("datasets").addHandler(self)
        return self.messages

    def __exit__(self, *error: object) -> None:
        logging.getLogger("datasets").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append([record.name, record.levelno, record.getMessage()])
        if self.shows is not None and record.levelno >= self.shows.level:
            self.shows.handle(record)


# ---------------------------------------------------------------------------------------------- one set


def _load(folder: Path, name: str) -> Records | None:
    """The records that are kept under a name; None where there are none, or their inputs have changed."""
    note = folder / f"{name}.inputs"
    try:
        _check(note)
        values, arrays = _map_file(note)
        paths = Names(arrays["paths"], arrays["offsets"]).tolist()
        states = arrays["states"]
        now = np.array([state_of(path) for path in paths], np.int64).reshape(-1, 4)
        changed = np.flatnonzero((now != states).any(axis=1))
        if any(digest_of(paths[i]) != arrays["digests"][i].tobytes() for i in changed.tolist()):
            return None
        path = folder / str(values["records"])
        _check(path)
        records = open_records(str(path))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    try:
        if len(changed):  # copied or touched, but of the same content: it need not be digested again
            _write_file(note, values, {**arrays, "states": now})
        for file in (note, path):
            os.utime(file)
    except (OSError, UserError):
        pass
    for logger_name, level, message in values["messages"]:
        logging.getLogger(logger_name).log(level, "%s", message)
    return records


def _keep(
    folder: Path, name: str, records: Records, inputs: dict[str, State], messages: list[list[Any]], start: int
) -> None:
    """Write a set, unless a file changed while it was read."""
    digests = [digest_of(path) for path in inputs]
    if any(state_of(path) != state or _is_fresh(state, start) for path, state in inputs.items()):
        return
    arrays: dict[str, np.ndarray] = {"counts": records.object_counts()}  # else each start would look at all labels
    values: dict[str, Any] = {}
    for field in fields(records):
        value = getattr(records, field.name)
        if isinstance(value, Names):
            arrays |= {f"{field.name}.data": value.data, f"{field.name}.offsets": value.offsets}
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        else:
            values[field.name] = value
    paths = Names.of(inputs)
    own = folder / f"{name}-{os.urandom(6).hex()}.records"
    try:
        _write_file(own, values, arrays)
        _write_file(
            folder / f"{name}.inputs",
            {"records": own.name, "messages": messages},
            {
                "paths": paths.data,
                "offsets": paths.offsets,
                "states": np.array(list(inputs.values()), np.int64).reshape(-1, 4),
                "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            },
        )
        _remove_old(folder, name, own)
    except (OSError, UserError) as error:
        _say_not_kept(error)


def _say_not_kept(error: Exception) -> None:
    if not _told:
        _told.append(str(error))
        logger.warning(
            "%s: annotations cannot be kept, so each start reads them anew: set RESIDUAL_DETECTION_HOME to a folder "
            "that can be written, or data.cache: false", error,
        )  # fmt: skip


def _is_fresh(state: State, start: int) -> bool:
    """Whether a file was changed so shortly before the reading, or in it, that a further change might not show."""
    changed = max(state[1], state[2])
    return changed > start - (_FRESH_IN_SECONDS if changed % 1_000_000_000 == 0 else _FRESH)


def _remove_old(folder: Path, name: str, own: Path) -> None:
    """Remove what this set had before, and what nobody used for long."""
    for path in folder.iterdir():
        replaced = path.name.startswith(f"{name}-") and path != own
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - path.stat().st_mtime > (MAX_AGE_REPLACED if replaced else MAX_AGE):
                path.unlink()


# ---------------------------------------------------------------------------------------------- files of arrays


def _write_file(path: Path, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """A magic text, the header's length, the header (JSON), the arrays at multiples of 64 bytes, a CRC-32 of all."""
    layout, position = {}, 0
    for name, array in arrays.items():
        layout[name] = [array.dtype.str, list(array.shape), position]
        position += -(-array.nbytes // 64) * 64
    header = json.dumps({"values": values, "arrays": layout, "bytes": position}).encode("ascii")
    header += b" " * (-(len(_MAGIC) + 8 + len(header)) % 64)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        crc = 0
        parts = [_MAGIC, struct.pack("<Q", len(header)), header]
        for array in arrays.values():
            parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, b"\0" * (-array.nbytes % 64)]
        for part in parts:
            crc = zlib.crc32(part, crc)
            file.write(part)
        file.write(struct.pack("<I", crc))


def _check(path: Path) -> None:
    """See that a file is whole."""
    with open(path, "rb") as file:
        crc, left = 0, os.fstat(file.fileno()).st_size - 4
        while left > 0 and (block := file.read(min(left, 1 << 24))):
            crc, left = zlib.crc32(block, crc), left - len(block)
        if left or file.read() != struct.pack("<I", crc):
            raise ValueError(f"{path}: is damaged")


def _map_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and the arrays of a file."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: is no file of annotations")
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start = len(_MAGIC) + 8 + length
        if os.fstat(file.fileno()).st_size != start + header["bytes"] + 4:
            raise ValueError(f"{path}: is damaged")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {}
    for name, (kind, shape, place) in header["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(mapped, np.dtype(kind), count, start + place).reshape(shape)
    return header["values"], arrays
