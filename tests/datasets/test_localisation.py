"""Readers of localisation sets: both layouts, their coordinates, and what is wrong in real files."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import UserError
from configs.localisation import LocalisationSourceConfig
from datasets.localisation import image_labels, read_localisation

TINY = {"format": "tiny_imagenet", "root": "tiny"}
IMAGENET = {"format": "imagenet_loc", "root": "ILSVRC"}


def write(path: Path, size: tuple[int, int], *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size if grey else (*size, 3), 90, np.uint8))


def xml(size: tuple[int, int], *objects: tuple[str, int, int, int, int]) -> str:
    inside = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    sizes = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>%s</filename>{sizes}{inside}</annotation>"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    for wnid, lines in {"n02": ["a\t3\t5\t20\t30", "b\t7\t40\t7\t60"], "n01": ["c\t0\t0\t63\t31"]}.items():
        for line in lines:
            write(root / "train" / wnid / "images" / f"{wnid}_{line[0]}.JPEG", (48, 64), grey=line[0] == "c")
        text = "".join(f"{wnid}_{line[0]}.JPEG{line[1:]}\n" for line in lines)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(text)
    for number in (0, 1):
        write(root / "val/images" / f"val_{number}.JPEG", (64, 64))
    (root / "val/val_annotations.txt").write_text("val_1.JPEG\tn01\t1\t2\t3\t40\nval_0.JPEG\tn02\t0\t0\t63\t63\n")
    return tmp_path


def read(root: Path, values: dict, split: str, **more: object):
    return read_localisation(LocalisationSourceConfig(**values, split=split), root, **more)


def test_images_without_a_line_are_told(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read(tiny, TINY, "val")) == 2
        assert "without a line" not in caplog.text
        (tiny / "tiny/train/n02/n02_boxes.txt").write_text("")
        assert read(tiny, TINY, "train").class_names == ["n01"]
    assert f"2 images without a line left out: {tiny}/tiny/train/n02/images/n02_a.JPEG, ..." in caplog.text


def test_tiny_imagenets_boxes_are_edges_as_they_stand(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        train = read(tiny, TINY, "train")
    assert train.class_names == ["n01", "n02"]
    assert train.image_ids.tolist() == ["n01_c", "n02_a", "n02_b"]
    assert image_labels(train).tolist() == [0, 1, 1]
    assert train.boxes.tolist() == [[0, 0, 63, 31], [3, 5, 20, 30], [7, 40, 7, 60]]
    assert train.sizes.tolist() == [[48, 64]] * 3
    assert train.target(1).boxes.tolist() == [[3, 5, 20, 30]]
    assert len(train.target(2)) == 0, "a box without a width is not trained on"
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 2
    assert "1 grey image, read as RGB: n01_c.JPEG" in reports[0]
    assert "1 object at most 1 pixel wide" in reports[1]
    assert "n02_b object 0 (n02)" in reports[1]
    val = read(tiny, TINY, "val", class_names=train.class_names)
    assert val.image_ids.tolist() == ["val_1", "val_0"]
    assert image_labels(val).tolist() == [0, 1]
    assert val.boxes[0].tolist() == [1, 2, 3, 40]
    listed = tiny / "tiny/val/val_annotations.txt"
    once = listed.read_text()
    listed.write_text(once + "val_1.JPEG\tn01\t1\t2\t3\t40\nval_1.JPEG\tn01\t5\t6\t7\t8\n")
    assert read(tiny, TINY, "val").offsets.tolist() == [0, 2, 3]
    listed.write_text(once + "val_1.JPEG\tn02\t1\t2\t3\t40\n")
    with pytest.raises(UserError, match=r":3 \(val_1.JPEG\): is of n02 here, but of n01 above"):
        read(tiny, TINY, "val")
    listed.write_text(once)
    (tiny / "tiny/val/images/val_1.JPEG").rename(tiny / "tiny/val/images/val 1.JPEG")
    listed.write_text(once.replace("val_1", "val 1"))
    assert read(tiny, TINY, "val", class_names=train.class_names).boxes[0].tolist() == [1, 2, 3, 40]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n02_a.JPEG 3 5 20", r"n02_boxes\.txt:1 \(n02_a\.JPEG\): 3 5 20 is not a box"),
        ("n02_a.JPEG 3 5 x 9", r"n02_boxes\.txt:1 \(n02_a\.JPEG\): 3 5 x 9 is not a box"),
        ("n02_a.JPEG 20 5 3 30", r"n02_boxes\.txt:1 \(n02_a\.JPEG\): the box 20 5 3 30 ends before it begins"),
        ("n02_aa.JPEG 1 1 2 2", r"n02_boxes\.txt:1 \(n02_aa\.JPEG\): no such image in .*did you mean n02_a"),
    ],
)
def test_a_bad_line_is_named(tiny, line, words):
    (tiny / "tiny/train/n02/n02_boxes.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=words):
        read(tiny, TINY, "train")


def test_missing_files_are_named(tiny):
    (tiny / "tiny/train/n02/n02_boxes.txt").unlink()
    with pytest.raises(UserError, match=r"n02_boxes\.txt: there is no such file of boxes"):
        read(tiny, TINY, "train")
    with pytest.raises(UserError, match=r"tinny.*No such file"):
        read(tiny, {**TINY, "root": "tinny"}, "train")
    with pytest.raises(UserError, match="n02 is none of the 1 class"):
        read(tiny, TINY, "val", class_names=["n01"])


def test_a_set_without_boxes_is_refused(tiny, tmp_path):
    for wnid in ("n01", "n02"):
        (tmp_path / f"tiny/train/{wnid}/{wnid}_boxes.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"tiny/train: holds no image with a box"):
        read(tiny, TINY, "train")
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty/train: has neither class folders nor val_annotations\.txt"):
        read(tiny, {**TINY, "root": "empty"}, "train")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "ILSVRC"
    files = {
        "train/n02/n02_7": xml((40, 60), ("n02", 0, 4, 59, 39), ("n02", 10, 10, 19, 12)),
        "train/n01/n01_3": xml((30, 20), ("n01", 2, 3, 2, 9)),
        "train/n01/n01_4": xml((30, 20)),
        "val/ILSVRC2012_val_00000002": xml((10, 20), ("n02", 1, 1, 4, 4)),
        "val/ILSVRC2012_val_00000001": xml((10, 20), ("n01", 1, 1, 4, 4)),
    }
    for name, text in files.items():
        path = root / "Annotations/CLS-LOC" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        write(root / "Data/CLS-LOC" / f"{name}.JPEG", (40, 60))
    write(root / "Data/CLS-LOC/train/n01/n01_9.JPEG", (40, 60))  # most of ImageNet's images have no box
    (root / "Annotations/CLS-LOC/train/n01/._n01_3.xml").write_bytes(b"\0\5\x16\7")  # macOS' note about a file
    return tmp_path


def test_imagenets_xml_includes_both_ends(imagenet, caplog):
    with caplog.at_level(logging.WARNING):
        train = read(imagenet, IMAGENET, "train")
    assert train.image_ids.tolist() == ["n01_3", "n02_7"]
    assert train.offsets.tolist() == [0, 1, 3]
    assert train.boxes.tolist() == [[2, 3, 3, 10], [0, 4, 60, 40], [10, 10, 20, 13]]
    assert train.sizes.tolist() == [[30, 20], [40, 60]]
    assert "1 image without a box left out" in caplog.text
    assert "n01_4" in caplog.text
    assert caplog.text.count("at most 1 pixel wide") == 1
    val = read(imagenet, IMAGENET, "val", class_names=train.class_names)
    assert val.image_ids.tolist() == ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"]
    assert image_labels(val).tolist() == [0, 1]


def test_imagenets_folders_may_lie_elsewhere(imagenet):
    (imagenet / "ILSVRC/Annotations/CLS-LOC").rename(imagenet / "xml")
    (imagenet / "ILSVRC/Data/CLS-LOC").rename(imagenet / "jpeg")
    values = {**IMAGENET, "annotations": "xml/train", "images": "jpeg/train"}
    assert len(read(imagenet, values, "train")) == 2
    with pytest.raises(UserError, match=r"Annotations/CLS-LOC/train: No such file"):
        read(imagenet, IMAGENET, "train")


def test_annotations_may_lie_beside_the_images(imagenet):
    """An image is the file with an image's suffix, not any of its name."""
    (imagenet / "ILSVRC/Data/CLS-LOC").rename(imagenet / "all")
    for file in (imagenet / "ILSVRC/Annotations/CLS-LOC").rglob("*.xml"):
        beside = imagenet / "all" / file.relative_to(imagenet / "ILSVRC/Annotations/CLS-LOC")
        beside.write_bytes(file.read_bytes())
        beside.with_suffix(".txt").write_text("")
    records = read(imagenet, {**IMAGENET, "annotations": "all/train", "images": "all/train"}, "train")
    assert len(records) == 2
    assert all(path.endswith(".JPEG") for path in records.image_paths)


def test_bad_xml_is_named_with_its_object(imagenet):
    annotations = imagenet / "ILSVRC/Annotations/CLS-LOC/train"
    good = (annotations / "n02/n02_7.xml").read_text()
    (annotations / "n02/n02_7.xml").write_text(good.replace("<xmin>10</xmin>", "<xmin>ten</xmin>"))
    with pytest.raises(UserError, match=r"n02_7\.xml object 1: <bndbox><xmin> is 'ten', not a number"):
        read(imagenet, IMAGENET, "train")
    (annotations / "n02/n02_7.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"n02_7\.xml: not a valid annotation file"):
        read(imagenet, IMAGENET, "train")
    (annotations / "n02/n02_7.xml").rename(annotations / "n02/n02_8.xml")
    with pytest.raises(UserError, match=r"n02_8\.xml: its image .*n02_8\.JPEG is missing"):
        read(imagenet, IMAGENET, "train")
