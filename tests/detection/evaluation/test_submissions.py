"""Submission files field by field against their descriptions."""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile

import numpy as np
import pytest

from datasets.class_lists import IMAGENET_DET, IMAGENET_DET_WNIDS
from detection.evaluation.data import Detections
from detection.evaluation.submissions import (
    coco_name,
    is_imagenet_det,
    write_imagenet_cls,
    write_imagenet_loc,
    write_kaggle_loc,
    write_submission,
)


class Found:
    """Detections of one image, continuous pixels from 0."""

    def __init__(self, boxes, scores, labels) -> None:
        self.boxes, self.scores, self.labels = np.array(boxes, float), np.array(scores), np.array(labels)


def test_imagenet_dets_single_file(tmp_path):
    names = ["zebra", "accordion"]  # the checkpoint's own order does not matter
    images = ["ILSVRC2012_test_00000009", "ILSVRC2012_test_00000001"]
    # the box of the pixels 3..10 across and 4..20 down, counted from 0
    parts = [Found([[3, 4, 11, 21]], [0.25], [2]), Found([[0, 0, 1, 1], [5, 5, 9, 9]], [0.5, 0.125], [1, 2])]
    detections = Detections.from_images(images, parts, names, frame="voc")
    path = write_submission(
        tmp_path, detections, annotation_file="x", detections_json=tmp_path / "d.json", comp4=[tmp_path / "c.txt"]
    )
    assert path.name == "submission.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    assert lines[0] == ["1", "1", "0.25", "3.0", "4.0", "10.0", "20.0"]
    assert lines[1] == ["2", "200", "0.5", "0.0", "0.0", "0.0", "0.0"]
    assert lines[2] == ["2", "1", "0.125", "5.0", "5.0", "8.0", "8.0"]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("names", "image", "expected"),
    [
        (list(IMAGENET_DET), "ILSVRC2012_test_00000009", True),
        (["zebra"], "ILSVRC2012_test_00000009", True),
        (["zebra", "no such"], "ILSVRC2012_test_00000009", False),
        (["zebra"], "000009", False),
    ],
)
def test_what_is_sent_to_imagenet(names, image, expected):
    """The classes of DET, all or some, on its images."""
    detections = Detections.from_images([image], [Found(np.zeros((0, 4)), [], [])], names, frame="voc")
    assert is_imagenet_det(detections) == expected


def test_the_ids_of_imagenet_det_are_those_of_the_development_kit():
    # synsets(1).WNID ... of meta_det.mat: accordion n02672831, airplane n02691156, ant n02219486, ..., zebra n02391049
    wnids = list(IMAGENET_DET_WNIDS)
    assert (len(IMAGENET_DET), IMAGENET_DET[0], IMAGENET_DET[199]) == (200, "accordion", "zebra")
    assert (wnids[0], wnids[1], wnids[2], wnids[199]) == ("n02672831", "n02691156", "n02219486", "n02391049")


def test_vocs_archive(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").write_text("x 0.5 1 1 2 2\n")
    detections = Detections.from_images(["x"], [Found([[0, 0, 2, 2]], [0.5], [1])], ["cat"], frame="voc")
    path = write_submission(
        tmp_path, detections, annotation_file="x", detections_json=tmp_path / "d.json",
        comp4=[tmp_path / "comp4_det_test_cat.txt"],
    )  # fmt: skip
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["results/VOC2012/Main/comp4_det_test_cat.txt"]


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ("coco/annotations/image_info_test-dev2015.json", "detections_test-dev2015_frcnn_results.json"),
        ("coco/annotations/image_info_test-dev2017.json image {}", "detections_test-dev2017_frcnn_results.json"),
        ("image_info_test2015.json", "detections_test2015_frcnn_results.json"),
        ("my.json", "detections_test-dev2017_frcnn_results.json"),
    ],
)
def test_cocos_archive_is_named_by_its_set(tmp_path, annotations, name):
    assert coco_name(annotations) == name
    saved = tmp_path / "detections.json"
    saved.write_text(json.dumps([{"image_id": 1}]))
    detections = Detections.from_images([1], [Found(np.zeros((0, 4)), [], [])], ["cat"], frame="coco")
    path = write_submission(tmp_path, detections, annotation_file=annotations, detections_json=saved, comp4=[])
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [name]
        assert json.loads(archive.read(name)) == [{"image_id": 1}]


# classes in the labels' order, and their ILSVRC2012_ID, which is not that order
NUMBERS = [449, 450, 442, 192, 7, 1000]


def test_imagenets_classification_file(tmp_path):
    """The kit's readme of 2012, task 1: a line an image, in it at most five ILSVRC2012_IDs, the surest first."""
    write_imagenet_cls(tmp_path / "s.txt", np.array([[5, 0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 5]]), NUMBERS)
    assert (tmp_path / "s.txt").read_text() == "1000 449 450 442 192\n7 192 442 450 449\n"
    write_imagenet_cls(tmp_path / "s.txt", np.array([[1, 0]]), NUMBERS)  # two classes in all
    assert (tmp_path / "s.txt").read_text() == "450 449\n"


def test_imagenets_localisation_file(tmp_path):
    """The kit's readme, task 2: a line an image, in it at most five times label xmin ymin xmax ymax."""
    # the pixels 3..10 across and 4..20 down, counted from 0; a fraction
    boxes = np.array([[[3, 4, 11, 21], [0.5, 0, 100.125, 30]], [[0, 0, 1, 1], [2, 2, 4, 4]]], np.float32)
    write_imagenet_loc(tmp_path / "s.txt", np.array([[5, 0], [3, 4]]), boxes, NUMBERS)
    lines = [[float(field) for field in line.split()] for line in (tmp_path / "s.txt").read_text().splitlines()]
    assert lines == [[1000, 3, 4, 10, 20, 449, 0.5, 0, 99.12, 29], [192, 0, 0, 0, 0, 7, 2, 2, 3, 3]]
    assert (tmp_path / "s.txt").read_text().startswith("1000 3.0 4.0 10.0 20.0 449 ")  # labels are whole numbers
    many = np.full((1, 7, 4), 2, np.float32)
    write_imagenet_loc(tmp_path / "s.txt", np.arange(6)[None, [0, 1, 2, 3, 4, 5, 0]], many, NUMBERS)
    assert len((tmp_path / "s.txt").read_text().split()) == 5 * 5


def test_kaggles_localisation_file(tmp_path):
    """LOC_sample_submission.csv: ImageId, PredictionString of whole numbers, label x_min y_min x_max y_max, up to 5."""
    boxes = np.array([[[3, 4, 11, 21], [0.4, 0, 100.6, 30]], [[0, 0, 1, 1], [2, 2, 4, 4]]], np.float32)
    images = ["ILSVRC2012_test_00000001", "ILSVRC2012_test_00000002"]
    write_kaggle_loc(tmp_path / "s.csv", images, np.array([[5, 0], [3, 4]]), boxes, [1, 20, 300, 400, 500, 1000])
    header, *rows = csv.reader((tmp_path / "s.csv").read_text().splitlines())
    assert header == ["ImageId", "PredictionString"]
    assert [name for name, _ in rows] == images
    found = [list(map(int, text.split(" "))) for _, text in rows]
    # the pixels 3..10 across and 4..20 down, counted from 0; 0.4 and 100.6 - 1 are rounded
    assert found == [[1000, 3, 4, 10, 20, 1, 0, 0, 100, 29], [400, 0, 0, 0, 0, 500, 2, 2, 3, 3]]
    many = np.full((1, 7, 4), 2, np.float32)
    write_kaggle_loc(tmp_path / "s.csv", images[:1], np.arange(7)[None] % 6, many, NUMBERS)
    assert (tmp_path / "s.csv").read_text() == (
        "ImageId,PredictionString\nILSVRC2012_test_00000001,449 2 2 1 1 450 2 2 1 1 442 2 2 1 1 192 2 2 1 1 7 2 2 1 1\n"
    )
