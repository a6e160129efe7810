"""The YOLO reader: fractions by hand, both layouts, names from every place they may stand in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from datasets.yolo import _keypoints, checked_names, image_folder, read_class_names, read_yolo


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
        ("data.yaml", "names: {'1': no, '0': yes}", ["yes", "no"]),
        ("data.yaml", "\ufeffnames: [caf\u00e9, '# 1']\r\n", ["caf\u00e9", "# 1"]),
        ("classes.txt", "\ufeffred\r\nblue, dark\r\n", ["red", "blue, dark"]),
        ("classes.txt", "cat\ndog\n\n", ["cat", "dog"]),
        ("obj.names", "cat\n", ["cat"]),
        ("labels/classes.txt", "dog\ncat", ["dog", "cat"]),
        ("labels/train/classes.txt", "cat", ["cat"]),
    ],
)
def test_names(tmp_path: Path, file: str, text: str, names: list[str]) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    assert read_class_names(tmp_path, "train") == names


def test_lists_that_differ_are_told(tmp_path: Path, caplog) -> None:
    """labelImg writes a classes.txt of its own among the labels."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    (tmp_path / "labels/classes.txt").write_text("cat\ndog\n")
    assert read_class_names(tmp_path, "train") == ["cat", "dog"]
    assert not caplog.text
    (tmp_path / "labels/classes.txt").write_text("dog\ncat\n")
    assert read_class_names(tmp_path, "train") == ["cat", "dog"]
    assert f"{tmp_path}/data.yaml and {tmp_path}/labels/classes.txt do not list the same classes" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 .5 .5 .1\n", "line 1: has 3 numbers after the class"),
        ("0 .5 .5 .1 .1\n0 .5 .5 .1 x\n", "line 2: '0 .5 .5 .1 x' has something that is not a number"),
        ("2 .5 .5 .1 .1", "line 1: class 2 is not one of 0 to 1"),
        ("0.5 .5 .5 .1 .1", "line 1: class 0.5 is not one of 0 to 1"),
        ("-1 .5 .5 .1 .1", "line 1: class -1 is not one of 0 to 1"),
        ("nan .5 .5 .1 .1", "line 1: class nan is not one of 0 to 1"),
        ("0 nan .5 .1 .1", "is not a finite number"),
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
    with pytest.raises(UserError, match=r"data\.yaml:1: expected"):
        read_yolo(root, "train")
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"list the names in data\.classes"):
        read_yolo(root, "train")
    assert read_yolo(root, "train", class_names=["x", "y"]).class_names == ["x", "y"]
    (tmp_path / "images" / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        read_yolo(root, "empty", class_names=["x"])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("data.yaml", "names: cat", "names is 'cat': give a list"),
        ("data.yaml", "names: 2", "names is 2: give a list"),
        ("data.yaml", "names: [cat, null]", "the name of class 1 is null"),
        ("data.yaml", "names: [cat, [dog]]", "the name of class 1 is"),
        ("data.yaml", "names: [cat, true]", "the name of class 1 is True"),
        ("data.yaml", "names: [cat, cat]", "lists the class 'cat' more than once"),
        ("data.yaml", "names: {0: cat, a: dog}", "numbered 0 to 1"),
        ("data.yaml", "names: {0: cat, 2: dog}", "numbered 0 to 1: 1 is missing"),
        ("data.yaml", "names: [cat]\nnames: [dog]", "the key names"),
        ("data.yaml", "- cat", "not a mapping with names"),
        ("data.yaml", "names: [cat]\nkpt_shape: 17", "kpt_shape is 17"),
        ("data.yaml", "names: [cat]\nkpt_shape: [-2, 2]", "kpt_shape is"),
        ("data.yaml", "names: [cat, dog]\nnc: 5", "nc is 5, but names lists 2"),
        ("data.yaml", "names: [cat, dog]\nnc: '5'", "nc is '5', but names lists 2"),
        ("data.yaml", "names: [cat, dog]\nnc: [2]", "nc is [2], but names lists 2"),
        ("data.yaml", "names: [cat]\nkpt_shape: [2, 4]", "kpt_shape is"),
        ("classes.txt", "cat\n\ndog", "the name of class 1 is ''"),
    ],
)
def test_wrong_lists_of_names_are_one_line(root: Path, file: str, text: str, said: str) -> None:
    (root / "data.yaml").unlink()
    (root / file).write_text(text)
    with pytest.raises(UserError) as error:
        read_yolo(root, "train")
    assert file in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("file", ["classes.txt", "data.yaml", "labels/train/a.txt"])
def test_text_that_is_not_utf8_is_one_line(root: Path, file: str) -> None:
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog")
    (root / file).write_bytes("names: [\u7ea2, \u84dd]".encode("gbk"))
    with pytest.raises(UserError, match=rf"{file}: line 1 is not text in UTF-8.*save it as UTF-8"):
        read_yolo(root, "train")


def test_label_files_in_utf16_are_read(root: Path) -> None:
    label = root / "labels" / "train" / "a.txt"
    expected = read_yolo(root, "train").boxes.tolist()
    label.write_bytes(label.read_text().encode("utf-16"))
    assert read_yolo(root, "train").boxes.tolist() == expected


@pytest.mark.parametrize(
    ("shape", "points"), [("[2, 2]", "0.30 0.30 0.95 0.95"), ("[2, 3]", "0.30 0.30 2 0.95 0.95 0"), ("[1, 3]", "0 0 0")]
)
def test_keypoints_are_passed_over(root: Path, shape: str, points: str) -> None:
    (root / "data.yaml").write_text(f"names: [cat, dog]\nkpt_shape: {shape}")
    (root / "labels" / "train" / "b.txt").unlink()
    (root / "labels" / "train" / "a.txt").write_text(f"1 0.5 0.5 0.25 0.5 {points}\n0 0.125 0.25 0.25 0.5 {points}\n")
    assert read_yolo(root, "train").boxes.tolist() == [[15, 5, 25, 15], [0, 0, 10, 10]]
    (root / "labels" / "train" / "a.txt").write_text(f"1 0.5 0.5 0.25 0.5 {points} 0.5\n")
    with pytest.raises(UserError, match=r"line 1: has \d+ numbers after the class, not .* \(data.yaml's kpt_shape\)"):
        read_yolo(root, "train")


def test_corners_of_turned_boxes_are_no_keypoints() -> None:
    """YOLO OBB, upright and turned: each point would lie in a box of the first two as centre and size."""
    assert _keypoints([0.6, 0.6, 0.8, 0.6, 0.8, 0.7, 0.6, 0.7]) == 0
    assert _keypoints([0.6, 0.6, 0.7, 0.63, 0.67, 0.73, 0.57, 0.7]) == 0
    assert _keypoints([0.6, 0.6, 0.8, 0.6, 0.62, 0.7, 0.6, 0.5]) == 2


def test_keypoints_without_a_kpt_shape_are_refused(root: Path) -> None:
    (root / "labels" / "train" / "b.txt").unlink()
    label = root / "labels" / "train" / "a.txt"
    label.write_text("1 0.5 0.5 0.4 0.5 0.45 0.4 0.55 0.6\n0 0.3 0.3 0.4 0.4 0.2 0.2 0.4 0.4\n")
    with pytest.raises(UserError, match=r"a\.txt line 1: holds a box and keypoints.*kpt_shape"):
        read_yolo(root, "train")
    label.write_text("1 .5 .5 .4 .5 0 0 .55 .6 0 0\n0 .3 .3 .4 .4 0 0 0 0 0 0\n")  # one of six points is seen
    with pytest.raises(UserError, match=r"a\.txt line 1: holds a box and keypoints.*kpt_shape"):
        read_yolo(root, "train")
    label.write_text("1 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n")  # a rectangle by its corners
    assert read_yolo(root, "train").boxes == pytest.approx(np.array([[4, 2, 16, 10]]))
    label.write_text("1 0.5 0.5 0.4 0.9 0.6 0.4\n")  # a triangle whose last corner would lie in such a box
    assert read_yolo(root, "train").boxes == pytest.approx(np.array([[16, 8, 24, 18]]))


def test_numbers_of_tracks_are_no_polygon(root: Path) -> None:
    (root / "labels" / "train" / "b.txt").unlink()
    label = root / "labels" / "train" / "a.txt"
    label.write_text("1 0.5 0.5 0.25 0.5 0.9 1\n0 0.125 0.25 0.25 0.5 0.8 7\n")
    with pytest.raises(UserError, match=r"a\.txt line 1: seems to hold a box, a score and the number of a track"):
        read_yolo(root, "train")
    label.write_text("1 0.5 0.5 0.25 0.5 0.9 1\n")  # a triangle down to the lower edge
    assert read_yolo(root, "train").boxes == pytest.approx(np.array([[10, 10, 36, 20]]))


def test_pixels_in_place_of_fractions_are_told(root: Path, caplog) -> None:
    (root / "labels" / "train" / "a.txt").write_text("0 15 15 20 20\n1 0.5 0.5 1.01 1.01\n")
    read_yolo(root, "train")
    assert "1 object seems to be in pixels, the first: " in caplog.text
    assert "a.txt line 1: a YOLO line holds fractions" in caplog.text
    assert "1 object wholly outside the image" in caplog.text
    assert "clipped" not in caplog.text


def test_lines_that_come_twice_are_taken_once(root: Path, caplog) -> None:
    (root / "labels" / "train" / "a.txt").write_text("0 .5 .5 .2 .2\n0 0.5 0.5 0.2 0.2\n1 .5 .5 .2 .2\n")
    assert read_yolo(root, "train").labels.tolist() == [1, 2, 1]
    assert "1 line comes twice" in caplog.text
    assert "a.txt line 2" in caplog.text


def test_foreign_and_hidden_files(root: Path, caplog) -> None:
    images, labels = root / "images" / "train", root / "labels" / "train"
    expected = read_yolo(root, "train").image_ids.tolist()
    for path in ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "Thumbs.db"):
        (images / path).parent.mkdir(exist_ok=True)
        (images / path).write_bytes(b"\0\5\x16\7")
    (labels / "a.txt").rename(labels / "a.TXT")
    (labels / "lonely.txt").write_text("0 .5 .5 .1 .1")
    (labels / "classes.txt").write_text("cat\ndog")
    records = read_yolo(root, "train")
    assert records.image_ids.tolist() == expected
    assert records.offsets.tolist() == [0, 2, 3, 3]
    assert "1 label file fits no image, the first: " in caplog.text
    assert "lonely.txt" in caplog.text


def test_images_that_share_a_label_file_have_ids_of_their_own(root: Path) -> None:
    Image.new("RGB", (40, 20)).save(root / "images" / "train" / "a.JPG")
    assert read_yolo(root, "train").image_ids.tolist() == ["a.JPG", "a.png", "b", "c"]


def test_names_whose_letters_are_composed_differently(root: Path) -> None:
    (root / "images/train/a.png").rename(root / "images/train/e\u0301.png")  # as macOS writes it
    (root / "labels/train/a.txt").rename(root / "labels/train/\u00e9.txt")
    records = read_yolo(root, "train")
    assert len(records.labels) == 3
    assert records.offsets[-1] - records.offsets[-2] == 2  # of e, which is sorted last


def test_names_that_differ_in_case_and_suffixes_kept_in_label_names(root: Path) -> None:
    expected = read_yolo(root, "train").boxes.tolist()
    (root / "labels/train/a.txt").rename(root / "labels/train/A.txt")
    (root / "labels/train/b.txt").rename(root / "labels/train/b.png.txt")
    assert read_yolo(root, "train").boxes.tolist() == expected


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ("0.59 0.31", 1),  # a tenth and two tenths from the centre are the border
        ("0.41 0.69 0 0", 2),  # the second is absent
        ("0.61 0.5", 0),
        ("0.5 0.29", 0),
        ("0.45 0.4 2 0.55 0.6 1", 2),
        ("0.45 0.4 3", 0),  # no degree of visibility
    ],
)
def test_points_inside_their_box(points: str, expected: int) -> None:
    assert _keypoints([0.5, 0.5, 0.2, 0.4, *map(float, points.split())]) == expected


def test_where_images_lie(root: Path) -> None:
    assert image_folder(root, "train") == root / "images" / "train"


def test_the_name_that_appears_twice_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cat"):
        checked_names(["dog", "cat", "cat"], tmp_path / "data.yaml")
