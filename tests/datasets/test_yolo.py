"""The YOLO reader: fractions by hand, both layouts, names from every place they may stand in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from datasets.yolo import read_class_names, read_yolo


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, size in [("a", (40, 20)), ("b", (30, 60)), ("c", (10, 10))]:  # width, height
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "images" / "train" / f"{name}.png")
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.125 0.25 0.25 0.5\n")
    (labels / "b.txt").write_text("0 0.1 0.2 0.9 0.3 0.5 0.7\n")  # a triangle
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
    return tmp_path


def test_fractions_by_hand(root: Path) -> None:
    records = read_yolo(root, "train")
    assert records.image_ids.tolist() == ["a", "b", "c"]
    assert records.sizes.tolist() == [[20, 40], [60, 30], [10, 10]]
    # a: 40 wide, 20 high: the centre 20, 10 and the size 10, 10; b: the triangle's bounding box of 30 by 60
    assert records.boxes == pytest.approx(np.array([[15, 5, 25, 15], [0, 0, 10, 10], [3, 12, 27, 42]]))
    assert records.labels.tolist() == [2, 1, 1]
    assert records.offsets.tolist() == [0, 2, 3, 3]
    assert records.annotated


def test_other_layout_and_unannotated(tmp_path: Path) -> None:
    folder = tmp_path / "valid" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(folder / "a.jpg")
    records = read_yolo(tmp_path, "valid", class_names=["cat"])
    assert not records.annotated
    (tmp_path / "valid" / "labels").mkdir()
    (tmp_path / "valid" / "labels" / "a.txt").write_text("0 .5 .5 1 1")
    records = read_yolo(tmp_path, "valid", class_names=["cat"])
    assert records.annotated
    assert records.boxes.tolist() == [[0, 0, 40, 20]]


def test_rotated_photo_is_measured_as_a_viewer_shows_it(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(root / "images" / "train" / "d.jpg", exif=exif)
    (root / "labels" / "train" / "d.txt").write_text("0 0.5 0.5 1 0.5")
    records = read_yolo(root, "train")
    assert records.sizes[3].tolist() == [40, 20]
    assert records.boxes[-1].tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data.yaml", "names: {1: dog, 0: cat}", ["cat", "dog"]),
        ("data.yml", "names: [1, 2]", ["1", "2"]),
        ("classes.txt", "cat\ndog\n\n", ["cat", "dog"]),
        ("obj.names", "cat\n", ["cat"]),
        ("labels/classes.txt", "dog\ncat", ["dog", "cat"]),
        ("labels/train/classes.txt", "cat", ["cat"]),
    ],
)
def test_names(tmp_path: Path, file: str, text: str, names: list[str]) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert read_class_names(tmp_path, "train") == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 .5 .5 .1\n", "line 1: has 3 numbers after the class"),
        ("0 .5 .5 .1 .1\n0 .5 .5 .1 x\n", "line 2: '0 .5 .5 .1 x' has something that is not a number"),
        ("2 .5 .5 .1 .1", "line 1: class 2 is not one of 0 to 1"),
        ("0.5 .5 .5 .1 .1", "line 1: class 0.5 is not one of 0 to 1"),
        ("-1 .5 .5 .1 .1", "line 1: class -1 is not one of 0 to 1"),
        ("nan .5 .5 .1 .1", "line 1: class nan is not one of 0 to 1"),
        ("0 nan .5 .1 .1", "a coordinate is not a finite number"),
    ],
)
def test_mistakes_are_named(root: Path, text: str, said: str) -> None:
    (root / "labels" / "train" / "b.txt").write_text(text)
    with pytest.raises(UserError) as error:
        read_yolo(root, "train")
    assert said in str(error.value)
    assert "b.txt" in str(error.value)


def test_missing_things(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such folder \(did you mean train\?\)"):
        read_yolo(root, "tran")
    (root / "data.yaml").write_text("names: {0: cat, 2: dog}")
    with pytest.raises(UserError, match="numbered 0 to 1"):
        read_yolo(root, "train")
    (root / "data.yaml").write_text("names: [cat")
    with pytest.raises(UserError, match=r"data\.yaml: not valid YAML"):
        read_yolo(root, "train")
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"list the names in data\.classes"):
        read_yolo(root, "train")
    assert read_yolo(root, "train", class_names=["x", "y"]).class_names == ["x", "y"]
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        read_yolo(root, "empty", class_names=["x"])
