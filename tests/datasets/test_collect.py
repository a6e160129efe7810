"""Finding images that annotation files name, and the records of loose lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from datasets.collect import ImageFinder, Item, Object, image_ids, images_below, records_of, walk


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_files_below_a_folder_without_hidden_ones_and_masks(tmp_path):
    wanted = touch(tmp_path, "a/1.jpg", "a/b/2.xml", "c.PNG")
    touch(tmp_path, ".git/x.jpg", "a/.hidden.jpg", "SegmentationClass/1.png", "a/segmentationobject/1.png")
    assert walk(tmp_path) == sorted(wanted)
    assert images_below(tmp_path) == sorted([wanted[0], wanted[2]])
    assert images_below(tmp_path, "*") == [wanted[2]]
    with pytest.raises(UserError, match=r"b: holds no image \("):
        images_below(tmp_path / "a/b")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        images_below(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        ("C:\\work\\a\\1.jpg", "a/1.jpg"),
        ("/home/x/a/1.jpg", "a/1.jpg"),
        ("../1.jpg", None),  # two have the name
        ("2.jpg", "deep/er/2.jpg"),
        ("/old/er/2.jpg", "deep/er/2.jpg"),
        ("z/b/1.jpg", "c/b/1.jpg"),  # its folder fits best
        ("old/2.JPG", "deep/er/2.jpg"),
        ("3.jpg", None),
        ("notes.txt", None),
        ("..", None),
        ("", None),
    ],
)
def test_images_are_found_by_path_or_name(tmp_path, name, found):
    touch(tmp_path, "a/1.jpg", "c/b/1.jpg", "deep/er/2.jpg", "deep/notes.txt")
    assert ImageFinder(tmp_path)(name) == (None if found is None else tmp_path / found)


def test_only_the_given_images_are_found_by_name(tmp_path):
    first, _ = touch(tmp_path, "x/1.jpg", "y/1.jpg")
    assert ImageFinder(tmp_path, [first])("1.jpg") == first


def test_ids_are_as_short_as_they_can_be(tmp_path):
    assert image_ids([tmp_path / "a/1.jpg", tmp_path / "b/2.jpg"], tmp_path) == ["1", "2"]
    assert image_ids([tmp_path / "a/1.jpg", tmp_path / "b/1.jpg"], tmp_path) == ["a/1", "b/1"]
    assert image_ids([tmp_path / "a/1.jpg", tmp_path / "a/1.png"], tmp_path) == ["a/1.jpg", "a/1.png"]
    with pytest.raises(UserError, match="an image is listed more than once"):
        image_ids([tmp_path / "1.jpg"] * 2, tmp_path)


BOX = (1.0, 2.0, 10.0, 12.0)


def made(root: Path, *objects: list[Object] | None, **options):
    items = []
    for number, some in enumerate(objects):
        path = root / f"{number}.png"
        Image.new("RGB", (30, 20)).save(path)
        items.append(Item(path, some, (20, 31) if number == 1 else None))
    return records_of(items, root=root, source="made", annotation_file="x", **options)


def test_records_by_hand(tmp_path):
    """Classes sorted, or in the given order; sizes as declared, else the file's."""
    objects = ([Object("dog", BOX), Object("cat", BOX, difficult=True)], [], [Object("cat", BOX, truncated=True)])
    records = made(tmp_path, *objects)
    assert records.class_names == ["cat", "dog"]
    assert records.labels.tolist() == [2, 1, 1]
    assert records.offsets.tolist() == [0, 2, 2, 3]
    assert records.sizes.tolist() == [[20, 30], [20, 31], [20, 30]]
    assert records.difficult.tolist() == [False, True, False]
    assert records.truncated.tolist() == [False, False, True]
    assert records.image_ids.tolist() == ["0", "1", "2"]
    assert records.boxes[0].tolist() == list(BOX)
    assert made(tmp_path, *objects, class_names=["dog", "cat"]).labels.tolist() == [1, 2, 2]


def test_what_an_image_without_annotation_is(tmp_path):
    some = ([Object("dog", BOX)], None, None)
    for unlabelled in (None, "error"):
        with pytest.raises(UserError, match=r"made: 2 of 3 images without annotation, such as .*1\.png: .*skip"):
            made(tmp_path, *some, unlabelled=unlabelled)
    assert len(made(tmp_path, *some, unlabelled="empty")) == 3
    assert len(made(tmp_path, *some, unlabelled="skip")) == 1
    bare = made(tmp_path, None, None)
    assert (len(bare), bare.annotated) == (2, False)
    assert made(tmp_path, None, unlabelled="empty").annotated
    with pytest.raises(UserError, match="no image has an annotation, and unlabelled: skip"):
        made(tmp_path, None, unlabelled="skip")
