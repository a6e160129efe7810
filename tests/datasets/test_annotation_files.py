"""One annotation file for each image: where it is looked for, and what each format's objects are."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from configs.errors import UserError
from datasets.annotation_files import pair, read_folder
from tests.datasets.conftest import annotation_xml, write_image


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("a.jpg", "a.xml"),
        ("images/a.jpg", "labels/a.xml"),
        ("JPEGImages/a.jpg", "Annotations/a.xml"),
        ("train/images/a.jpg", "train/labels/a.xml"),
        ("images/train/a.jpg", "labels/train/a.xml"),
        ("day 1/cam/a.jpg", "Annotations/day 1/cam/a.xml"),
        ("photos/a.jpg", "boxes of mine/a.xml"),  # the only one of its name
        ("IMG_1.JPG", "img_1.xml"),
        ("e\u0301.jpg", "\u00e9.xml"),  # macOS takes letters with marks apart
        ("a.jpg", "labels/a.jpg.xml"),
    ],
)
def test_pairs(tmp_path: Path, image: str, file: str) -> None:
    assert pair([tmp_path / image], [tmp_path / file], tmp_path) == {tmp_path / image: tmp_path / file}


def test_equal_names_in_several_folders_are_not_mixed_up(tmp_path: Path) -> None:
    images = [tmp_path / f"images/{part}/1.jpg" for part in ("train", "val")]
    files = [tmp_path / f"labels/{part}/1.txt" for part in ("val", "train")]
    assert pair(images, files, tmp_path) == {images[0]: files[1], images[1]: files[0]}
    assert pair(images, files[:1], tmp_path) == {images[1]: files[0]}  # train's has none: val's is not taken for it
    assert pair(images, [tmp_path / "elsewhere/1.txt"], tmp_path) == {}


@pytest.mark.parametrize(
    ("suffix", "text"), [(".xml", "<filename>a.png</filename>"), (".json", '{"imagePath": "..\\\\a.png"}')]
)
def test_of_images_that_differ_in_suffix_the_named_one_has_the_annotation(
    tmp_path: Path, suffix: str, text: str
) -> None:
    images, file = [tmp_path / "a.jpg", tmp_path / "a.png"], tmp_path / f"a{suffix}"
    file.write_text(text)
    assert pair(images, [file], tmp_path) == {images[1]: file}
    file.write_text(text.replace("a.png", "b.png"))  # copied or renamed: it names neither
    assert pair(images, [file], tmp_path) == dict.fromkeys(images, file)


def test_the_prefix_of_an_upload(tmp_path: Path) -> None:
    image, files = (
        tmp_path / "images/a.jpg",
        [tmp_path / f"labels/{prefix}-a.txt" for prefix in ("0a1b2c3d", "12345678")],
    )
    assert pair([image], files[:1], tmp_path) == {image: files[0]}
    assert pair([image], files, tmp_path) == {}  # either could be meant


@pytest.fixture
def labelimg(tmp_path: Path) -> Path:
    """Two photos with XML beside them, in a folder with a space, and one without."""
    root = tmp_path / "my photos"
    for number, name in enumerate(("a", "sub/b", "c")):
        write_image(root / f"{name}.jpg", (30, 40), number)
    (root / "a.xml").write_text(annotation_xml([("red cell", (1, 2, 10, 20), {"difficult"})], (30, 40)))
    (root / "sub/b.xml").write_text(annotation_xml([("dog", (3, 4, 40, 30)), ("red cell", (1, 1, 5, 5))], (30, 40)))
    return root


def test_voc_beside_the_images(labelimg: Path) -> None:
    records = read_folder(labelimg, "voc", unlabelled="empty")
    assert records.image_ids.tolist() == ["a", "c", "b"]
    assert records.class_names == ["dog", "red cell"]
    assert records.boxes.tolist() == [[0, 1, 10, 20], [2, 3, 40, 30], [0, 0, 5, 5]]
    assert records.labels.tolist() == [2, 1, 2]
    assert records.difficult.tolist() == [True, False, False]
    assert records.offsets.tolist() == [0, 1, 1, 3]
    zero = read_folder(labelimg, "voc", unlabelled="skip", zero_based=True)
    assert zero.image_ids.tolist() == ["a", "b"]
    assert zero.boxes[0].tolist() == [1, 2, 10, 20]


def test_unlabelled_images_are_a_mistake_unless_they_are_explained(labelimg: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 3 images without annotation, such as .*c\.jpg: .*unlabelled: empty"):
        read_folder(labelimg, "voc")
    for path in labelimg.rglob("*.xml"):
        path.unlink()
    assert not read_folder(labelimg, "voc").annotated  # images only
    with pytest.raises(UserError, match="no image has an annotation"):
        read_folder(labelimg, "voc", unlabelled="skip")


def test_part_of_a_folder(labelimg: Path, caplog) -> None:
    assert read_folder(labelimg, "voc", images=labelimg / "sub").image_ids.tolist() == ["b"]
    assert read_folder(labelimg, "voc", images=labelimg / "*", unlabelled="empty").image_ids.tolist() == ["a", "c"]
    (labelimg / "list.txt").write_text("data/x/sub/b.jpg\n\nC:\\photos\\a.jpg\n")
    assert read_folder(labelimg, "voc", image_list=labelimg / "list.txt").image_ids.tolist() == ["b", "a"]
    assert not caplog.text
    (labelimg / "list.txt").write_text("a.jpg\nb.jpg\nsub/b.jpg\n")
    assert read_folder(labelimg, "voc", image_list=labelimg / "list.txt").image_ids.tolist() == ["a", "b"]
    assert "list.txt: lists 1 image more than once; each is taken once" in caplog.text
    (labelimg / "list.txt").write_text("a.jpg\nz.jpg\n")
    with pytest.raises(UserError, match=r"list\.txt line 2: z\.jpg is not among the images"):
        read_folder(labelimg, "voc", image_list=labelimg / "list.txt")


def test_equal_names_get_ids_with_their_folders(tmp_path: Path) -> None:
    for part in ("one", "two"):
        write_image(tmp_path / part / "1.png", (30, 40))
        (tmp_path / part / "1.xml").write_text(annotation_xml([(part, (1, 1, 9, 9))], None))
    records = read_folder(tmp_path, "voc")
    assert records.image_ids.tolist() == ["one/1", "two/1"]
    assert records.sizes.tolist() == [[30, 40]] * 2  # the file's own, where none is declared


def test_yolo_names_and_fractions(tmp_path: Path) -> None:
    write_image(tmp_path / "obj_train_data/a.jpg", (20, 40))
    write_image(tmp_path / "obj_train_data/b.jpg", (20, 40))
    (tmp_path / "obj_train_data/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    with pytest.raises(UserError, match="list the names in data"):
        read_folder(tmp_path, "yolo")
    records = read_folder(tmp_path, "yolo", class_names=["cat", "dog"])
    assert records.boxes.tolist() == [[15, 5, 25, 15]]
    (tmp_path / "obj.names").write_text("zebra\nwhite ape\n")
    records = read_folder(tmp_path, "yolo", class_names=["cat", "dog"])
    assert records.class_names == ["zebra", "white ape"]
    assert records.labels.tolist() == [2]
    assert records.offsets.tolist() == [0, 1, 1]  # no label file: no object, as everywhere with YOLO


def labelme(shapes: list[dict]) -> str:
    return json.dumps({"shapes": shapes, "imagePath": "..\\a.jpg", "imageHeight": 30, "imageWidth": 40})


def test_labelme_shapes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", (30, 40))
    shapes = [
        {"label": "dog", "points": [[20, 4], [10, 25]], "shape_type": "rectangle"},  # drawn from the upper right
        {"label": "cat", "points": [[1, 2], [7, 1], [4, 9.5]], "shape_type": "polygon"},
        {"label": "cat", "points": [[20, 10], [23, 14]], "shape_type": "circle"},  # the radius is 5
        {"label": "cat", "points": [[20, 10]], "shape_type": "point"},
    ]
    (tmp_path / "a.json").write_text(labelme(shapes))
    records = read_folder(tmp_path, "labelme")
    assert records.boxes.tolist() == [[10, 4, 20, 25], [1, 1, 7, 9.5], [15, 5, 25, 15]]
    assert records.class_names == ["cat", "dog"]
    assert records.labels.tolist() == [2, 1, 1]


def test_labelme_files_of_other_images_are_told(tmp_path: Path, caplog) -> None:
    for name, named in (("a", "b.jpg"), ("b", "../photos/renamed.jpg"), ("c", "."), ("d", "\0")):
        write_image(tmp_path / f"{name}.jpg", (30, 40))
        (tmp_path / f"{name}.json").write_text(json.dumps({"shapes": [], "imagePath": named}))
    read_folder(tmp_path, "labelme")
    (line,) = caplog.messages
    assert "a.json: is taken for a.jpg, whose name it has, but is of b.jpg by its imagePath" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not a labelme file: is [], not an object"),
        ("{", "not valid JSON"),
        (labelme([{"points": [[1, 2], [3, 4]]}]), "object 0: label is missing"),
        (labelme([{"label": "a", "points": [[1, 2]]}]), "object 0: has 1 points"),
        (labelme([{"label": "a", "points": [["x", 2], [3, 4]]}]), "are not pairs of numbers"),
        (labelme([{"label": "a"}]), "are not pairs of numbers"),
        (labelme([{"label": ["a"], "points": [[1, 2], [3, 4]]}]), "object 0: has no label"),
        (labelme([{"label": "a", "points": [["1", 2], [3, 4]]}]), "are not pairs of numbers"),
        (labelme([{"label": "a", "points": [[1, 2], [3, 1e400]]}]), "are not pairs of numbers"),
        ('{"shapes": null}', "shapes is null: give a list"),
        ('{"shapes": [null]}', "object 0: is null, not an object"),
    ],
)
def test_broken_labelme_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    write_image(tmp_path / "a.jpg", (30, 40))
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json") as error:
        read_folder(tmp_path, "labelme")
    assert said in str(error.value)


def test_supervisely(tmp_path: Path) -> None:
    write_image(tmp_path / "ds/img/a.jpg", (30, 40))
    (tmp_path / "ds/ann").mkdir()
    rectangle = {"classTitle": "dog", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [10, 20]]}}
    content = {"size": {"height": 30, "width": 40}, "objects": [rectangle]}
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps(content))
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "dog"}, {"title": "cat"}]}))
    records = read_folder(tmp_path, "supervisely")
    assert records.boxes.tolist() == [[1, 2, 10, 20]]
    assert records.class_names == ["dog", "cat"]
    content["objects"].append({"classTitle": "cat", "geometryType": "bitmap", "bitmap": {}})
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="object 1: origin is missing"):
        read_folder(tmp_path, "supervisely")
    png = write_image(tmp_path / "mask.png", (5, 8)).read_bytes()
    (tmp_path / "mask.png").unlink()
    data = base64.b64encode(zlib.compress(png)).decode()
    content["objects"][1]["bitmap"] = {"origin": [3, 4], "data": data}
    content["objects"].append({"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 2]]}})
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps(content))
    assert read_folder(tmp_path, "supervisely").boxes.tolist() == [[1, 2, 10, 20], [3, 4, 11, 9]]
    content["objects"][1]["bitmap"]["data"] = "AAAA"
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="object 1: its bitmap is no compressed PNG"):
        read_folder(tmp_path, "supervisely")


def test_supervisely_of_old(tmp_path: Path) -> None:
    """Files named a.json, no geometryType, and each object with a bitmap and points, one of them empty."""
    write_image(tmp_path / "ds/img/a.jpg", (30, 40))
    (tmp_path / "ds/ann").mkdir()
    png = write_image(tmp_path / "mask.png", (5, 8)).read_bytes()
    (tmp_path / "mask.png").unlink()
    bitmap = {"origin": [3, 4], "data": base64.b64encode(zlib.compress(png)).decode()}
    objects = [
        {"classTitle": "dog", "bitmap": None, "points": {"exterior": [[1, 2], [10, 20]], "interior": []}},
        {"classTitle": "cat", "bitmap": bitmap, "points": {"exterior": [], "interior": []}},
    ]
    content = {"tags": [], "size": {"height": 30, "width": 40}, "objects": objects}
    (tmp_path / "ds/ann/a.json").write_text(json.dumps(content))
    assert read_folder(tmp_path, "supervisely").boxes.tolist() == [[1, 2, 10, 20], [3, 4, 11, 9]]


def test_kitti(tmp_path: Path) -> None:
    write_image(tmp_path / "training/image_2/000000.png", (30, 40))
    (tmp_path / "training/label_2").mkdir()
    labels = tmp_path / "training/label_2/000000.txt"
    rest = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
    text = f"Car 0.25 0 -1.58 1 2 10.5 20 {rest}\nDontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10\n"
    labels.write_text(f"{text}Van 0 0 1 2 2 9 9 {rest} 0.9\n")  # with a score
    records = read_folder(tmp_path, "kitti")
    assert records.boxes.tolist() == [[1, 2, 10.5, 20], [2, 2, 9, 9]]
    assert (records.class_names, records.truncated.tolist()) == (["Car", "Van"], [True, False])
    labels.write_text(f"{text}Van 0 0 1 2\n")
    with pytest.raises(UserError, match=r"000000\.txt line 3: .*a line of KITTI has 15 values"):
        read_folder(tmp_path, "kitti")
