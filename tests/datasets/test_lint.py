"""Each code of the linter with a fixture of its own; clean sets have no problems; what is cleaned can be trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.lint import CODES, Problem, clean, lint_images, lint_records, lint_splits, lint_voc_files, table
from datasets.records import Records, make_records

SIZE = (480, 640)
GOOD = (100.0, 100.0, 200.0, 180.0)


def records_of(
    boxes: list, *, size: tuple[int, int] = SIZE, names: tuple = ("cat",), labels: list | None = None, **more
):
    return make_records(
        images=[("/nowhere/a.jpg", "a", size)], boxes=boxes, labels=labels or [1] * len(boxes), counts=[len(boxes)],
        class_names=list(names), source="set", annotation_file="/set/{}.xml", **more,
    )  # fmt: skip


def codes(problems: list[Problem]) -> list[str]:
    return sorted(problem.code for problem in problems)


def test_a_clean_set_has_no_problem() -> None:
    assert lint_records(records_of([GOOD, (300, 100, 400, 200)])) == []
    assert table([]) == "no problems"


@pytest.mark.parametrize(
    ("code", "box"),
    [
        ("box-zero-extent", (100, 100, 101, 180)),
        ("box-reversed", (200, 100, 100, 180)),
        ("box-off-image", (700, 100, 800, 180)),
        ("box-outside", (600, 100, 660, 180)),
        ("box-at-edge", (600, 100, 640, 180)),
        ("box-repeated", GOOD),
        ("object-small", (100, 100, 102, 180)),
    ],
)
def test_boxes(code: str, box: tuple) -> None:
    (problem,) = lint_records(records_of([GOOD, box]))
    assert problem.code == code
    assert problem.line().startswith(f"{code}: /set/a.xml object 1 (cat): ")
    assert problem.line().endswith(CODES[code][1])
    assert problem.to_dict()["severity"] == CODES[code][0]
    assert f"{box[0]:g}, {box[1]:g}" in problem.value


def test_a_box_at_the_edge_is_told_although_fractions_of_six_digits_miss_it() -> None:
    # YOLO: centre 0.960938, width 0.078125 of 640: xmax = 640.0003 or 639.9997, ymin = -0.0002 or 0.0002
    for box in ((590, 100, 639.9997, 180), (100, 0.0002, 200, 180), (100, -0.0002, 200, 180)):
        (problem,) = lint_records(records_of([box]))
        assert problem.code == "box-at-edge"
        assert not any(word in problem.value for word in (".", "-"))  # 640, not 639.9997; 0, not -0
    assert lint_records(records_of([(1, 1, 639, 479)])) == []


def test_objects_are_measured_after_resizing() -> None:
    box = (100, 100, 105, 180)
    assert lint_records(records_of([box])) == []
    assert codes(lint_records(records_of([box]), min_size=320)) == ["object-small"]  # 5 x 320 / 480 = 3.3


def test_sets_that_count_from_zero() -> None:
    box = (-1, 50, 100, 100)  # 0 in the file, of which 1 was subtracted
    assert codes(lint_records(records_of([box]), from_one=True)) == ["box-at-edge", "boxes-from-zero"]


def test_images_and_classes() -> None:
    problems = lint_records(records_of([], names=("cat", "Cat ", "dog")))
    assert codes(problems) == ["class-spelling", *["class-unseen"] * 3, "image-without-object"]
    assert "class-spelling: set Cat : beside 'cat': " in "\n".join(problem.line() for problem in problems)
    assert codes(lint_records(records_of([GOOD], size=(480, 30_000)))) == ["object-small", "size-absurd"]
    assert codes(lint_records(records_of([], annotated=False))) == []


def image_set(folder: Path, files: dict[str, tuple[int, int]]) -> Records:
    images = [(str(folder / name), name, size) for name, size in files.items()]
    return make_records(
        images=images, boxes=[], labels=[], counts=[0] * len(images), class_names=[], source="set", annotation_file="{}"
    )


def test_image_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "good.png")
    picture.save(tmp_path / "again.bmp")  # the same pixels
    picture.rotate(1).save(tmp_path / "size.png")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rng.integers(0, 65535, (40, 60), np.uint16)).save(tmp_path / "deep.png")
    picture.rotate(2).save(tmp_path / "turned.jpg", exif=exif)
    picture.rotate(3).save(tmp_path / "many.tif", save_all=True, append_images=[picture])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 short")
    names = sorted(os.listdir(tmp_path))
    sizes = dict.fromkeys(names, (40, 60)) | {"size.png": (60, 40), "turned.jpg": (60, 40)}
    problems, digests = lint_images(image_set(tmp_path, sizes))
    found = {(problem.code, Path(problem.file).name) for problem in problems}
    assert found == {
        ("image-repeated", "good.png"), ("size-differs", "size.png"), ("image-grey", "grey.png"),
        ("image-cmyk", "cmyk.jpg"), ("image-palette", "palette.png"), ("image-deep", "deep.png"),
        ("image-turned", "turned.jpg"), ("image-animated", "many.tif"), ("image-unreadable", "broken.jpg"),
    }  # fmt: skip
    assert len(digests) == len(names) - 1
    assert "60 x 40, declared 40 x 60" in next(p.value for p in problems if p.code == "size-differs")


def test_the_same_image_in_two_splits_also_through_a_link(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for name, change in (("a.png", 0), ("b.png", 1)):
        Image.fromarray(picture ^ change).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    digests = {
        "train": lint_images(image_set(tmp_path, {"a.png": (40, 60)}))[1],
        "val": lint_images(image_set(tmp_path, {"b.png": (40, 60), "link.png": (40, 60)}))[1],
    }
    (problem,) = lint_splits(digests)
    assert problem.code == "image-in-two-splits"
    assert problem.file.endswith("link.png")
    assert problem.value.endswith("a.png of train")


def test_policies() -> None:
    boxes = [GOOD, (600, 100, 660, 180), (700, 100, 800, 180), (200, 100, 100, 180)]
    records = records_of(boxes)
    dropped, clipped = clean(records, "drop"), clean(records, "clip")
    assert dropped.boxes.tolist() == [list(GOOD)]
    assert clipped.boxes.tolist() == [list(GOOD), [600, 100, 640, 180]]
    assert clipped.offsets.tolist() == [0, 2]
    assert not {problem.severity for problem in lint_records(clipped)} & {"error", "warning"}


def test_the_table_counts_the_severest_first() -> None:
    problems = lint_records(records_of([GOOD, (600, 100, 640, 180), (200, 100, 100, 180), (600, 50, 640, 180)]))
    assert [row.split() for row in table(problems).splitlines()] == [
        ["1", "error", "box-reversed"],
        ["2", "note", "box-at-edge"],
    ]


def test_each_file_of_a_voc_folder_is_looked_at_by_itself(write_voc) -> None:
    root = write_voc({name: ((30, 40), [("cat", (5, 5, 20, 20))]) for name in "abcdefg"})
    assert lint_voc_files(root, ["train"]) == []
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").unlink()
    (root / "JPEGImages" / "c.jpg").unlink()
    xml = root / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>C:\\\\x\\\\other.jpg</filename>"))
    (root / "Annotations" / "e.xml").write_text("<annotation><filename>e.jpg</filename></annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\ne\nf\n")
    found = {(problem.code, Path(problem.file).name) for problem in lint_voc_files(root, ["train"])}
    assert found == {
        ("annotation-broken", "a.xml"), ("annotation-missing", "b.xml"), ("image-missing", "c"),
        ("filename-differs", "d.xml"), ("size-missing", "e.xml"), ("image-lonely", "g.jpg"),
        ("annotation-lonely", "g.xml"),
    }  # fmt: skip


def test_every_code_has_a_fixture() -> None:
    text = Path(__file__).read_text()
    assert [code for code in CODES if f'"{code}"' not in text] == []


def test_the_reliability_page_lists_the_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for code, (severity, cause) in CODES.items():
        assert f"| `{code}` | {severity} | {cause} |" in page
