"""Real data: published counts, one set in three formats, and every sample through the checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.detection import DataConfig
from datasets.build import build_dataset, build_records
from datasets.class_lists import COCO, VOC
from datasets.images import image_file_size, read_image
from datasets.records import Records
from datasets.target import SampleKey, check_sample
from datasets.voc import read_voc

EVERYTHING = {"hflip": 0.5, "vflip": 0.2, "crop": 0.5, "expand": 0.5, "photometric": {"p": 0.5}}
COCO128 = {
    "format": "coco",
    "images": "coco128/train2017",
    "annotations": "coco128/annotations/instances_train2017.json",
}


def voc(root: str, image_set: str) -> dict:
    return {"format": "voc", "root": root, "image_set": image_set}


def records_of(data_dir: Path, source: dict, **options) -> Records:
    return build_records(DataConfig(train=[source], **options), "train", data_dir)


# ------------------------------------------------------------------------------------------------ counts


def test_bccd_counts(data_dir: Path, caplog) -> None:
    sizes = {name: len(read_voc(data_dir / "bccd", name)) for name in ("train", "val", "trainval", "test")}
    assert sizes == {"train": 205, "val": 87, "trainval": 292, "test": 72}
    caplog.clear()
    data = DataConfig(train=[voc("bccd", "trainval"), voc("bccd", "test")])
    records = build_records(data, "train", data_dir)
    assert records.class_names == ["Platelets", "RBC", "WBC"]
    assert (len(records), len(records.boxes)) == (364, 4888)
    assert set(map(tuple, records.sizes)) == {(480, 640)}
    # the two boxes without extent, each file's objects being counted from 0
    text = caplog.text
    assert "BloodImage_00338.xml object 12 (RBC)" in text
    assert "BloodImage_00343.xml object 3 (RBC)" in text
    assert int((~records.trainable()).sum()) == 2


def test_voc2012_counts(data_dir: Path, caplog) -> None:
    records = records_of(data_dir, voc("voc2012_100", "all"), classes="voc")
    assert (len(records), len(records.boxes)) == (100, 273)
    assert int(records.difficult.sum()) == 38
    assert int(records.truncated.sum()) == 137
    assert sorted(set(records.labels.tolist())) == list(range(1, 21))
    assert records.class_names == VOC
    assert not caplog.records
    # 2007_000027.xml: a person at 174 101 349 351, in pixels from 1 with both ends
    first = records.objects(records.image_ids.tolist().index("2007_000027"))
    assert records.boxes[first].tolist() == [[173, 100, 349, 351]]


def test_coco128_counts(data_dir: Path) -> None:
    records = records_of(data_dir, COCO128, classes="coco")
    assert (len(records), len(records.boxes)) == (128, 939)
    assert int(records.iscrowd.sum()) == 10
    assert len(set(records.labels.tolist())) == 71
    assert int((np.diff(records.offsets) == 0).sum()) == 2
    assert records.class_names == COCO
    assert records.category_ids.tolist()[-1] == 90


def test_coco128_is_what_pycocotools_reads(data_dir: Path) -> None:
    from pycocotools.coco import COCO as Api

    api = Api(str(data_dir / COCO128["annotations"]))
    records = records_of(data_dir, COCO128, classes="coco")
    ids = {int(a): m for m, a in enumerate(records.annotation_ids)}
    image = records.image_of_object()
    assert set(ids) == set(api.anns)
    for annotation_id, annotation in api.anns.items():
        m = ids[annotation_id]
        x, y, width, height = annotation["bbox"]
        assert records.boxes[m].tolist() == [x, y, x + width, y + height]
        assert records.area[m] == annotation["area"]
        assert records.iscrowd[m] == bool(annotation["iscrowd"])
        assert records.category_ids[records.labels[m] - 1] == annotation["category_id"]
        assert records.image_ids[image[m]] == annotation["image_id"]


# ------------------------------------------------------------------------------------------------ formats


def test_bccd_as_coco_gives_identical_targets(data_dir: Path, bccd_as_coco: Path) -> None:
    options = {"min_size": [200, 240], "max_size": 320, "augment": EVERYTHING}
    as_voc = DataConfig(train=[voc("bccd", "trainval")], **options)
    as_coco = DataConfig(
        train=[{"format": "coco", "images": "bccd/JPEGImages", "annotations": str(bccd_as_coco)}], **options
    )
    first, second = (build_dataset(data, "train", data_dir, seed=5) for data in (as_voc, as_coco))
    assert first.class_names == second.class_names
    for i in range(len(first)):
        one, other = first.records.target(i), second.records.target(i)
        for name in vars(one):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (i, name)
    for i in range(0, len(first), 29):
        one, other = first[SampleKey(1, i)], second[SampleKey(1, i)]
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.target.boxes, other.target.boxes)


def test_bccd_as_yolo_gives_the_same_boxes(tmp_path: Path, data_dir: Path) -> None:
    records = read_voc(data_dir / "bccd", "val").subset(range(20))
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("\n".join(records.class_names))
    for i, name in enumerate(records.image_ids):
        (tmp_path / "images" / "val" / f"{name}.jpg").symlink_to(records.image_paths[i])
        height, width = records.image_size(i)
        x1, y1, x2, y2 = records.boxes[records.objects(i)].T / np.array([[width], [height]] * 2)
        rows = zip(records.labels[records.objects(i)] - 1, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, strict=True)
        text = "\n".join(f"{label} {cx} {cy} {w} {h}" for label, cx, cy, w, h in rows)
        (tmp_path / "labels" / "val" / f"{name}.txt").write_text(text)
    again = records_of(tmp_path, {"format": "yolo", "root": ".", "image_set": "val"})
    order = np.argsort(records.image_ids)
    for i, k in enumerate(order):
        assert again.image_ids[i] == records.image_ids[k]
        assert again.boxes[again.objects(i)] == pytest.approx(records.boxes[records.objects(k)], abs=1e-9)
        assert np.array_equal(again.labels[again.objects(i)], records.labels[records.objects(k)])


# ------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize(
    ("source", "classes", "step"),
    [(voc("bccd", "trainval"), "auto", 9), (voc("voc2012_100", "all"), "voc", 3), (COCO128, "coco", 3)],
    ids=["bccd", "voc2012", "coco128"],
)
def test_samples_pass_the_checker(data_dir: Path, source: dict, classes: str, step: int) -> None:
    options = {"min_size": [120, 160], "max_size": 240, "augment": EVERYTHING}
    data = DataConfig(train=[source], test=[source], classes=classes, test_min_size=150, test_max_size=250, **options)
    for split in ("train", "test"):
        dataset = build_dataset(data, split, data_dir)
        for i in range(0, len(dataset), step):
            sample = dataset[SampleKey(2, i)]
            check_sample(sample, num_classes=len(dataset.class_names))
            assert sample.image.shape[:2] == dataset.output_size(2, i)
            assert len(sample.target) == len(dataset.records.target(i))


def test_declared_sizes_are_those_of_the_files(data_dir: Path) -> None:
    for source in (voc("voc2012_100", "all"), COCO128):
        records = records_of(data_dir, source)
        for i in range(len(records)):
            assert image_file_size(str(records.image_paths[i]), records.image_size(i)) == records.image_size(i)


def test_decoder_agrees_with_pillow(data_dir: Path) -> None:
    records = records_of(data_dir, COCO128)
    for i in range(0, len(records), 4):
        path = str(records.image_paths[i])
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(read_image(path) - expected).mean() < 0.5
    paths = [path for path in map(str, records.image_paths) if Image.open(path).mode == "L"]
    assert len(paths) == 1
    image = read_image(paths[0])
    assert np.array_equal(image[..., 0], image[..., 2])
