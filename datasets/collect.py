"""What all readers of labelling tools' exports share: finding images, and records of loose lists. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from configs.errors import UserError, counted
from configs.files import is_file, is_folder
from datasets.findings import Mistakes
from datasets.images import image_file_size
from datasets.listing import IMAGE_SUFFIXES, files_below, is_image, plain_name, same_name, without_upload_prefix
from datasets.make_records import make_records
from datasets.records import Records

Unlabelled = Literal["empty", "skip", "error"]
"""What a photo without annotation is: an image without objects, none of this set, or a mistake."""

MASKS = ("segmentationclass", "segmentationobject")
"""Folders, in lower case, whose pictures are masks."""


class Object(NamedTuple):
    """One annotated object."""

    name: str
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, continuous pixels that count from 0."""
    difficult: bool = False
    truncated: bool = False


class Item(NamedTuple):
    """One image and what is known about it."""

    path: Path
    objects: list[Object] | None
    """None: the image has no annotation."""
    size: tuple[int, int] | None = None
    """(H, W) as declared; None: the file's own."""


def walk(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones and masks are passed over."""
    return sorted(files_below(folder, without=MASKS))


def images_below(folder: Path, pattern: str | None = None) -> list[Path]:
    """The images below a folder, sorted; `pattern` "*": only those that lie in it directly.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    if not is_folder(folder):
        raise UserError(f"{folder}: there is no such folder")
    found = [path for path in walk(folder) if is_image(path)]
    if pattern is not None:
        found = [path for path in found if path.parent == folder]
    if not found:
        raise UserError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


class ImageFinder:
    """Finds the image that an annotation file names: by its path below a folder, else by its bare name, which may
    differ in case and lack the suffix."""

    def __init__(self, folder: Path, images: Iterable[Path] | None = None) -> None:
        self.folder = folder
        self._given = images
        self._by_name: dict[str, list[Path]] | None = None
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_plain_name: dict[str, list[Path]] = defaultdict(list)

    def __call__(self, name: str) -> Path | None:
        """The path of the image; None where there is none, or where several have the name.

        Args:
            name: as written by the tool: with a path of another machine, with backslashes, or bare.
        """
        parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
        if not parts:
            return None
        for start in range(len(parts)):  # from the whole path to the bare name
            path = self.folder.joinpath(*parts[start:])
            if is_file(path):
                return path
        for start in range(len(parts)):
            if (path := same_name(self.folder.joinpath(*parts[start:]))) is not None:
                return path
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in self._given if self._given is not None else walk(self.folder):
                if is_image(path):
                    self._by_name[path.name].append(path)
                    self._by_stem[path.stem].append(path)
                    self._by_plain_name[plain_name(path.name)].append(path)
        bare = without_upload_prefix(parts[-1])
        found = (
            self._by_name.get(parts[-1])
            or self._by_name.get(bare)
            or self._by_stem.get(parts[-1])
            or self._by_plain_name.get(plain_name(bare), [])
        )
        for start in range(len(parts) - 1):  # of several, the one whose folders fit best
            fitting = [path for path in found if path.parts[-(len(parts) - start) :] == tuple(parts[start:])]
            if len(fitting) == 1:
                return fitting[0]
        return found[0] if len(found) == 1 else None


def records_of(
    items: Sequence[Item],
    *,
    root: Path,
    source: str,
    annotation_file: str,
    unlabelled: Unlabelled | None = None,
    class_names: Sequence[str] | None = None,
) -> Records:
    """The records of some images.

    A set of which no image is annotated is taken as images only, unless `unlabelled` says otherwise.

    Args:
        items: the images in their order; with `objects` None where an image has no annotation.
        root: image ids are paths below it without suffix, or bare names where these are unique.
        source, annotation_file: as in `Records`.
        unlabelled: what images without annotation are; None: a mistake where others are annotated.
        class_names: in the order of their labels; None: those of the objects, sorted.

    Raises:
        UserError: an image lacks its annotation and nothing says what that means, or none is left.
    """
    without = [item.path for item in items if item.objects is None]
    annotated = len(without) < len(items) or unlabelled in ("empty", "skip")
    if without and annotated:
        if unlabelled in (None, "error"):
            raise UserError(
                f"{source}: {len(without)} of {counted(len(items), 'image')} without annotation, such as {without[0]}: "
                "if they show no object, write unlabelled: empty; if they are not labelled yet, unlabelled: skip"
            )
        if unlabelled == "skip":
            items = [item for item in items if item.objects is not None]
            if not items:
                raise UserError(f"{source}: no image has an annotation, and unlabelled: skip leaves out all others")
    objects = [item.objects or [] for item in items]
    names = [thing.name for some in objects for thing in some]
    known = sorted(set(names)) if class_names is None else list(class_names)
    label_of = {name: label for label, name in reversed(list(enumerate(known, 1)))}
    ids = image_ids([item.path for item in items], root)
    sizes, mistakes = list[tuple[int, int]](), Mistakes()
    for item in items:
        with mistakes.of("image-unreadable", item.path):
            sizes.append(item.size or image_file_size(item.path))
    mistakes.raise_first()
    return make_records(
        images=[(str(item.path), i, size) for item, i, size in zip(items, ids, sizes, strict=True)],
        boxes=[thing.box for some in objects for thing in some],
        labels=[label_of[name] for name in names],
        counts=[len(some) for some in objects],
        class_names=known,
        source=source,
        annotation_file=annotation_file,
        difficult=[thing.difficult for some in objects for thing in some],
        truncated=[thing.truncated for some in objects for thing in some],
        annotated=annotated,
    )


def image_ids(paths: Sequence[Path], root: Path) -> list[str]:
    """Unique names of images: without folder and suffix where these are unique, else with what tells them apart."""
    relative = [path.relative_to(root) if path.is_relative_to(root) else path for path in paths]
    for ids in (
        [path.stem for path in paths],
        [path.with_suffix("").as_posix() for path in relative],
        [path.as_posix() for path in relative],
    ):
        if len(set(ids)) == len(ids):
            return ids
    raise UserError(f"{root}: an image is listed more than once")
