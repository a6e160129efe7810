"""ImageNet DET's layout: lists, halves of val, the cap on images of a class, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from configs.detection import DataConfig
from configs.errors import UserError
from datasets.build import build_dataset, build_records
from datasets.class_lists import IMAGENET_DET
from datasets.imagenet_det import balanced_halves, read_imagenet_det
from datasets.target import SampleKey, check_sample

ACCORDION, AIRPLANE, ANT = "n02672831", "n02691156", "n02219486"
"""The first three classes, in the official order."""


def write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def write(root: Path, name: str, objects: list, split: str = "val", size: tuple[int, int] = (30, 40)) -> None:
    xml = root / "Annotations/DET" / split / f"{name}.xml"
    xml.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "</object>"
        for wnid, (x1, y1, x2, y2) in objects
    )
    xml.write_text(f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{text}</annotation>")
    write_image(root / "Data/DET" / split / f"{name}.JPEG", size)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four val images, five of train, one of test."""
    root = tmp_path / "ILSVRC"
    lists = root / "ImageSets/DET"
    lists.mkdir(parents=True)
    val = {
        "ILSVRC2012_val_00000001": [(ACCORDION, (0, 3, 19, 29)), (AIRPLANE, (4, 4, 39, 20))],
        "ILSVRC2012_val_00000002": [(ACCORDION, (5, 5, 25, 25))],
        "ILSVRC2012_val_00000003": [],
        "ILSVRC2012_val_00000004": [(AIRPLANE, (5, 5, 25, 25))],
    }
    for name, objects in val.items():
        write(root, name, objects)
    (lists / "val.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(val, 1)))
    for wnid in (ACCORDION, AIRPLANE):
        for i in (1, 2):
            write(root, f"ILSVRC2013_train/{wnid}/{wnid}_{i}", [(wnid, (2, 2, 20, 20))], "train")
    write(
        root,
        "ILSVRC2014_train_0000/ILSVRC2014_train_00000007",
        [(ANT, (1, 1, 9, 9)), (AIRPLANE, (2, 2, 20, 20))],
        "train",
    )
    for number in range(1, 201):
        (lists / f"train_{number}.txt").write_text("")
    both = "ILSVRC2014_train_0000/ILSVRC2014_train_00000007"
    (lists / "train_1.txt").write_text(
        "".join(f"ILSVRC2013_train/{ACCORDION}/{ACCORDION}_{i} 1\n" for i in (1, 2)) + f"{both} -1\n"
    )
    (lists / "train_2.txt").write_text(
        "".join(f"ILSVRC2013_train/{AIRPLANE}/{AIRPLANE}_{i} 1\n" for i in (1, 2)) + f"{both} 1\n"
    )
    (lists / "train_3.txt").write_text(f"{both} 1\nILSVRC2013_train_extra0/ILSVRC2013_train_00000001 -1\n")
    write_image(root / "Data/DET/test/ILSVRC2012_test_00000001.JPEG", (30, 40))
    (lists / "test.txt").write_text("ILSVRC2012_test_00000001 1\n")
    return root


def source(image_set: str, **more) -> dict:
    return {"format": "imagenet_det", "root": "ILSVRC", "image_set": image_set, **more}


def test_pixels_count_from_0_and_both_ends_are_included(root: Path) -> None:
    val = read_imagenet_det(root, "val")
    assert val.class_names == ["accordion", "airplane"]
    assert val.boxes[:2].tolist() == [[0, 3, 20, 30], [4, 4, 40, 21]]  # columns 0 to 19 are 20 pixels wide
    assert np.diff(val.offsets).tolist() == [2, 1, 0, 1]
    assert val.image_ids.tolist() == [f"ILSVRC2012_val_0000000{i}" for i in (1, 2, 3, 4)]
    assert not val.difficult.any()
    assert val.image_size(0) == (30, 40)


def test_train_is_the_union_of_the_classes_positive_images(root: Path) -> None:
    train = read_imagenet_det(root, "train")
    names = [Path(path).stem for path in train.image_paths]
    assert names == [f"{ACCORDION}_1", f"{ACCORDION}_2", f"{AIRPLANE}_1", f"{AIRPLANE}_2", "ILSVRC2014_train_00000007"]
    assert train.class_names == ["accordion", "airplane", "ant"]
    one = read_imagenet_det(root, "train", images_per_class=1)
    assert one.image_ids.tolist() == read_imagenet_det(root, "train", images_per_class=1).image_ids.tolist()
    assert [ACCORDION in name for name in one.image_ids].count(True) == 1
    # one of the three with an airplane, and the one with an ant, which may be the same
    assert 2 <= len(one) <= 3
    assert "ILSVRC2014_train_0000/ILSVRC2014_train_00000007" in one.image_ids.tolist()


def test_from_the_config_to_samples(root: Path) -> None:
    data = DataConfig(
        train=[source("train", images_per_class=2), source("val1")], val=[source("val2")], test=[source("test")],
        classes="imagenet_det", min_size=30, max_size=60, test_min_size=30, test_max_size=60,
    )  # fmt: skip
    train, val = (build_dataset(data, split, root.parent) for split in ("train", "val"))
    assert train.class_names == IMAGENET_DET
    assert IMAGENET_DET[:3] == ["accordion", "airplane", "ant"]
    for i in range(len(train)):
        check_sample(train[SampleKey(0, i)], num_classes=200)
    halves = [
        set(build_records(data, "val", root.parent).image_ids),
        {n for n in train.records.image_ids if "val" in n},
    ]
    assert len(halves[0] | halves[1]) == 4
    assert not halves[0] & halves[1]
    assert len(val) == 2
    assert not build_dataset(data, "test", root.parent).records.annotated


def test_lists_of_ones_own_lead(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R-CNN's halves where they are there, whatever form their ids have."""
    read_imagenet_det(root, "val1")
    assert "by this project's rule" in caplog.text
    caplog.clear()
    (root / "ImageSets/DET/val1.txt").write_text("ILSVRC2012_val_00000004\nval/ILSVRC2012_val_00000002.JPEG\n")
    val1 = read_imagenet_det(root, "val1")
    assert val1.image_ids.tolist() == ["ILSVRC2012_val_00000004", "ILSVRC2012_val_00000002"]
    assert not caplog.text


def test_mistakes_are_told_in_one_line(root: Path) -> None:
    lists = root / "ImageSets/DET"
    (lists / "odd.txt").write_text("2007_000032\n")
    (lists / "gone.txt").write_text("ILSVRC2012_val_00000099\n")
    cases = {
        ("vall", None): r"vall\.txt: there is no such list \(did you mean val.?\?\); there are: .*val1, val2",
        ("odd", None): r"'2007_000032' is no image of ImageNet DET",
        ("gone", None): r"ILSVRC2012_val_00000099\.JPEG: there is no such image",
        ("val", 3): "images_per_class is for image_set train",
    }
    for (image_set, cap), message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            read_imagenet_det(root, image_set, images_per_class=cap)
        assert "\n" not in str(error.value)
    (lists / "train_200.txt").unlink()
    with pytest.raises(UserError, match=r"train_200\.txt: there is no such list"):
        read_imagenet_det(root, "train")
    with pytest.raises(UserError, match=r"prepare_data\.py imagenet_det"):
        read_imagenet_det(root / "nowhere", "val")
    with pytest.raises(ValidationError, match="images_per_class is for format imagenet_det"):
        DataConfig(train=[source("val", images_per_class=3)])


def test_an_unknown_class_is_named(root: Path) -> None:
    write(root, "ILSVRC2012_val_00000002", [("n99999999", (5, 5, 25, 25))])
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000002\.xml object 0 \(n99999999\): class n99999999 is not"):
        build_dataset(DataConfig(train=[source("val")], classes="imagenet_det"), "train", root.parent)


# ---------------------------------------------------------------------------------------------- the halves


def test_halves_by_hand() -> None:
    """Class 1 is the rarer: 4 of it, 3 and 1 in one image each: they part. Class 0 then evens out."""
    counts = np.array([[0, 3], [0, 1], [5, 0], [2, 0], [3, 0], [0, 0]])
    half = balanced_halves(counts)
    assert half[0] != half[1]
    assert sorted(counts[half].sum(axis=0)[:1].tolist() + counts[~half].sum(axis=0)[:1].tolist()) == [5, 5]
    assert half.sum() == 3


def test_halves_are_as_balanced_as_r_cnns() -> None:
    """On a set like val (some classes in a few images, some in many): median 4 %, at most 11 %."""
    rng = np.random.default_rng(3)
    often = rng.permutation(np.geomspace(0.003, 0.05, 200))
    counts = (rng.random((8000, 200)) < often) * rng.geometric(0.5, (8000, 200))
    half = balanced_halves(counts)
    a, b = counts[half].sum(axis=0), counts[~half].sum(axis=0)
    imbalance = np.abs(a - b) / (a + b)
    assert np.median(imbalance) <= 0.04
    assert imbalance.max() <= 0.11
    assert abs(half.sum() - 4000) < 400


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=0, max_size=12))
def test_halves_are_halves(rows: list[list[int]]) -> None:
    """All images are placed, the same each time; one class of which an image holds at most one is halved exactly."""
    counts = np.array(rows, np.int64).reshape(-1, 3)
    half = balanced_halves(counts)
    assert half.shape == (len(rows),)
    assert np.array_equal(half, balanced_halves(counts))
    single = (counts[:, :1] > 0).astype(np.int64)
    parts = balanced_halves(single)
    assert abs(int(single[parts].sum()) - int(single[~parts].sum())) <= 1
    assert abs(int(parts.sum()) - int((~parts).sum())) <= 2
