"""Pictures of a set: which images, what is drawn on them, and the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.make_records import make_records
from datasets.records import Records
from detection.evaluation.data import Detections
from tools.runtime import pictures
from tools.runtime.pictures import choose_images, draw_image, picture_names, write_picture, write_pictures


def records_of(folder: Path, counts: list[int], *, annotated: bool = True) -> Records:
    """Grey images of 40 x 60 (H, W), each with so many boxes."""
    paths = []
    for number in range(len(counts)):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", (60, 40), "grey").save(paths[-1])
    total = sum(counts)
    return make_records(
        images=[(str(path), number, (40, 60)) for number, path in enumerate(paths)],
        boxes=[[5.0, 5.0, 20.0, 30.0]] * total, labels=[2] * total, counts=counts, class_names=["cat", "dog"],
        source="made", annotation_file="x.xml", annotated=annotated,
    )  # fmt: skip


def test_images_are_spread_over_those_with_objects(tmp_path):
    records = records_of(tmp_path, [1, 0, 1, 1, 0, 1, 1])
    assert choose_images(records, 3) == [0, 3, 6]
    assert choose_images(records, 5) == [0, 2, 3, 5, 6]
    assert choose_images(records, 6) == [0, 1, 2, 4, 5, 6]  # too few have objects
    assert choose_images(records, 99) == list(range(7))
    assert choose_images(records_of(tmp_path, [0, 0, 0], annotated=False), 2) == [0, 2]


def found(*rows: tuple[int, float]) -> Detections:
    """An image and a score each, of one box, in COCO's frame."""
    return Detections(
        frame="coco", image_ids=[0, 1], class_names=["cat", "dog"], image_index=np.array([row[0] for row in rows]),
        labels=np.ones(len(rows), np.int64), boxes=np.array([[30.0, 10, 20, 15]] * len(rows)),
        scores=np.array([row[1] for row in rows]),
    )  # fmt: skip


def test_what_is_drawn(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Sure detections of this image alone, as corners; the ground truth; an enlargement to about 480 pixels."""
    asked = []
    monkeypatch.setattr(pictures, "draw_detections", lambda *args, **options: asked.append((args, options)) or args[0])
    records = records_of(tmp_path, [1, 0])
    detections = found((0, 0.5), (0, 0.49), (1, 0.9), (0, 0.8))
    draw_image(records, detections, 0)
    (image, boxes, labels, scores, names), options = asked[0]
    assert image.shape == (40, 60, 3)
    assert boxes.tolist() == [[30, 10, 50, 25]] * 2
    assert (labels.tolist(), scores.tolist(), names) == ([1, 1], [0.5, 0.8], ["cat", "dog"])
    assert options["scale"] == 12
    assert options["truth_boxes"].tolist() == [[5, 5, 20, 30]]
    assert options["truth_labels"].tolist() == [2]
    draw_image(records_of(tmp_path, [0, 0], annotated=False), detections, 1)
    assert asked[1][1]["truth_boxes"] is asked[1][1]["truth_labels"] is None


def test_files(tmp_path):
    records = records_of(tmp_path, [1, 1])
    write_pictures(tmp_path / "out", records, found((0, 0.9)), count=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "overview.png"]
    with Image.open(tmp_path / "out/0.png") as first, Image.open(tmp_path / "out/1.png") as second:
        assert first.size == (60 * 12, 40 * 12)
        assert np.any(np.asarray(first) != np.asarray(second))  # the detection is in the first alone


@pytest.mark.parametrize(("suffix", "format_name"), [(".png", "PNG"), (".JPG", "JPEG"), (".odd", "PNG")])
def test_the_suffix_decides_the_format(tmp_path, suffix, format_name):
    picture = np.full((4, 6, 3), (250, 10, 20), np.uint8)
    write_picture(tmp_path / f"x{suffix}", picture)
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert (image.format, image.size) == (format_name, (6, 4))
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture).max() <= 8  # red stays red


def test_no_two_images_share_a_picture():
    paths = [Path("x/a.bmp"), Path("x/a.bmp.png"), Path("y/a.jpg"), Path("y/A.png"), Path("overview.jpg")]
    assert picture_names(paths) == ["a.png", "a.bmp.png", "a-2.png", "A-3.png", "overview-2.png"]
