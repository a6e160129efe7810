"""Mutated files of each format: read, or refused in one printable line, within seconds, and never silently changed.

Hundreds of mutations of each format run with the other tests, thousands with those marked slow. A case is a pure
function of its format and number, which a failure names; `run_case(format, number, folder)` repeats it.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from configs.detection import DetectionConfig
from configs.errors import MESSAGE_LIMIT, UserError
from configs.loading import load_config
from configs.pickles import PickleError, read_pickle
from datasets.cifar import read_cifar10
from datasets.coco import read_coco
from datasets.images import image_file_size, read_image
from datasets.records import Records
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from detection.evaluation.coco import evaluate_coco
from detection.evaluation.data import GroundTruth, align
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.results import read_detections, read_detections_together
from tests.fuzz.mutate import VALUES, as_json, mutate_bytes, mutate_text, mutate_tree, places

SECONDS = 10.0
"""Of CPU time; no case may take longer."""
SIZE = (48, 64)
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 15], "area": 250.5, "iscrowd": 0},
        {"id": 11, "image_id": 2, "category_id": 5, "bbox": [30, 10, 12, 24], "area": 287.5, "iscrowd": 1},
    ],
}
RESULTS = [
    {"image_id": image, "category_id": category, "bbox": [5.5, 6, 20, 15.25], "score": 0.75 - image / 10}
    for image, category in ((1, 1), (2, 5), (2, 1))
]
XML = """<?xml version="1.0" encoding="UTF-8"?>
<annotation><folder>v</folder><filename>a.png</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><truncated>1</truncated>
<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>20.5</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>30</xmin><ymin>10</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""
YAML = (
    "data:\n  train:\n    - {format: voc, root: my_data, image_set: train}\n  classes: [cat, dog]\n"
    "model: {backbone: resnet18, weights: random, norm: batch, frozen_stages: 0}\n"
    "optim: {name: sgd, lr: 0.01, reference_batch_size: 2}\nschedule: {iterations: 10, policy: constant}\n"
    "train: {batch_size: 2}\n"
)


def check_records(records: Records) -> None:
    """What a training makes of records that a reader let through."""
    assert np.isfinite(records.boxes).all()
    assert len(records.labels) == records.offsets[-1]
    for index in range(len(records)):
        target = records.target(index)
        height, width = records.image_size(index)
        assert (target.boxes >= 0).all()
        assert (target.boxes <= [width, height, width, height]).all()
        assert ((target.labels >= 1) & (target.labels <= len(records.class_names))).all()
    GroundTruth.from_records(records)


def coco(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_bytes(as_json(mutate_tree(COCO, rng), rng))
    check_records(read_coco(folder / "a.json", folder))


def coco_scored(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_bytes(as_json(mutate_tree(COCO, rng), rng))
    (folder / "dt.json").write_text(json.dumps(RESULTS))
    truth = read_coco_ground_truth(folder / "a.json")
    evaluate_coco(align(truth, read_detections(folder / "dt.json", truth)))


def coco_results(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_text(json.dumps(COCO))
    (folder / "dt.json").write_bytes(as_json(mutate_tree(RESULTS, rng), rng))
    truth = read_coco_ground_truth(folder / "a.json")
    evaluate_coco(align(truth, read_detections(folder / "dt.json", truth)))


def results_together(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_text(json.dumps(RESULTS))
    (folder / "b.json").write_bytes(as_json(mutate_tree(RESULTS, rng), rng))
    read_detections_together([folder / "a.json", folder / "b.json"])


def voc(folder: Path, rng: random.Random) -> None:
    (folder / "Annotations" / "a.xml").write_bytes(mutate_text(XML, rng))
    check_records(read_voc(folder, "train"))
    read_voc_ground_truth(folder, "train")


def voc_lists(folder: Path, rng: random.Random) -> None:
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(mutate_text("a\nb b 1\n", rng))
    (folder / "comp4_det_train_cat.txt").write_bytes(mutate_text("a .5 1 1 9 9\nb b .75 3 3 19 19\n", rng))
    check_records(read_voc(folder, "train"))
    read_detections(folder, read_voc_ground_truth(folder, "train"), "train")


def yolo(folder: Path, rng: random.Random) -> None:
    (folder / "labels" / "train" / "a.txt").write_bytes(mutate_text("0 .5 .5 .25 .5\n1 .1 .1 .4 .1 .4 .5\n", rng))
    if rng.random() < 0.5:
        (folder / "data.yaml").write_bytes(mutate_text("names: [cat, dog]\nnc: 2\nkpt_shape: null\n", rng))
    check_records(read_yolo(folder, "train"))


def config(folder: Path, rng: random.Random) -> None:
    (folder / "c.yaml").write_bytes(mutate_text(YAML, rng))
    load_config(folder / "c.yaml", [], DetectionConfig)


def images(folder: Path, rng: random.Random) -> None:
    picture, buffer, exif = Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)), io.BytesIO(), Image.Exif()
    exif[0x0112] = rng.randrange(10)
    picture.save(buffer, rng.choice(("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")), exif=exif)
    path = folder / "x.png"
    path.write_bytes(mutate_bytes(buffer.getvalue(), rng))
    for declared in (None, SIZE):
        size = image_file_size(path, declared)
        image = read_image(path, declared)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8


def pickles(folder: Path, rng: random.Random) -> None:
    content = {"blobs": {"conv1_w": np.arange(12, dtype=np.float32).reshape(3, 4)}, "labels": [1, 2], "x": (1.5, None)}
    data = mutate_bytes(pickle.dumps(content, rng.randrange(5)), rng)
    try:
        read_pickle(data)
    except PickleError as error:
        raise UserError(str(error)) from None


def cifar(folder: Path, rng: random.Random) -> None:
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [3, 9]}
    for number in range(1, 6):
        data = pickle.dumps(batch, 2)
        (folder / f"data_batch_{number}").write_bytes(mutate_bytes(data, rng) if number == 1 else data)
    assert read_cifar10(folder, "train").images.shape[1:] == (32, 32, 3)


FORMATS: dict[str, Callable[[Path, random.Random], None]] = {
    function.__name__: function
    for function in (
        coco, coco_scored, coco_results, results_together, voc, voc_lists, yolo, config, images, pickles, cifar,
    )
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small valid set in every layout."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages", "images/train", "labels/train"):
        (tmp_path / name).mkdir(parents=True)
    picture = np.full((*SIZE, 3), 128, np.uint8)
    for name in ("1", "2", "JPEGImages/a", "JPEGImages/b b", "images/train/a", "images/train/b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    for name in ("a", "b b"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(XML)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb b\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    return tmp_path


def run_case(name: str, number: int, folder: Path) -> bool:
    """Whether the mutated file was read; a refusal must be one printable line, and either must come soon."""
    start = time.process_time()
    try:
        FORMATS[name](folder, random.Random(f"{name} {number}"))
        read = True
    except UserError as error:
        message, read = " ".join(str(error).split()), False
        assert message.isprintable(), f"{name} {number}: control characters: {message!r}"
        assert 0 < len(message) < MESSAGE_LIMIT + 100, f"{name} {number}: {len(message)} characters"
    except Exception as error:
        raise AssertionError(f"{name} case {number}: {type(error).__name__} in place of one line") from error
    taken = time.process_time() - start
    assert taken < SECONDS, f"{name} case {number}: {taken:.1f} s"
    return read


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused_in_one_line(name: str, folder: Path) -> None:
    read = [run_case(name, number, folder) for number in range(300)]
    assert 0 < sum(read) < len(read)  # the mutations are neither harmless nor all fatal


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutated_files(name: str, folder: Path) -> None:
    for number in range(300, 10_000):
        run_case(name, number, folder)


def test_no_change_of_a_value_is_silent(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each value of a COCO file, replaced by each other one: an error, a warning, or other records."""
    (folder / "a.json").write_text(json.dumps(COCO))

    def digest() -> str:
        records = read_coco(folder / "a.json", folder)
        parts = (
            records.image_paths, records.image_ids, records.sizes, records.offsets, records.boxes, records.labels,
            records.area, records.iscrowd, records.annotation_ids, records.class_names, records.category_ids,
        )  # fmt: skip
        return repr([np.asarray(part).tolist() for part in parts])

    before = digest()
    for path in places(COCO):
        for value in VALUES if path else ():
            tree = json.loads(json.dumps(COCO))
            parent = tree
            for step in path[:-1]:
                parent = parent[step]
            if _same_meaning(parent[path[-1]], value, path[-1]):
                continue
            parent[path[-1]] = value
            (folder / "a.json").write_text(json.dumps(tree))
            caplog.clear()
            try:
                silent = digest() == before and not caplog.records
            except UserError:
                continue
            assert not silent, f"{'.'.join(map(str, path))} = {value!r:.60}"


def _same_meaning(old: object, new: object, key: object) -> bool:
    """0, false and null are one as a flag; a size that is not declared is read from the image; numbers by value."""
    unset = (key == "iscrowd" and not old and (new is None or new is False)) or (
        key in ("height", "width") and (new is None or new is False or new == 0)
    )
    alike = key == "iscrowd" and old == 1 and new is True
    return unset or alike or (type(old) in (int, float) and type(new) in (int, float) and old == new)
