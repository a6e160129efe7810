"""Files for evaluation servers: what a test set without annotations ends with. Imports no torch.

| server | file |
|---|---|
| VOC 2012 | submission.tar.gz of results/VOC2012/Main/comp4_det_test_<class>.txt |
| COCO | submission.zip of detections_<set>_frcnn_results.json, with the set of the annotations (test-dev2015) |
| ImageNet DET | submission.txt: a line for each detection, see `write_imagenet_det` |
| ImageNet classification | submission.txt: a line for each image, see `write_imagenet_cls` |
| ImageNet localisation | submission.txt: a line for each image, see `write_imagenet_loc` |
| the same at Kaggle | submission.csv: a row for each image, see `write_kaggle_loc` |
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.files import replacing, write_text
from datasets.class_lists import IMAGENET_DET
from detection.evaluation.data import Detections
from detection.evaluation.write import rows_of

_GUESSES = 5
"""Classes of an image that ImageNet's servers count."""
COCO_SET = re.compile(r"(test-dev|test|val|train)(20\d\d)")


def write_submission(
    folder: Path, detections: Detections, *, annotation_file: str, detections_json: Path, comp4: Sequence[Path]
) -> Path:
    """The file for the server of the data set that the detections are of.

    Args:
        folder: where to.
        detections: of the whole set, images in its order.
        annotation_file: what the set was read from (COCO's says which set it is).
        detections_json: as it was written (COCO).
        comp4: the files of the classes, as they were written (VOC); empty for COCO.
    """
    if is_imagenet_det(detections):
        path = folder / "submission.txt"
        write_imagenet_det(path, detections)
    elif comp4:
        path = folder / "submission.tar.gz"
        with replacing(path) as temporary, tarfile.open(temporary, "w:gz") as archive:
            for file in comp4:
                archive.add(file, f"results/VOC2012/Main/{file.name}")
    else:
        path = folder / "submission.zip"
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(detections_json, coco_name(annotation_file))
    return path


def is_imagenet_det(detections: Detections) -> bool:
    """Whether these are detections of ImageNet DET's classes on its images."""
    images = detections.image_ids
    return set(detections.class_names) <= set(IMAGENET_DET) and bool(images) and str(images[0]).startswith("ILSVRC")


def write_imagenet_det(path: Path, detections: Detections) -> None:
    """Write a line for each detection: image index, class id, score, xmin, ymin, xmax, ymax.

    The index counts the images of the list (ImageSets/DET/test.txt) from 1; the id is ILSVRC2014_DET_ID, 1..200, the
    place of the class among the names in `IMAGENET_DET`; pixels count from 0 and both ends are included, as in the
    annotations. (Development kit of ILSVRC 2014, readme.)
    """
    ids = [0, *(IMAGENET_DET.index(name) + 1 for name in detections.class_names)]
    rows = rows_of(detections, detections.voc_boxes - 1.0)
    lines = [f"{image + 1} {ids[label]} {score!r} {' '.join(map(repr, box))}\n" for image, label, box, score in rows]
    write_text(path, "".join(lines))


def write_imagenet_cls(path: Path, classes: np.ndarray, numbers: Sequence[int]) -> None:
    """Write a line for each image: the numbers of up to five classes, best first (ILSVRC 2012, task 1).

    Args:
        path: file to be written.
        classes: (N, T) int64, 0..K-1, of the images in the order of their names.
        numbers: ILSVRC2012_ID of each of the K classes, 1..1000, from the development kit's meta.mat.
    """
    rows = np.asarray(numbers)[classes[:, :_GUESSES]].tolist()
    write_text(path, "".join(" ".join(map(str, row)) + "\n" for row in rows))


def write_imagenet_loc(path: Path, classes: np.ndarray, boxes: np.ndarray, numbers: Sequence[int]) -> None:
    """Write a line for each image: up to five times label, xmin, ymin, xmax, ymax, best first (ILSVRC 2012, task 2).

    Pixels count from 0 and both ends are included, as in the annotations.

    Args:
        path, classes, numbers: see `write_imagenet_cls`.
        boxes: (N, T, 4) of each class, continuous pixels of the images.
    """
    pixels = (boxes[:, :_GUESSES].astype(np.float64) - (0, 0, 1, 1)).round(2).tolist()
    labels = np.asarray(numbers)[classes[:, :_GUESSES]].tolist()
    lines = (
        " ".join(f"{label} {' '.join(map(repr, box))}" for label, box in zip(row, of_row, strict=True))
        for row, of_row in zip(labels, pixels, strict=True)
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_kaggle_loc(
    path: Path, image_ids: Sequence[str], classes: np.ndarray, boxes: np.ndarray, numbers: Sequence[int]
) -> None:
    """Write a CSV of ImageId and PredictionString: up to five times label, x_min, y_min, x_max, y_max, best first.

    The fields of a prediction are whole numbers, as the competition's description of LOC_sample_submission.csv says
    (ImageNet Object Localization Challenge); pixels count as in `write_imagenet_loc`.

    Args:
        path, classes, boxes: see `write_imagenet_loc`.
        image_ids: N names of files without suffix.
        numbers: Kaggle's number of each of the K classes, 1..1000: its line in LOC_synset_mapping.txt.
    """
    pixels = np.rint(boxes[:, :_GUESSES].astype(np.float64) - (0, 0, 1, 1)).astype(np.int64)
    labels = np.asarray(numbers)[classes[:, :_GUESSES]]
    predictions = np.concatenate((labels[:, :, None], pixels), axis=2).reshape(len(labels), -1).tolist()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("ImageId", "PredictionString"))
    rows.writerows((name, " ".join(map(str, row))) for name, row in zip(image_ids, predictions, strict=True))
    write_text(path, text.getvalue())


def coco_name(annotation_file: str) -> str:
    """The results' name as COCO's server wants it: detections_<set>_<algorithm>_results.json."""
    found = COCO_SET.search(Path(annotation_file.split(" image ")[0]).name)
    return f"detections_{found[0] if found else 'test-dev2017'}_frcnn_results.json"
