"""What lies in a folder: its images, its other files, and what its JSON files are. Imports no torch."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from configs.detection import SourceConfig
from configs.errors import UserError, counted, did_you_mean
from configs.files import read_json, read_text
from datasets.annotation_lists import list_kind
from datasets.collect import images_below, walk
from datasets.via import via_entries

LOOKED_AT = 50
"""So many files of a folder decide what its files of a kind are, where they agree."""


@dataclass(frozen=True)
class Layout:
    """A data set as it lies on the disk."""

    root: Path
    name: str
    """In words: the format, and which tools write it."""
    parts: dict[str, list[SourceConfig]]
    """Sources of train, val and test; `all`: the set has no parts."""
    class_names: list[str] | None
    """In the order in which the tool lists them; None: it lists none."""
    num_labelled: int
    """Images that have an annotation; 0: there are annotations, but none of an image that is here: `notes` says why."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, one line each."""


@dataclass(frozen=True)
class Inventory:
    """The files below a folder."""

    root: Path
    """The folder, or the only folder in it that holds anything."""
    files: list[Path]
    images: list[Path]
    _broken: list[str] = field(default_factory=list)
    """What `unreadable` returns."""

    def of(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes (lower case)."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    @cached_property
    def unreadable(self) -> list[str]:
        """Why JSON files and tables, of the first of each folder, cannot be read, a line for each."""
        self.json_kinds  # noqa: B018  it notes what it meets
        for path in self.of(".csv"):
            try:
                read_text(path, "table")
            except UserError as error:
                self._broken.append(str(error))
        return self._broken

    @cached_property
    def json_kinds(self) -> dict[Path, str]:
        """What each JSON file is, as `json_kind` says; others and broken ones are left out."""
        by_folder: dict[Path, list[Path]] = defaultdict(list)
        for path in self.of(".json"):
            by_folder[path.parent].append(path)
        kinds: dict[Path, str] = {}
        for files in by_folder.values():
            found = {path: self._json_kind(path) for path in files[:LOOKED_AT]}
            first = set(found.values())
            same = first.pop() if len(first) == 1 else None
            found |= {path: same or self._json_kind(path) for path in files[LOOKED_AT:]}
            kinds |= {path: kind for path, kind in found.items() if kind is not None}
        return kinds

    def _json_kind(self, path: Path) -> str | None:
        """See `json_kind`; None for a file that cannot be read, too, which is noted."""
        try:
            return json_kind(path)
        except UserError as error:
            self._broken.append(str(error))
            return None


def take_inventory(folder: Path) -> Inventory:
    """All files and images below a folder.

    Raises:
        UserError: it is no folder, or holds no image.
    """
    if not folder.exists():
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: there is no such folder{did_you_mean(folder.name, beside)}")
    if zipfile.is_zipfile(folder) or (folder.is_file() and tarfile.is_tarfile(folder)):
        raise UserError(f"{folder}: is an archive: unpack it and give the folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file: give the folder that holds the images and their annotations")
    root = folder.resolve()
    files = walk(root)
    archives = [path.name for path in files if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")]
    try:
        images = images_below(root)
    except UserError as error:
        lone = next((path.name for path in files if path.suffix.lower() in (".json", ".xml", ".csv", ".txt")), None)
        without = f": put the images of {lone} below the folder, which the export left out" if lone else ""
        raise UserError(f"{error}{f': unpack {archives[0]} first' if archives else without}") from None
    root = Path(os.path.commonpath([path.parent for path in files]))  # an archive's only folder
    return Inventory(root, files, images)


def json_kind(path: Path) -> str | None:
    """What a JSON file is: coco, labelme, via, supervisely, or one of `annotation_lists`' formats; None: another one.

    Raises:
        UserError: it cannot be read.
    """
    content = read_json(path, "annotation file")
    if via_entries(content) is not None:
        return "via"
    if (kind := list_kind(content)) is not None or not isinstance(content, dict):
        return kind
    if isinstance(content.get("images"), list) and {"annotations", "categories"} & content.keys():
        return "coco"
    if isinstance(content.get("shapes"), list):
        return "labelme"
    return "supervisely" if isinstance(content.get("objects"), list) and "size" in content else None


def that_are(predicate: Callable[[Path], bool], files: Sequence[Path]) -> list[Path]:
    """The files for which the predicate holds; where it holds for the first `LOOKED_AT`, all are taken."""
    first = [path for path in files[:LOOKED_AT] if predicate(path)]
    if len(first) == LOOKED_AT:
        return list(files)
    return first + [path for path in files[LOOKED_AT:] if predicate(path)]


def missing_images(files: Sequence[Path], labelled: dict[Path, Path]) -> list[str]:
    """A note about annotation files without image, if there are some."""
    used = set(labelled.values())
    lost = [file for file in files if file not in used]
    return [f"{counted(len(lost), 'annotation file')} without image, for example {lost[0]}: not used"] if lost else []
