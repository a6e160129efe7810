"""Labelled image files: a folder for each class, ImageNet's flat validation folder, Tiny-ImageNet. Imports no torch."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import UserError, counted, nearest, printable_logger
from configs.files import read_lines
from datasets.complaints import say_once
from datasets.listing import IMAGE_SUFFIXES, is_hidden, is_image, is_special, leads_to_folder, without_image_suffix
from datasets.synsets import read_synset_numbers

logger = printable_logger(__name__)

FETCHED = {
    "ILSVRC": "imagenet",
    "cifar-10-batches-py": "cifar10",
    "cifar10_lossless_5k": "cifar10_5k",
    "tiny-imagenet-200": "tiny_imagenet",
    "bccd": "bccd",
}
"""Folders of public sets, and what `tools/prepare_data.py` calls them."""


@dataclass(frozen=True)
class ImageFiles:
    """The images of a classification set as flat arrays, which loader processes share without copying."""

    root: Path
    names: np.ndarray
    """(N,) bytes: path of each image below `root`."""
    labels: np.ndarray
    """(N,) int64, 0..K-1: position in `class_names`; -1 where no labels are published (`read_unlabelled`)."""
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def take(self, positions: np.ndarray) -> ImageFiles:
        """The images at `positions` only, (M,) int64."""
        return replace(self, names=self.names[positions], labels=self.labels[positions])


_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read_folders(root: Path, class_names: Sequence[str] | None = None) -> ImageFiles:
    """One folder for each class, in which images lie at any depth.

    Args:
        root: the folder of the class folders.
        class_names: the classes in the order of their labels; some may have no folder. None: the folders' names,
            sorted (ImageNet: wnids, which gives the order that everybody's ImageNet labels have).

    Raises:
        UserError: no folder, a class folder without images, or a folder that is none of `class_names`.
    """
    entries = [entry for entry in list_folder(root) if not is_hidden(entry.name)]
    folders = sorted(entry.name for entry in entries if leads_to_folder(entry))
    if folders and (beside := sum(_is_image(entry.path) for entry in entries if entry.name not in folders)):
        logger.warning("%s: %s beside the class folders, in none: passed over", root, counted(beside, "image"))
    if not folders:
        raise UserError(f"{root}: has no class folders: images are looked for in {root}/<class>/")
    if class_names is None and len(folders) > 1 and {name.lower() for name in folders} <= _PARTS:
        raise UserError(f"{root}: {', '.join(folders)} are parts of a set, not classes: give each as a set of its own")
    class_names = list(class_names) if class_names is not None else folders
    names: list[bytes] = []
    labels: list[int] = []
    for folder in folders:
        label = find_class(folder, class_names, f"{root}/{folder}")
        found = sorted(_images_below(root / folder, folder))
        if not found:
            raise UserError(f"{root}/{folder}: has no images ({', '.join(IMAGE_SUFFIXES)}): fill or remove the folder")
        names += [os.fsencode(name) for name in found]
        labels += [label] * len(found)
    return ImageFiles(root, np.array(names), np.array(labels, np.int64), class_names)


def read_imagenet_val(root: Path, ground_truth: Path, class_names: Sequence[str] | None = None) -> ImageFiles:
    """ImageNet's validation images in one flat folder, in the order of their names.

    Args:
        root: the folder of ILSVRC2012_val_00000001.JPEG, ...
        ground_truth: a .csv of (ImageId, "wnid x1 y1 x2 y2 ..."), the development kit's .txt of one number a line
            (meta.mat or meta_clsloc.mat beside it names their wnids), or a .txt of a file name and a wnid a line.
        class_names: the wnids in the order of their labels; None: those of the ground truth, sorted.

    Raises:
        UserError: a file is missing, or images and ground truth do not belong together.
    """
    names = _flat_images(root)
    lines = _lines(ground_truth)
    if ground_truth.suffix == ".csv":
        wnids = _wnids_by_name(names, _csv_rows(ground_truth), ground_truth)
    elif all(line.strip().isdecimal() and len(line) < 100 for line in lines):  # int() takes no 5,000 digits
        wnids = _wnids_by_number(names, [int(line) for line in lines], ground_truth)
    else:
        stems = {Path(name).stem for name in names}
        rows = [name_and_rest(line, stems) for line in lines]
        rows = [(name, rest.split()[0]) for name, rest in rows if rest]
        wnids = _wnids_by_name(names, rows, ground_truth)
    class_names = list(class_names) if class_names is not None else sorted(set(wnids))
    label_of = {wnid: find_class(wnid, class_names, str(ground_truth)) for wnid in sorted(set(wnids))}
    labels = np.array([label_of[wnid] for wnid in wnids], np.int64)
    return ImageFiles(root, np.array([os.fsencode(name) for name in names]), labels, class_names)


def read_unlabelled(root: Path, class_names: Sequence[str]) -> ImageFiles:
    """Images of one flat folder in the order of their names, of which nobody tells the labels (ImageNet's test set).

    Args:
        root: the folder of ILSVRC2012_test_00000001.JPEG, ...
        class_names: the classes that they may have.

    Raises:
        UserError: no folder, or no images in it.
    """
    names = _flat_images(root)
    encoded = np.array([os.fsencode(name) for name in names])
    return ImageFiles(root, encoded, np.full(len(names), -1, np.int64), list(class_names))


def read_tiny_imagenet(root: Path, split: str, class_names: Sequence[str] | None = None) -> ImageFiles:
    """Tiny-ImageNet's layout: train/<wnid>/images/; val/images/ with val_annotations.txt, or val/<wnid>/.

    Args:
        root: the folder of train/ and val/.
        split: train or val.
        class_names: the wnids in the order of their labels; None: sorted.

    Raises:
        UserError: as `read_folders`.
    """
    annotations = root / split / "val_annotations.txt"
    if split == "val" and annotations.is_file():
        return read_imagenet_val(root / split / "images", annotations, class_names)
    return read_folders(root / split, class_names)


def find_class(name: str, class_names: Sequence[str], where: str) -> int:
    """The label of a class.

    Raises:
        UserError: names `where` and the nearest class.
    """
    try:
        return class_names.index(name)
    except ValueError:
        near = nearest(name, class_names)
        hint = f"did you mean {near}?" if near else f"they are {', '.join(class_names[:5])}, ..."
        raise UserError(f"{where}: {name} is none of the {counted(len(class_names), 'class')}: {hint}") from None


def list_folder(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, but for what `is_special`.

    Raises:
        UserError: it is missing; names the nearest one, or the tool that fetches the set.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_hidden(entry.name) or not is_special(entry)]
    except OSError as error:
        parent = folder.parent
        near = nearest(folder.name, os.listdir(parent) if parent.is_dir() else [])
        hint = f": did you mean {parent / near}?" if near and near != folder.name else how_to_get(folder)
        raise UserError(f"{folder}: {error.strerror}{hint}") from None


def how_to_get(path: Path) -> str:
    """`: get it with: ...` for a path in the folder of a public set that is not there at all; else ""."""
    for number, part in enumerate(path.parts):
        if part in FETCHED and not Path(*path.parts[: number + 1]).exists():
            root = f" --data-root {Path(*path.parts[:number])}" if number else ""
            return f": get it with: python tools/prepare_data.py {FETCHED[part]}{root}"
    return ""


def _flat_images(root: Path) -> list[str]:
    """Names of the images in a folder, sorted."""
    names = sorted(entry.name for entry in list_folder(root) if not leads_to_folder(entry) and _is_image(entry.path))
    if not names:
        raise UserError(f"{root}: has no images")
    return names


def _is_image(path: str) -> bool:
    return not is_hidden(os.path.basename(path)) and is_image(path)


def _images_below(folder: Path, prefix: str) -> Iterable[str]:
    """Paths of the images in a folder and its subfolders, each beginning with `prefix`.

    Links to folders below a class's own are passed over: those to another class's would mix the two.
    """
    for entry in list_folder(folder):
        if leads_to_folder(entry):
            if is_hidden(entry.name):
                continue
            if entry.is_symlink():
                say_once(entry.path, f"{entry.path}: is a link to a folder, and passed over: name the folder itself")
                continue
            yield from _images_below(folder / entry.name, f"{prefix}/{entry.name}")
        elif _is_image(entry.path):
            yield f"{prefix}/{entry.name}"


# ---------------------------------------------------------------------------------------------- ground truth files


def _lines(path: Path) -> list[str]:
    return [line for line in read_lines(path, "ground truth file") if line.strip()]


def name_and_rest(line: str, stems: Collection[str]) -> tuple[str, str]:
    """The image's name at the beginning of a line, without folders, quotes and suffix, and what follows it.

    Args:
        line: a name, then a wnid, a box, or both; names may hold blanks.
        stems: the names of the images without suffix; where none of them fits, the first word is the name.
    """
    text = line.strip()
    first, *others = text.split("\t", 1) if "\t" in text else text.split(None, 1)
    forms = [(words[0], " ".join(words[1:])) for words in (text.rsplit(None, n) for n in (1, 4, 5))]
    for before, after in [*forms, (first, " ".join(others))]:  # after a wnid, a box, or both; the longest name first
        bare = before.strip().strip("\"'").replace("\\", "/").rsplit("/", 1)[-1]
        stem = without_image_suffix(bare)
        if stem in stems:
            return stem, after
    return first, " ".join(others)


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    """(image id, wnid of the first object) of a LOC_val_solution.csv."""
    try:
        rows = list(csv.reader(_lines(path)))
    except csv.Error as error:
        raise UserError(f"{path}: not a table of comma-separated values: {error}") from None
    return [(Path(row[0]).stem, row[1].split()[0]) for row in rows[1:] if len(row) >= 2 and row[1].split()]


def _wnids_by_name(names: list[str], rows: list[tuple[str, str]], path: Path) -> list[str]:
    wnid_of: dict[str, str] = {}
    for name, wnid in rows:
        if wnid_of.setdefault(name, wnid) != wnid:
            raise UserError(f"{path}: says twice what {name} shows: {wnid_of[name]} and {wnid}")
    for name in names:
        if Path(name).stem not in wnid_of:
            raise UserError(f"{path}: has no line for {name}: it is the ground truth of another set, or damaged")
    return [wnid_of[Path(name).stem] for name in names]


def _wnids_by_number(names: list[str], numbers: list[int], path: Path) -> list[str]:
    if len(numbers) != len(names):
        raise UserError(
            f"{path}: has {counted(len(numbers), 'line')} for {counted(len(names), 'image')}: each needs one"
        )
    ends = [int(end[0]) for name in names if (end := re.search(r"\d+$", Path(name).stem))]
    if len(ends) == len(names) and ends != sorted(ends):
        first = next(i for i in range(len(ends)) if ends[i] > ends[i + 1])
        raise UserError(
            f"{path}: its lines are in the order of the images' numbers, but by name {names[first]} comes before "
            f"{names[first + 1]}: rename them with as many digits each"
        )
    places = [path.with_name(name) for name in ("meta.mat", "meta_clsloc.mat")]  # the second in later kits
    meta = next((place for place in places if place.is_file()), places[0])
    wnid_of = {number: wnid for wnid, number in read_synset_numbers(meta).items()}
    unknown = next((number for number in numbers if number not in wnid_of), None)
    if unknown is not None:
        raise UserError(f"{path}: number {unknown} is not in {meta}")
    return [wnid_of[number] for number in numbers]
