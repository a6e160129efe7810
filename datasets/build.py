"""From the config's data section to data sets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.detection import DataConfig, SourceConfig
from configs.errors import UserError, counted, did_you_mean, examples
from datasets.annotation_files import read_folder, unlisted_images
from datasets.annotation_lists import read_list
from datasets.annotation_tables import read_csv
from datasets.cache import kept_records
from datasets.class_lists import CLASS_LISTS, IMAGENET_DET_WNIDS
from datasets.coco import read_coco
from datasets.coco_exports import add_unlisted
from datasets.detection import DetectionDataset
from datasets.generated import generate
from datasets.imagenet_det import read_imagenet_det
from datasets.records import Records, join, logger
from datasets.split import split_records
from datasets.via import read_via
from datasets.voc import read_image_set, read_voc
from datasets.yolo import image_folder, read_yolo

Split = Literal["train", "val", "test"]


def build_dataset(
    data: DataConfig,
    split: Split,
    data_root: Path | str,
    *,
    seed: int = 0,
    class_names: list[str] | None = None,
) -> DetectionDataset:
    """The data set of a split: augmented for train, only resized for val and test.

    Args:
        data: the config's data section.
        split: train, val or test.
        data_root: what relative paths are relative to.
        seed: of the augmentation.
        class_names: the labels' names where they are known already (a checkpoint's, the training set's); saves reading
            the training annotations again for `classes: auto`.

    Raises:
        UserError: files are missing or broken, classes unknown, or nothing is left to train on.
    """

    def read() -> Records:
        records = build_records(data, split, Path(data_root), class_names=class_names)
        return _for_training(records, data) if split == "train" else records

    records = kept_records(_question(data, split, data_root, class_names), read) if data.cache else read()
    if split != "train":
        return DetectionDataset(records, min_sizes=[data.test_min_size], max_size=data.test_max_size, seed=seed)
    min_sizes = data.min_size if isinstance(data.min_size, list) else [data.min_size]
    return DetectionDataset(records, min_sizes=min_sizes, max_size=data.max_size, augment=data.augment, seed=seed)


_NOT_READ = {
    "train", "val", "test", "repeat_threshold", "min_size", "max_size", "test_min_size", "test_max_size",
    "size_divisor", "augment", "aspect_groups", "num_workers", "cache",
}  # fmt: skip
"""Keys of the data section that do not decide what the records of a split are."""


def _question(data: DataConfig, split: Split, data_root: Path | str, class_names: list[str] | None) -> dict[str, Any]:
    """All that decides what the records of a split are, besides files."""
    section = data.model_dump(mode="json")
    sources = {split: section[split]}
    if data.classes == "auto" and class_names is None:
        sources["train"] = section["train"]
    options = {key: value for key, value in section.items() if key not in _NOT_READ}
    return {"split": split, "sources": sources, "options": options, "classes": class_names,
            "root": [str(data_root), os.getcwd()]}  # fmt: skip


def build_records(data: DataConfig, split: Split, data_root: Path, *, class_names: list[str] | None = None) -> Records:
    """The annotations of a split with its sources joined and its labels those of the class names."""
    sources = getattr(data, split)
    if not sources:
        there = [part for part in ("train", "val", "test") if getattr(data, part)]
        raise UserError(f"data.{split}: lists no source (there are {', '.join(there) or 'none'})")
    parts = [read_source(source, data, data_root, split) for source in sources]
    if data.classes == "auto" and class_names is not None:
        # Where the user keeps some classes only, the others may be annotated and are dropped.
        known = class_names if data.keep_classes is None else sorted({*class_names, *_annotated(parts, data)})
    else:
        known = _known_classes(data, parts if split == "train" else None, data_root)
    if class_names is None:
        class_names = _kept(known, data.keep_classes)
    _check_rename(data, known)
    there = {name for part in parts for name in part.class_names}
    if split == "train" and (unused := sorted(data.rename_classes.keys() - there)):
        logger.warning("data.rename_classes: no class is called %s%s", examples(unused), did_you_mean(unused[0], there))
    _warn_of_common_images(parts)
    rename = {**(IMAGENET_DET_WNIDS if data.classes == "imagenet_det" else {}), **data.rename_classes}
    return join([part.with_classes(class_names, known=known, rename=rename) for part in parts])


def resolve_class_names(data: DataConfig, data_root: Path) -> list[str]:
    """The names of the labels 1..K; reads the training annotations only for `classes: auto`."""
    return _kept(_known_classes(data, None, data_root), data.keep_classes)


def read_source(source: SourceConfig, data: DataConfig, data_root: Path, split: Split) -> Records:
    """One source's annotations under its own class names; of a source with `split` the part for this list."""
    records = _read_whole(source, data, data_root)
    if source.split is None:
        return records
    folder = data_root / (source.images or source.root or "")
    return split_records(
        records, split, source.split, pattern=source.split_by, seed=source.split_seed,
        root=folder.parent if folder.name == "*" else folder,
    )  # fmt: skip


def _read_whole(source: SourceConfig, data: DataConfig, data_root: Path) -> Records:
    """All of a source; the schema has seen to it that what the format needs is there."""
    names = data.classes if isinstance(data.classes, list) else CLASS_LISTS.get(data.classes)
    root, image_set = data_root / (source.root or ""), source.image_set or ""
    images = data_root / source.images if source.images is not None else None
    annotations = data_root / (source.annotations or "")
    if source.format == "generated":
        root, image_set = generate(image_set, source.size)
        return read_voc(root, image_set)
    if source.format == "imagenet_det":
        return read_imagenet_det(root, image_set, images_per_class=source.images_per_class)
    if source.format == "coco":
        return add_unlisted(read_coco(annotations, images or root), images or root, source.unlabelled)
    if source.format in ("via", "csv"):
        read = read_via if source.format == "via" else read_csv
        return read(annotations, images or root, unlabelled=source.unlabelled)
    if source.format in ("cvat", "createml", "label_studio", "datumaro", "vott"):
        return read_list(
            annotations, images or root, source.format, subset=source.image_set, unlabelled=source.unlabelled
        )
    if image_set and source.unlabelled is None:
        if source.format == "voc":
            return read_voc(root, image_set, zero_based=source.zero_based)
        return read_yolo(root, image_set, class_names=names)
    only = None
    if image_set:
        images = root / "JPEGImages" if source.format == "voc" else image_folder(root, image_set)
        only = read_image_set(root, image_set) if source.format == "voc" else None
    elif source.unlisted:
        images, only = root / "JPEGImages", unlisted_images(root)
    return read_folder(
        root,
        source.format,
        images=images,
        image_list=data_root / source.image_list if source.image_list is not None else None,
        only=only,
        zero_based=source.zero_based,
        unlabelled=source.unlabelled,
        class_names=names,
    )


def _known_classes(data: DataConfig, parts: list[Records] | None, data_root: Path) -> list[str]:
    """All class names that may be annotated, before keep_classes; `parts` are the training set's where it is read."""
    if isinstance(data.classes, list):
        return _without_doubles(data.classes)
    if data.classes in CLASS_LISTS:
        return CLASS_LISTS[data.classes]
    if data.classes != "auto":
        choices = [*CLASS_LISTS, "auto"]
        raise UserError(
            f"data.classes: {data.classes} is neither a list of names nor one of {', '.join(choices)}"
            f"{did_you_mean(data.classes, choices)}"
        )
    return _annotated([_read_whole(source, data, data_root) for source in data.train] if parts is None else parts, data)


def _annotated(parts: list[Records], data: DataConfig) -> list[str]:
    """The class names of some sources after renaming, sorted."""
    return sorted({data.rename_classes.get(name, name) for part in parts for name in part.class_names})


def _warn_of_common_images(parts: list[Records]) -> None:
    """Say which sources of a split have images in common, as files of which each annotates classes of its own have."""
    seen: dict[str, Records] = {}
    for part in parts if len(parts) > 1 else ():
        paths = [os.path.abspath(path) for path in part.image_paths]
        if common := [path for path in paths if path in seen]:
            logger.warning(
                "%s and %s have %s in common, the first: %s: it counts once for each, and what one of them annotates "
                "is background to the other: join their annotations, or leave one out",
                seen[common[0]].source, part.source, counted(len(common), "image"), common[0],
            )  # fmt: skip
        seen |= dict.fromkeys(paths, part)


def _check_rename(data: DataConfig, known: list[str]) -> None:
    if data.classes != "auto":
        for name in data.rename_classes.values():
            if name not in known:
                raise UserError(f"data.rename_classes: {name} is not one of the classes{did_you_mean(name, known)}")


def _without_doubles(names: list[str]) -> list[str]:
    doubles = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubles:
        raise UserError(f"data.classes: lists {doubles[0]} more than once")
    if not names:
        raise UserError("data.classes: is empty")
    if not all(name.strip() for name in names):
        raise UserError("data.classes: holds an empty name: each class needs one")
    return names


def _kept(known: list[str], keep: list[str] | None) -> list[str]:
    """The known classes that keep_classes lists, in their own order."""
    if keep is None:
        return known
    if not keep:
        raise UserError("data.keep_classes: is empty")
    there, wanted = set(known), set(keep)
    for name in keep:
        if name not in there:
            raise UserError(f"data.keep_classes: {name} is not one of the classes{did_you_mean(name, known)}")
    return [name for name in known if name in wanted]


def _for_training(records: Records, data: DataConfig) -> Records:
    """Check that there is something to learn, and leave out the empty images if the config says so."""
    if not records.annotated:
        raise UserError(f"{records.source}: has no annotations: it cannot be trained on")
    usable = records.trainable(train_difficult=data.train_difficult)
    if not usable.any():
        difficult = int((records.trainable() & records.difficult).sum())
        fix = f": all {difficult} are marked difficult: set data.train_difficult=true" if difficult else ""
        if len(records.labels) and records.iscrowd.all():
            fix = f": all {len(records.labels)} are crowds (iscrowd: 1)"
        raise UserError(
            f"{records.source}: has no object of the classes {', '.join(records.class_names[:5])} to train on{fix}"
        )
    per_class = np.bincount(records.labels[usable], minlength=len(records.class_names) + 1)[1:]
    absent = [name for name, count in zip(records.class_names, per_class, strict=True) if not count]
    if absent:
        logger.warning(
            "%s: %d of %s without an object to train on: %s",
            records.source, len(absent), counted(len(per_class), "class"), examples(absent),
        )  # fmt: skip
    if data.train_empty:
        return records
    has_objects = np.bincount(records.image_of_object()[usable], minlength=len(records)) > 0
    return records.subset(np.flatnonzero(has_objects))
