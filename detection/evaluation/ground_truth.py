"""Ground truth from the files that the official tools read, with the official tools' meaning to the last digit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import read_json, read_text
from datasets.voc import listed_images, read_annotation
from detection.evaluation.boxes import continuous_to_voc
from detection.evaluation.data import GroundTruth
from detection.evaluation.files import Rows, no_garbage_collection
from detection.evaluation.messages import examples, nearest

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------- VOC


def read_voc_ground_truth(root: Path, image_set: str = "test", *, zero_based: bool = False) -> GroundTruth:
    """The annotations of ImageSets/Main/`image_set`.txt, boxes as the files have them. Images are not needed.

    Args:
        root: folder that holds Annotations/ and ImageSets/Main/.
        image_set: name of the list.
        zero_based: the files count pixels from 0 and give edges, as sets of one's own often do.

    Raises:
        UserError: a folder, the list or an annotation is missing or broken.
    """
    root = Path(root)
    image_ids = _read_image_set(root, image_set)
    annotations = [read_annotation(root / "Annotations" / f"{image_id}.xml") for image_id in image_ids]
    objects = [item for annotation in annotations for item in annotation.objects]
    class_names = sorted({item.name for item in objects})
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    boxes = np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
    image_index = np.repeat(np.arange(len(image_ids)), [len(annotation.objects) for annotation in annotations])
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        bad = image_ids[image_index[int(np.argmin(finite))]]
        raise UserError(f"{root / 'Annotations' / bad}.xml: a coordinate is not a finite number")
    if zero_based:
        boxes = continuous_to_voc(boxes)
    if not len(objects):
        logger.warning("%s/%s: no image has an object: every metric will be empty", root, image_set)
    corner = boxes[:, :2] - 1.0
    return GroundTruth(
        frame="voc",
        image_ids=list(image_ids),
        class_names=class_names,
        image_index=image_index,
        labels=np.array([label_of[item.name] for item in objects], dtype=np.int64),
        boxes=boxes,
        area=(boxes[:, 2:] - corner).prod(axis=1),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([item.difficult for item in objects], dtype=bool),
        image_sizes=np.array([annotation.size or (0, 0) for annotation in annotations], dtype=np.int64).reshape(-1, 2),
        image_files=[a.filename or f"{name}.jpg" for a, name in zip(annotations, image_ids, strict=True)],
        source=f"{root} ({image_set})",
    )


def _read_image_set(root: Path, image_set: str) -> list[str]:
    for folder in (root, root / "Annotations", root / "ImageSets" / "Main"):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: there is no such folder: --gt of format voc is a folder that holds Annotations/ and "
                "ImageSets/Main/ (for COCO's JSON: --format coco)"
            )
    path = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if not path.is_file():
        there = sorted(item.stem for item in path.parent.glob("*.txt"))
        raise UserError(
            f"{path}: there is no such image set{nearest(image_set, there)}: give --image-set with one of: "
            f"{', '.join(there[:10]) or 'none'}"
        )
    return listed_images(read_text(path, "image set"), path)


# ---------------------------------------------------------------------------------------------- COCO


def read_coco_ground_truth(path: Path) -> GroundTruth:
    """The annotations of a COCO JSON file, as pycocotools takes them.

    Images and classes are in the order of their sorted ids. What pycocotools passes over is passed over with a
    warning: annotations of images or categories that the file does not list.

    Raises:
        UserError: the file is missing or broken, or an annotation lacks something; names the annotation's place.
    """
    path = Path(path)
    with no_garbage_collection():
        content = read_json(path, "annotation file")
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a COCO annotation file (an object with images, annotations, categories)")
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                mend = "a test set without them cannot be scored" if key == "annotations" else "is it a results file?"
                raise UserError(f"{path}: has no list of {key}: {mend}")
        images = _by_id(path, content["images"], "image")
        categories = _by_id(path, content["categories"], "category")
        rows = Rows(path, content["annotations"], "annotation number", is_whole_file=False)
        return _coco_ground_truth(path, images, categories, rows)


def _by_id(path: Path, items: list[Any], what: str) -> dict[Any, dict[str, Any]]:
    """The records by id, in the order of the sorted ids; of equals the last, as in pycocotools."""
    rows = Rows(path, items, f"{what} number", is_whole_file=False)
    ids = rows.column("id", "each needs an id")
    if set(map(type, ids)) - {int, str, float}:
        bad = next(index for index, value in enumerate(ids) if type(value) not in (int, str, float))
        raise rows.error(bad, f"id is {ids[bad]!r}: give a number or text")
    by_id = dict(zip(ids, items, strict=True))
    if len(by_id) < len(items):
        logger.warning("%s: %d %s ids stand more than once; the last one counts", path, len(items) - len(by_id), what)
    try:
        return dict(sorted(by_id.items(), key=lambda item: item[0]))
    except TypeError:
        raise UserError(f"{path}: {what} ids are partly numbers and partly text: make them alike") from None


def _coco_ground_truth(
    path: Path, images: dict[Any, dict[str, Any]], categories: dict[Any, dict[str, Any]], rows: Rows
) -> GroundTruth:
    image_position = {identity: index for index, identity in enumerate(images)}
    label_of = {identity: label for label, identity in enumerate(categories, start=1)}
    image_index = rows.lookup("image_id", image_position, missing=-1)
    labels = rows.lookup("category_id", label_of, missing=0)
    boxes = rows.boxes("x, y, width, height")
    if all("area" in item for item in rows.items):
        area = rows.numbers("area", rows.column("area", ""))
    else:
        logger.warning("%s: annotations without an area (pycocotools refuses them): width * height is taken", path)
        area = np.array(
            [item.get("area", box[2] * box[3]) for item, box in zip(rows.items, boxes.tolist(), strict=True)]
        )
    iscrowd = np.array([bool(item.get("iscrowd", 0)) for item in rows.items], dtype=bool)
    last = _last_of_equal_ids(path, rows)
    known = (image_index >= 0) & (labels > 0)
    if not known.all():
        logger.warning(
            "%s: %d annotations belong to an image or a category that the file does not list; like pycocotools, "
            "this passes over them (first: annotation number %d)", path, (~known).sum(), int(np.argmin(known)),
        )  # fmt: skip
    keep = last[known & known[last]]
    return GroundTruth(
        frame="coco",
        image_ids=list(images),
        class_names=_distinct_names(path, categories),
        image_index=image_index[keep],
        labels=labels[keep],
        boxes=boxes[keep],
        area=area[keep],
        iscrowd=iscrowd[keep],
        difficult=np.zeros(len(keep), dtype=bool),
        image_sizes=np.array(
            [(int(item.get("height") or 0), int(item.get("width") or 0)) for item in images.values()], dtype=np.int64
        ).reshape(-1, 2),
        image_files=[str(item.get("file_name", "")) for item in images.values()],
        category_ids=list(categories),
        source=str(path),
    )


def _last_of_equal_ids(path: Path, rows: Rows) -> np.ndarray:
    """(M,) int64: for each annotation the one that pycocotools reads in its place, the last of its id."""
    ids = [item.get("id") for item in rows.items]
    everyone = np.arange(len(ids))
    if None in ids:
        return everyone
    if 0 in ids:
        logger.warning(
            "%s: annotation id 0: it is scored like any other (pycocotools itself would lose its match, so its numbers "
            "can be lower)", path,
        )  # fmt: skip
    last_of = {identity: index for index, identity in enumerate(ids)}
    if len(last_of) == len(ids):
        return everyone
    logger.warning(
        "%s: %d annotation ids stand more than once: pycocotools reads the last of them each time, and so does this; "
        "give each annotation its own id", path, len(ids) - len(last_of),
    )  # fmt: skip
    return np.array([last_of[identity] for identity in ids], dtype=np.int64)


def _distinct_names(path: Path, categories: dict[Any, dict[str, Any]]) -> list[str]:
    names = [str(item.get("name", identity)) for identity, item in categories.items()]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        logger.warning("%s: categories of the same name are told apart by id: %s", path, examples(sorted(twice)))
    return [
        f"{name} (id {identity})" if name in twice else name for name, identity in zip(names, categories, strict=True)
    ]
