"""What readers find in sets of each format reaches the linter: every file or record, not the first alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from datasets.annotation_files import read_folder
from datasets.coco import read_coco
from datasets.findings import Finding, Mistakes, find, findings
from datasets.records import Records
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from tests.datasets.conftest import annotation_xml, write_image

SIZE = (48, 64)


def found_in(read: Callable[[], Records]) -> tuple[list[Finding], UserError | None]:
    with findings() as found:
        try:
            read()
        except UserError as error:
            return found, error
    return found, None


def coco(root: Path) -> dict[str, Any]:
    for i in range(1, 4):
        write_image(root / f"images/{i}.png", SIZE, i)
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(1, 4)],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400} for i in range(1, 4)
        ],
    }


def spoil(key: str, value: Any, *which: int, of: str = "annotations") -> Callable[[dict], None]:
    def change(data: dict) -> None:
        for i in which:
            data[of][i][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: None, {}),
        (spoil("bbox", [1, 2, 3], 0, 2), {"annotation-broken": 2}),
        (spoil("area", "x", 1), {"annotation-broken": 1}),
        (spoil("height", "48", 0, 1, of="images"), {"annotation-broken": 2}),
        (spoil("name", None, 0, of="categories"), {"annotation-broken": 1}),
        (lambda data: data["annotations"].append("x"), {"annotation-broken": 1}),
        (spoil("image_id", 9, 0, 1), {"annotation-broken": 2}),
        (spoil("category_id", 9, 0, 1), {"class-unknown": 2}),
        (spoil("file_name", "no.png", 0, 2, of="images"), {"image-missing": 2, "image-repeated": 1}),
        (spoil("height", None, 0, 2, of="images"), {"size-missing": 2}),
        (spoil("width", 20, 1, of="images"), {"size-differs": 1}),  # a box leaves it, so the file is asked
        (spoil("id", 7, 0, 1, 2), {"id-repeated": 2}),
        (lambda data: [data["annotations"][i].pop("id") for i in (1, 2)], {"id-missing": 1}),  # one for all
        (lambda data: data["images"].append(data["images"][0]), {"id-repeated": 1}),
        (lambda data: data["images"].append({**data["images"][0], "id": 9}), {"image-repeated": 1}),
    ],
)  # fmt: skip
def test_coco(tmp_path: Path, change: Callable[[dict], None], expected: dict[str, int]) -> None:
    data = coco(tmp_path)
    change(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    found, error = found_in(lambda: read_coco(tmp_path / "a.json", tmp_path / "images"))
    assert Counter(each.code for each in found) == expected
    assert (error is not None) == bool({"annotation-broken", "class-unknown", "image-missing"} & expected.keys())


def test_a_record_is_named_with_its_value(tmp_path: Path) -> None:
    data = coco(tmp_path)
    data["annotations"][1]["bbox"] = None
    (tmp_path / "a.json").write_text(json.dumps(data))
    found, _ = found_in(lambda: read_coco(tmp_path / "a.json", tmp_path / "images"))
    value = "bbox is null, not four numbers [x, y, width, height]"
    assert found == [Finding("annotation-broken", str(tmp_path / "a.json"), "annotation number 1 (id 2)", value)]


def yolo(root: Path, **labels: str) -> Path:
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text("names: [red]\n")
    for name, text in labels.items():
        (root / f"labels/train/{name}.txt").write_text(text)
        write_image(root / f"images/train/{name}.png", SIZE, len(name))
    return root


GOOD, BROKEN = "0 .5 .5 .4 .4\n", "0 x .5 .5 .5\n"


@pytest.mark.parametrize("loose", [False, True])
def test_yolo(tmp_path: Path, loose: bool) -> None:
    root = yolo(tmp_path, a=GOOD, bb=GOOD + BROKEN, ccc=GOOD, dddd=BROKEN, e=GOOD + GOOD)
    (root / "images/train/ccc.png").write_bytes(b"hello")
    (root / "labels/train/lonely.txt").write_text(GOOD)
    read = (lambda: read_folder(root, "yolo")) if loose else lambda: read_yolo(root, "train")
    found, error = found_in(read)
    assert str(error).startswith(
        f"{root}/labels/train/bb.txt line 2: '0 x .5 .5 .5' has something that is not a number"
    )
    broken = "'0 x .5 .5 .5' has something that is not a number"
    expected = [
        Finding("annotation-broken", f"{root}/labels/train/bb.txt", "line 2", broken),
        Finding("annotation-broken", f"{root}/labels/train/dddd.txt", "line 1", broken),
        Finding("box-repeated", f"{root}/labels/train/e.txt", "line 2"),
        Finding("image-unreadable", f"{root}/images/train/ccc.png", "", "cannot be read as an image: unknown format or"
                " damaged header"),
    ]  # fmt: skip
    assert sorted(each for each in found if each.code != "annotation-lonely") == expected
    for name in ("bb", "dddd", "ccc"):
        (root / f"labels/train/{name}.txt").unlink()
        (root / f"images/train/{name}.png").unlink()
    found, error = found_in(read)
    assert error is None
    assert Finding("annotation-lonely", f"{root}/labels/train/lonely.txt") in found
    other = yolo(tmp_path / "other", a=BROKEN)
    with pytest.raises(UserError, match=r"a\.txt line 1"):  # where nobody listens, the first mistake ends the reading
        read_yolo(other, "train")


def test_labelme(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png", SIZE)
    shape = {"label": "red", "shape_type": "rectangle", "points": [[5, 5], [25, 25]]}
    sound = {"shapes": [shape], "imageHeight": 48, "imageWidth": 64}
    (tmp_path / "a.json").write_text(json.dumps({**sound, "shapes": [{**shape, "label": None}]}))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps({**sound, "imagePath": "a.png"}))
    found, _ = found_in(lambda: read_folder(tmp_path, "labelme"))
    assert [(each.code, Path(each.file).name) for each in found] == [
        ("annotation-broken", "a.json"), ("annotation-broken", "b.json"), ("filename-differs", "c.json"),
    ]  # fmt: skip


def test_voc_images_whose_size_is_asked(write_voc) -> None:
    root = write_voc({name: (SIZE, []) for name in "ab"})
    for name in "ab":
        (root / f"Annotations/{name}.xml").write_text(annotation_xml([], None))
        next((root / "JPEGImages").glob(f"{name}.*")).write_bytes(b"hello")
    found, error = found_in(lambda: read_voc(root, "train"))
    assert error is not None
    assert [each.code for each in found] == ["image-unreadable"] * 2


def test_unknown_classes_are_all_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(coco(tmp_path)))
    records = read_coco(tmp_path / "a.json", tmp_path / "images")
    found, error = found_in(lambda: records.with_classes(["blue"]))
    assert error is not None
    assert [(each.code, each.thing, each.value) for each in found] == [("class-unknown", "object 0", "red")] * 3


def test_nothing_is_kept_where_nobody_listens() -> None:
    find("id-missing", "a")
    with findings() as found:
        find("id-missing", "b")
        with findings() as inner:
            find("id-missing", "c")
    assert (found, inner) == ([Finding("id-missing", "b")], [Finding("id-missing", "c")])
    with pytest.raises(UserError), Mistakes().of("annotation-broken", "a"):
        raise UserError("a: no")
