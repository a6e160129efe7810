"""Which files of a folder are images, and which file a name means. Imports no torch, and decodes nothing."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from configs.inputs import note, open_file
from datasets.complaints import say_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")

FOREIGN_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
"""Folders of other programs' copies: macOS archives, Synology thumbnails, Windows' bin."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own data: `._a.jpg`, `.ipynb_checkpoints`, `__MACOSX`, ..."""
    return name.startswith(".") or name in FOREIGN_FOLDERS


def list_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """The image files in a folder (and the folders below), sorted; hidden files and folders are passed over."""
    return sorted(path for path in files_below(folder, recursive=recursive) if is_image(path))


def list_files(folder: Path, suffixes: Sequence[str], *, recursive: bool = True) -> list[Path]:
    """The files with one of the suffixes (lower case, matched in any case), as `list_images`."""
    ends = tuple(suffixes)
    return sorted(path for path in files_below(folder, recursive=recursive) if path.name.lower().endswith(ends))


def files_below(folder: Path, *, recursive: bool = True, without: Collection[str] = ()) -> Iterator[Path]:
    """The files in a folder (and the folders below), in any order; hidden and special ones are passed over.

    So are folders below that hold results of this project (a run, `predict.py --out`): their pictures are no data.

    Args:
        folder: where there is no such folder, nothing is found.
        recursive: look into folders below, too; links to folders are not followed.
        without: names of folders, in lower case, that are passed over.
    """
    folders = [os.fspath(folder)]
    while folders:
        note(place := folders.pop())
        try:
            with os.scandir(place) as entries:
                found = [entry for entry in entries if not is_hidden(entry.name)]
        except OSError:
            continue
        if place != os.fspath(folder) and _holds_results(place, {entry.name for entry in found}):
            say_once(place, f"{place}: holds results of a training or a prediction, and is passed over")
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                folders += [entry.path] * (recursive and entry.name.lower() not in without)
            elif leads_to_folder(entry):
                if recursive and entry.name.lower() not in without:
                    say_once(
                        entry.path, f"{entry.path}: is a link to a folder, and passed over: name the folder itself"
                    )
            elif not is_special(entry):
                yield Path(entry.path)


_RESULTS = ({"config.yaml", "metrics.jsonl"}, {"problems.json", "problems.txt"}, {"detections.jsonl"})
"""Names of files that only folders of results hold: of a run, of what the linter found, of a prediction."""


def _holds_results(folder: str, names: set[str]) -> bool:
    if any(marks <= names for marks in _RESULTS):
        return True
    if "detections.json" not in names:
        return False
    try:
        with open_file(os.path.join(folder, "detections.json")) as file:
            return file.read(1) == b"["  # a list of detections, no data set
    except OSError:
        return False


def leads_to_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one; `entry.is_dir` fails at a link that leads to itself."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def is_special(entry: os.DirEntry) -> bool:
    """Whether it is a pipe, a socket or a device, which is said: reading it might never end.

    A link that leads nowhere is none of these: who reads it says that it is missing.
    """
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
        return False
    path = entry.path
    special = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if special:
        say_once(path, f"{path}: is no file (a pipe, a socket or a device) and is passed over")
    return special


def is_image(path: str | Path) -> bool:
    """Whether a file is an image by its name; GIFs, each of which may be many images, and telephones' HEIC and AVIF are
    none, which is said."""
    text = os.fspath(path)
    if text.lower().endswith((".gif", ".heic", ".heif", ".avif")):
        folder, name = os.path.split(text)
        kind = name.rpartition(".")[2].upper()
        say_once(folder + kind, f"{folder}: {kind}s are passed over, among them {name}: save them as PNG")
    return text.lower().endswith(IMAGE_SUFFIXES)


def without_image_suffix(name: str) -> str:
    """The name without the suffix of an image, if it has one: of `frame.001` nothing is taken."""
    return name[: name.rfind(".")] if name.lower().endswith(IMAGE_SUFFIXES) else name


def without_upload_prefix(name: str) -> str:
    """The name without the eight digits and the hyphen that Label Studio puts before the name of an uploaded file."""
    return re.sub(r"^[0-9a-f]{8}-(?=.)", "", name)


def same_name(path: Path) -> Path | None:
    """The only file of the folder whose name differs from `path`'s in case or in how its letters are composed.

    None: there is none, or several, or a part of the path before the name is not there.
    """
    try:
        stamp = path.parent.stat().st_mtime_ns
    except (OSError, ValueError):
        return None
    found = _by_plain_name(path.parent, stamp).get(plain_name(path.name), [])
    return path.with_name(found[0]) if len(found) == 1 else None


@functools.lru_cache(maxsize=4)
def _by_plain_name(folder: Path, stamp: int) -> dict[str, list[str]]:
    """A folder's files by `plain_name`; `stamp`, the time of its last change, makes a changed folder another one."""
    files: dict[str, list[str]] = {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        if not is_hidden(entry.name) and (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
            files.setdefault(plain_name(entry.name), []).append(entry.name)
    return files


def by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """The names by `plain_name`, without those that differ in nothing else."""
    found: dict[str, str | None] = {}
    for name in names:
        plain = plain_name(name)
        found[plain] = None if plain in found else name
    return {plain: name for plain, name in found.items() if name is not None}


def plain_name(name: str) -> str:
    """The name in small letters, letters and marks composed: what Windows and macOS take for the same."""
    return unicodedata.normalize("NFC", name).casefold()
