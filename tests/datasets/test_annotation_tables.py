"""Tables with a line for each box: columns, shapes, empty images, and mistakes by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import UserError
from datasets.annotation_tables import read_csv
from tests.datasets.conftest import write_image

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "sub/b", "c")):
        write_image(tmp_path / f"{name}.jpg", (30, 40), number)
    return tmp_path


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def test_tensorflow(folder: Path) -> None:
    path = table(folder, HEADER + "b.jpg,40,30,dog,1,2,10,20\na.jpg,40,30,big cat,0,0,5.5,6\nb.jpg,40,30,dog,3,3,9,9\n")
    records = read_csv(path, folder)
    assert records.image_ids.tolist() == ["b", "a"]
    assert records.boxes.tolist() == [[1, 2, 10, 20], [3, 3, 9, 9], [0, 0, 5.5, 6]]
    assert records.class_names == ["big cat", "dog"]
    everything = read_csv(path, folder, unlabelled="empty")
    assert everything.image_ids.tolist() == ["b", "a", "c"]
    assert everything.offsets.tolist() == [0, 2, 3, 3]
    with pytest.raises(UserError, match=r"does not name 1 of 3 images, for example .*c\.jpg: .*unlabelled: empty"):
        read_csv(path, folder, unlabelled="error")


def test_other_columns_and_separators(folder: Path) -> None:
    text = "image_path;x1;y1;x2;y2;label\nD:\\x\\a.jpg;1;2;10;20;dog\nc.jpg;;;;;\n"
    records = read_csv(table(folder, text), folder)
    assert records.boxes.tolist() == [[1, 2, 10, 20]]
    assert records.offsets.tolist() == [0, 1, 1]
    assert records.sizes.tolist() == [[30, 40]] * 2


@pytest.mark.parametrize(
    "text",
    [
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\ndog,1,2,9,18,a.jpg,40,30\n",
        "filename,label,x,y,width,height\na.jpg,dog,1,2,9,18\n",
        "filename,label,x,y,w,h\na,dog,1,2,9,18\n",  # a name without suffix
        "dog,1,2,9,18,a.jpg,40,30\n",  # makesense.ai
        "a.jpg,1,2,10,20,dog\n",  # keras-retinanet
        'image_id,width,height,bbox,label\na,40,30,"[1.0, 2.0, 9.0, 18.0]",dog\n',
        f"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,dog,{1 / 40},{2 / 30},{10 / 40},{20 / 30}\n",
    ],
)
def test_tables_of_other_tools(folder: Path, text: str) -> None:
    records = read_csv(table(folder, text), folder)
    assert records.boxes.tolist() == [pytest.approx([1, 2, 10, 20])]
    assert (records.image_ids.tolist(), records.class_names) == (["a"], ["dog"])


def test_only_line_ends_part_lines(folder: Path) -> None:
    records = read_csv(table(folder, HEADER + "a.jpg,40,30,dog\u2028\x0bbig,1,2,10,20\n"), folder)
    assert records.class_names == ["dog\u2028\x0bbig"]


def test_one_column_for_the_box_and_none_for_the_class(folder: Path, caplog) -> None:
    """Kaggle's Global Wheat Detection: image_id,width,height,bbox,source."""
    lines = 'a,40,30,"[1.0, 2.5, 9.0, 18.0]",farm_1\nc,40,30,,farm_1\na,40,30,"[3, 4, 5, 6]",farm_1\n'
    records = read_csv(table(folder, "image_id,width,height,bbox,source\n" + lines), folder)
    assert records.boxes.tolist() == [[1, 2.5, 10, 20.5], [3, 4, 8, 10]]
    assert (records.image_ids.tolist(), records.class_names) == (["a", "c"], ["object"])
    assert "no column tells the class" in caplog.text


def test_corners_in_place_of_width_and_height_are_told(folder: Path, caplog) -> None:
    lines = [f'a,"[20, {k}, 39, 29]",dog\n' for k in range(9)]
    read_csv(table(folder, "image_id,bbox,class\n" + "".join(lines)), folder)
    assert "seems to hold x1 y1 x2 y2, not x y width height" in caplog.text


def test_a_line_without_box_in_a_table_without_header(folder: Path) -> None:
    records = read_csv(table(folder, "c.jpg,,,,,\na.jpg,1,2,10,20,dog\n"), folder)
    assert (records.image_ids.tolist(), records.offsets.tolist()) == (["c", "a"], [0, 0, 1])


def test_open_images(folder: Path) -> None:
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"
    lines = [f"a,xclick,/m/0bt9lr,1,{1 / 40},{10 / 40},{2 / 30},{20 / 30},0,0,{group}\n" for group in (0, 1)]
    (folder / "metadata").mkdir()
    (folder / "metadata/classes.csv").write_text('/m/01yrx,Cat\n/m/0bt9lr,"Dog"\n')
    (folder / "labels").mkdir()
    (folder / "labels/detections.csv").write_text(header + "".join(lines))
    records = read_csv(folder / "labels/detections.csv", folder)
    assert records.boxes.tolist() == [pytest.approx([1, 2, 10, 20])] * 2
    assert (records.class_names, records.difficult.tolist()) == (["Dog"], [False, True])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filename,class,x,y,width\na.jpg,dog,1,2,3\n", "has no column box_height"),
        (
            "# Exported using VGG Image Annotator (http://x)\n# Notes:\n",
            "VIA 3's tables are not read: save the project",
        ),
        ("filename,xmin,ymin\na.jpg,1,2\n", "has no column class and no column xmax and no column ymax"),
        ('image_id,bbox\na,"[1, 2, 3]"\n', "line 2: 1, 2, 3 are not four numbers"),
        (HEADER, "has no line below its header"),
        (HEADER + "a.jpg,40,30,dog,1,2,10\n", "line 2: has 7 values, the header has 8"),
        (HEADER + "a.jpg,40,30,dog,1,2,x,20\n", "line 2: 1, 2, x, 20 are not four numbers"),
        (HEADER + "a.jpg,40,30,dog,1,2,inf,20\n", "line 2: 1, 2, inf, 20 are not four numbers"),
        (HEADER + "a.jpg,40,30,,1,2,10,20\n", "line 2: has a box without a class"),
        (HEADER + "a.jpg,40,30,dog,,,,\n", "line 2: has a class without a box"),
        (HEADER + "z.jpg,40,30,dog,1,2,10,20\n", "has no image z.jpg"),
        (HEADER.replace("width", "xmin") + "a.jpg,4,30,dog,1,2,10,20\n", "line 1: names the column xmin twice"),
    ],
)
def test_broken_tables(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_csv(table(folder, text), folder)
    assert said in str(error.value)
