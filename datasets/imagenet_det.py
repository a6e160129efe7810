"""ImageNet DET (ILSVRC 2013 to 2017): Annotations/DET, Data/DET and ImageSets/DET, 200 classes. Imports no torch.

    Annotations/DET/{train/ILSVRC2013_train/<wnid>, train/ILSVRC2014_train_000N, val}/*.xml
    Data/DET/{train/..., val, test}/*.JPEG
    ImageSets/DET/{train_1 ... train_200, val, test}.txt

The XML is VOC's with WordNet ids for names and without `difficult`. Pixels count from 0 and both ends are included, as
in the official evaluation: pixel p covers [p, p + 1], so 1 is added to xmax and ymax.

val1 and val2 are the halves of val on which R-CNN (Girshick et al. 2014, Sec. 4) and He et al. 2016 (App. B) train and
validate. R-CNN's own lists are taken where they lie in ImageSets/DET; otherwise the halves are made here
(`balanced_halves`), the same each time, but not R-CNN's.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.errors import UserError, did_you_mean
from configs.files import is_file, read_lines
from configs.inputs import note
from datasets.class_lists import IMAGENET_DET_WNIDS
from datasets.images import image_file_size
from datasets.make_records import make_records
from datasets.records import Records, logger
from datasets.voc import VocAnnotation, read_annotation

_CLASSES = len(IMAGENET_DET_WNIDS)
_SPLIT = re.compile(r"ILSVRC\d{4}_(train|val|test)")
_ID = "an image id looks like ILSVRC2012_val_00000001 or ILSVRC2013_train/n02672831/n02672831_11"


def read_imagenet_det(root: str | Path, image_set: str, *, images_per_class: int | None = None) -> Records:
    """The images of a set with the names of their classes (not their WordNet ids), sorted.

    A set of which no image has an annotation file (test) is taken as images only (`annotated` is False).

    Args:
        root: the folder that holds Annotations/, Data/ and ImageSets/ (the archive calls it ILSVRC).
        image_set: train: the images that ImageSets/DET/train_1.txt to train_200.txt call positive. Else a list
            ImageSets/DET/NAME.txt: val, test, or one of one's own. val1, val2: see above.
        images_per_class: of train, take so many positive images of each class, a fixed random choice. An image may be
            the choice of several classes, and its other objects come along.

    Raises:
        UserError: a folder, list, image or annotation file is missing or broken.
    """
    root = Path(root)
    lists = root / "ImageSets" / "DET"
    for folder in (root, lists, root / "Data" / "DET"):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder: python tools/prepare_data.py imagenet_det says how")
    if image_set == "train" and not is_file(lists / "train.txt"):
        return _read(root, _positive_images(lists, images_per_class), image_set)
    if images_per_class is not None:
        raise UserError(f"{root}: images_per_class is for image_set train, whose images have lists by class")
    if image_set in ("val1", "val2") and not is_file(lists / f"{image_set}.txt"):
        return _half(_read(root, _read_list(lists, "val"), "val"), image_set)
    return _read(root, _read_list(lists, image_set), image_set)


def balanced_halves(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Which images make up the second half, so that each class has about as many objects in either.

    Iterative stratification (Sechidis et al. 2011): the class with the fewest objects in unassigned images comes next;
    its images, those with most of its objects first, go to the half that has fewer of them. R-CNN clusters images and
    picks the best of many random splits; it reports a relative imbalance of at most 11 %, 4 % in the median.

    Args:
        counts: (N, K) objects of each class in each image.
        seed: decides where all else is equal.

    Returns:
        (N,) bool.
    """
    rng = np.random.default_rng(seed)
    half = np.full(len(counts), -1)
    sums = np.zeros((2, counts.shape[1]), np.int64)
    sizes = np.zeros(2, np.int64)
    shuffled = rng.permutation(len(counts))
    left = counts.sum(axis=0)
    while (left > 0).any():
        rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        images = shuffled[(half[shuffled] < 0) & (counts[shuffled, rarest] > 0)]
        for image in images[np.argsort(-counts[images, rarest], kind="stable")]:
            side = min((0, 1), key=lambda s: (sums[s, rarest], sizes[s]))
            half[image] = side
            sums[side] += counts[image]
            sizes[side] += 1
            left -= counts[image]
    for image in shuffled[half[shuffled] < 0]:  # without objects
        side = int(np.argmin(sizes))
        half[image] = side
        sizes[side] += 1
    return half == 1


def _half(val: Records, image_set: str) -> Records:
    """val1 or val2 by the rule of this project."""
    counts = np.zeros((len(val), len(val.class_names)), np.int64)
    np.add.at(counts, (val.image_of_object(), val.labels - 1), 1)
    second = balanced_halves(counts)
    part = val.subset(np.flatnonzero(second if image_set == "val2" else ~second))
    source = val.source.removesuffix("val") + image_set
    logger.warning(
        "%s: ImageSets/DET/%s.txt is not there, so val is halved by this project's rule: %d images; figures are "
        "comparable to R-CNN's and the paper's only with their lists", source, image_set, len(part),
    )  # fmt: skip
    return replace(part, source=source)


def _positive_images(lists: Path, images_per_class: int | None) -> list[str]:
    """The images that the lists of the classes mark with 1, each once."""
    chosen: dict[str, None] = {}
    for number in range(1, _CLASSES + 1):
        path = lists / f"train_{number}.txt"
        if not is_file(path):
            raise UserError(f"{path}: there is no such list; image_set train needs train_1.txt to train_{_CLASSES}.txt")
        rows = [line.split() for line in read_lines(path, "list of images") if line.strip()]
        positive = [row[0] for row in rows if row[1:] == ["1"]]
        if images_per_class is not None and len(positive) > images_per_class:
            picked = np.random.default_rng(number).choice(len(positive), images_per_class, replace=False)
            positive = [positive[i] for i in np.sort(picked)]
        chosen.update(dict.fromkeys(positive))
    return list(chosen)


def _read_list(lists: Path, image_set: str) -> list[str]:
    path = lists / f"{image_set}.txt"
    if not is_file(path):
        there = sorted({item.stem for item in lists.glob("*.txt")} | {"train", "val1", "val2"})
        shown = [name for name in there if not re.fullmatch(r"train_.*\d", name)]
        raise UserError(f"{path}: there is no such list{did_you_mean(image_set, there)}; there are: {', '.join(shown)}")
    ids = [line.split()[0] for line in read_lines(path, "list of images") if line.strip()]
    if not ids:
        raise UserError(f"{path}: lists no image")
    return list(dict.fromkeys(ids))


def _read(root: Path, ids: list[str], image_set: str) -> Records:
    """The records of these images."""
    places = [_place(name, root, image_set) for name in ids]
    there = _Listing()
    xmls = [root / "Annotations" / "DET" / split / f"{name}.xml" for split, name in places]
    annotated = any(there.has(path) for path in xmls)
    images, boxes, names, counts = [], [], [], []
    for xml, (split, name) in zip(xmls, places, strict=True):
        path = root / "Data" / "DET" / split / f"{name}.JPEG"
        if not there.has(path):
            raise UserError(f"{path}: there is no such image, though image set {image_set} lists it")
        annotation = read_annotation(xml) if annotated else VocAnnotation("", None, [])
        images.append((str(path), name, annotation.size or image_file_size(path)))
        boxes += [item.box for item in annotation.objects]
        names += [IMAGENET_DET_WNIDS.get(item.name, item.name) for item in annotation.objects]
        counts.append(len(annotation.objects))
    class_names = sorted(set(names))
    label_of = {name: label for label, name in enumerate(class_names, 1)}
    return make_records(
        images=images,
        boxes=np.array(boxes, np.float64).reshape(-1, 4) + np.array([0, 0, 1, 1]),
        labels=[label_of[name] for name in names],
        counts=counts,
        class_names=class_names,
        source=f"{root}/{image_set}",
        annotation_file=str(root / "Annotations" / "DET" / "*" / "{}.xml"),
        annotated=annotated,
    )


def _place(name: str, root: Path, image_set: str) -> tuple[str, str]:
    """train, val or test, the folder that an image lies in, and its name there; lists may have either or both."""
    found = _SPLIT.search(name)
    if not found:
        raise UserError(f"{root}/ImageSets/DET/{image_set}.txt: {name!r} is no image of ImageNet DET: {_ID}")
    return found[1], name[found.start() :].removesuffix(".JPEG")


class _Listing:
    """Which files exist, by one look into each folder: a network disk takes milliseconds for each question."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str]] = {}

    def has(self, path: Path) -> bool:
        folder = str(path.parent)
        if folder not in self._folders:
            note(folder)
            self._folders[folder] = frozenset(os.listdir(folder)) if path.parent.is_dir() else frozenset()
        return path.name in self._folders[folder]
