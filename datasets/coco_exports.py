"""What exports of labelling tools need beyond COCO's own files: placeholder categories, images that are not listed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError, counted
from datasets.collect import Unlabelled, image_ids, images_below
from datasets.images import image_file_size
from datasets.names import Names
from datasets.records import Records


def is_placeholder(categories: Sequence[dict[str, Any]]) -> bool:
    """Whether the first category, 0, may be the one that Roboflow writes as the super-category of all others, or the
    background that labelme's converter writes.

    It is left out where it has no object. A category 0 that is meant stays: the others do not name it as their
    super-category. One of them may have its name.
    """
    first, others = categories[:1], categories[1:]
    if not others or first[0]["id"] not in (0, "0"):
        return False
    name = first[0]["name"]
    return name in ("_background_", "__background__") or all(item.get("supercategory") == name for item in others)


def add_unlisted(records: Records, folder: Path, unlabelled: Unlabelled | None) -> Records:
    """The records with the folder's images that the annotation file does not list, as `unlabelled` says.

    Args:
        records: of the annotation file; COCO's numbers as image ids.
        folder: of the images.
        unlabelled: empty: they join the set as images without objects; error: they are a mistake; else: left out.

    Raises:
        UserError: there are some, and they are a mistake.
    """
    if unlabelled not in ("empty", "error"):
        return records
    listed = set(map(os.path.realpath, records.image_paths.tolist()))
    others = [path for path in images_below(folder) if os.path.realpath(path) not in listed]
    if not others:
        return records
    if unlabelled == "error":
        raise UserError(
            f"{records.source}: does not list {counted(len(others), 'image')} of {folder}, for example {others[0]}: if "
            "they show no object, write unlabelled: empty; if they are not labelled yet, unlabelled: skip"
        )
    if np.issubdtype(records.image_ids.dtype, np.number):
        free = np.setdiff1d(np.arange(1, len(records) + len(others) + 1), records.image_ids)
        ids = free[: len(others)]
    else:
        ids = np.array(image_ids(others, folder), np.str_)
    last = records.offsets[-1]
    return replace(
        records,
        image_paths=Names.join([records.image_paths, Names.of(map(str, others))]),
        image_ids=np.concatenate([records.image_ids, ids]),
        sizes=np.concatenate([records.sizes, np.array([image_file_size(path) for path in others], np.int64)]),
        offsets=np.concatenate([records.offsets, np.full(len(others), last, np.int64)]),
        annotated=True,
    )
