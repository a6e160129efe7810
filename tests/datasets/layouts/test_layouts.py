"""Folders as tools and people leave them: which layout, parts and classes are found, and what is read from them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from configs.detection import DataConfig
from configs.errors import UserError
from datasets.build import build_records
from datasets.layouts import find_layout
from tests.datasets.conftest import annotation_xml, write_image

SIZE = (30, 40)
XML = annotation_xml([("white cell", (3, 5, 20, 25))], SIZE)
TXT = f"1 {11 / 40} 0.5 {18 / 40} {20 / 30}\n"  # the same box: 2 to 20 and 5 to 25
COCO_BOX = [2, 5, 18, 20]


def write(root: Path, files: dict[str, str | None]) -> Path:
    """Files below `root`; None: an image."""
    for number, (name, text) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            write_image(path, SIZE, number)
        else:
            path.write_text(text)
    return root


def images_of(root: Path) -> dict[str, dict[str, int]]:
    """Of each part: the images' paths below `root`, and their numbers of objects."""
    layout = find_layout(root)
    found = {}
    for part, sources in layout.parts.items():
        data = DataConfig(train=sources, classes=layout.class_names or ["white cell"])
        records = build_records(data, "train", Path("/"))
        assert all(records.class_names[label - 1] == "white cell" for label in records.labels)
        for box in records.boxes:
            assert box == pytest.approx([2, 5, 20, 25], abs=1.01 if "VOC" in layout.name else 1e-3)
        names = [Path(path).relative_to(root.resolve()).as_posix() for path in records.image_paths]
        found[part] = dict(zip(names, map(int, records.offsets[1:] - records.offsets[:-1]), strict=True))
    return found


def coco(*names: str, placeholder: bool = False) -> str:
    """A COCO file in which the last image has no object."""
    categories = [{"id": 0, "name": "things", "supercategory": "none"}] if placeholder else []
    categories.append({"id": 1, "name": "white cell", "supercategory": "things" if placeholder else ""})
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": COCO_BOX, "area": 360, "iscrowd": 0}
        for i in range(len(names) - (len(names) > 1))
    ]
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    return json.dumps({"images": images, "categories": categories, "annotations": annotations})


def test_voc_beside_images_in_nested_folders(tmp_path):
    files = {"day 1/a.jpg": None, "day 1/a.xml": XML, "day 2/b.JPG": None, "day 2/b.xml": XML, "c.png": None}
    assert images_of(write(tmp_path, files)) == {"all": {"c.png": 0, "day 1/a.jpg": 1, "day 2/b.JPG": 1}}


def test_one_folder_in_a_folder_is_gone_into(tmp_path):
    files = {"export/Annotations/a.xml": XML, "export/images/a.jpg": None, "export/images/b.jpg": None}
    assert images_of(write(tmp_path, files)) == {"all": {"export/images/a.jpg": 1, "export/images/b.jpg": 0}}


@pytest.mark.parametrize("words", [("train", "valid", "test"), ("Training", "Validation", "Testing set")])
def test_parts_by_folders(tmp_path, words):
    files = {f"{word}/{number}.jpg": None for number, word in enumerate(words)}
    files |= {f"{word}/{number}.xml": XML for number, word in enumerate(words)}
    files["more/9.jpg"] = None  # of no part: it trains
    found = images_of(write(tmp_path, files))
    assert found == {
        "train": {"more/9.jpg": 0, f"{words[0]}/0.jpg": 1},
        "val": {f"{words[1]}/1.jpg": 1},
        "test": {f"{words[2]}/2.jpg": 1},
    }


def test_images_directly_beside_a_parts_folder(tmp_path):
    files = {"train/a.jpg": None, "train/a.xml": XML, "val/b.jpg": None, "val/b.xml": XML, "c.jpg": None, "c.xml": XML}
    assert images_of(write(tmp_path, files)) == {"train": {"c.jpg": 1, "train/a.jpg": 1}, "val": {"val/b.jpg": 1}}


def voc_files(root: str, names: str, **lists: str) -> dict[str, str | None]:
    files: dict[str, str | None] = {f"{root}JPEGImages/{name}.jpg": None for name in names}
    files |= {f"{root}Annotations/{name}.xml": XML for name in names if name != "z"}
    return files | {f"{root}ImageSets/Main/{part}.txt": "\n".join(images) + "\n" for part, images in lists.items()}


def test_image_sets(tmp_path):
    files = voc_files("", "abcdz", train="ab", val="c", trainval="abc", cell_train="a", test="z")
    files |= {"SegmentationClass/a.png": None}
    found = images_of(write(tmp_path, files))
    assert found == {
        "train": {"JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 1, "JPEGImages/d.jpg": 1},  # d is in no list
        "val": {"JPEGImages/c.jpg": 1},
        "test": {"JPEGImages/z.jpg": 0},
    }


def test_an_image_set_of_another_name_makes_no_parts(tmp_path):
    found = images_of(write(tmp_path, voc_files("VOCdevkit/VOC2012/", "abz", default="abz")))
    folder = "VOCdevkit/VOC2012/JPEGImages"
    assert found == {"all": {f"{folder}/a.jpg": 1, f"{folder}/b.jpg": 1, f"{folder}/z.jpg": 0}}


YAMLS = {
    "Ultralytics, a list": "path: ../datasets/cells\ntrain: images/train\nval: images/val\nnames: [dog, white cell]\n",
    "Ultralytics, a map": "train: images/train/\nval: images/val/\nnames:\n  0: dog\n  1: white cell\n",
    "another machine's path": "path: /home/x/cells\ntrain: images/train\nval: images/val\nnames: [dog, white cell]\n",
}


@pytest.mark.parametrize("name", YAMLS)
def test_ultralytics(tmp_path, name):
    files: dict[str, str | None] = {"my.yaml": YAMLS[name]}
    for part, images in {"train": "ab", "val": "c"}.items():
        files |= {f"images/{part}/{image}.jpg": None for image in images}
        files |= {f"labels/{part}/{image}.txt": TXT for image in images if image != "b"}
    assert images_of(write(tmp_path, files)) == {
        "train": {"images/train/a.jpg": 1, "images/train/b.jpg": 0},
        "val": {"images/val/c.jpg": 1},
    }


def test_parts_of_unusual_names_by_data_yaml(tmp_path):
    files = {"data.yaml": "train: [set1/images, set2/images]\nval: set3/images\nnames: [dog, white cell]\n"}
    files |= {f"set{n}/images/{n}.jpg": None for n in (1, 2, 3)} | {f"set{n}/labels/{n}.txt": TXT for n in (1, 2, 3)}
    assert images_of(write(tmp_path, files)) == {
        "train": {"set1/images/1.jpg": 1, "set2/images/2.jpg": 1},
        "val": {"set3/images/3.jpg": 1},
    }


def test_the_same_folder_for_train_and_val_makes_no_parts(tmp_path):
    files = {"data.yaml": "train: images/x\nval: images/x\nnames: [dog, white cell]\n"}
    files |= {"images/x/a.jpg": None, "images/x/b.jpg": None, "labels/x/a.txt": TXT, "labels/x/b.txt": TXT}
    assert set(images_of(write(tmp_path, files))) == {"all"}


def test_roboflow_yolo(tmp_path):
    files: dict[str, str | None] = {
        "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n"
        "names: ['dog', 'white cell']\n",
        "README.roboflow.txt": "Provided by someone\n",
    }
    for part in ("train", "valid", "test"):
        files |= {f"{part}/images/{part} 1_jpg.rf.0.jpg": None, f"{part}/labels/{part} 1_jpg.rf.0.txt": TXT}
    found = images_of(write(tmp_path, files))
    assert found["val"] == {"valid/images/valid 1_jpg.rf.0.jpg": 1}
    assert set(found) == {"train", "val", "test"}


@pytest.mark.parametrize("valid", ["valid.txt", "test.txt"])
def test_darknet_with_lists(tmp_path, valid):
    part = {"valid.txt": "val", "test.txt": "test"}[valid]
    key = {"val": "valid", "test": "test"}[part]
    files = {
        "obj.data": f"classes = 2\ntrain = data/train.txt\n{key} = data/{valid}\nnames = data/obj.names\n",
        "obj.names": "dog\nwhite cell\n",
        "train.txt": "data/obj/a.jpg\ndata/obj/b.jpg\n",
        valid: "data/obj/c.jpg\n",
    }
    files |= {f"obj/{name}.jpg": None for name in "abc"} | {f"obj/{name}.txt": TXT for name in "abc"}
    assert images_of(write(tmp_path, files)) == {"train": {"obj/a.jpg": 1, "obj/b.jpg": 1}, part: {"obj/c.jpg": 1}}


def test_cvat_yolo_with_subsets(tmp_path):
    files = {"obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n", "obj.names": "a\nwhite cell"}
    files |= {"train.txt": "data/obj_train_data/a.jpg\n", "valid.txt": "data/obj_valid_data/b.jpg\n"}
    for folder, name in (("obj_train_data", "a"), ("obj_valid_data", "b")):
        files |= {f"{folder}/{name}.jpg": None, f"{folder}/{name}.txt": TXT}
    found = images_of(write(tmp_path, files))
    assert found == {"train": {"obj_train_data/a.jpg": 1}, "val": {"obj_valid_data/b.jpg": 1}}


def test_yolo_without_names(tmp_path):
    layout = find_layout(write(tmp_path, {"a.jpg": None, "a.txt": TXT}))
    assert layout.class_names == ["class_0", "class_1"]
    assert "write them into data.classes" in layout.notes[0]


def test_coco_with_a_shared_image_folder(tmp_path):
    files = {f"images/{name}.jpg": None for name in "abcde"}
    files |= {"annotations/instances_train.json": coco("a.jpg", "b.jpg"), "annotations/captions_val.json": "{}"}
    files |= {"annotations/instances_val.json": coco("c.jpg", "d.jpg")}
    assert images_of(write(tmp_path, files)) == {
        "train": {"images/a.jpg": 1, "images/b.jpg": 0},
        "val": {"images/c.jpg": 1, "images/d.jpg": 0},
    }
    assert "1 image in no annotation file" in find_layout(tmp_path).notes[0]


def test_a_file_for_many_images_that_cannot_be_read_is_named(tmp_path):
    """Its images would be left out, or divided anew."""
    files = {f"images/{name}.jpg": None for name in "abcd"}
    files |= {"annotations/train.json": coco("a.jpg", "b.jpg"), "annotations/val.json": coco("c.jpg", "d.jpg")[:-9]}
    with pytest.raises(UserError, match=r"val\.json: not valid JSON: .*: repair or remove it"):
        find_layout(write(tmp_path / "coco", files))
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    files = {"a.jpg": None, "b.jpg": None, "train.csv": f"{rows}a.jpg,40,30,white cell,2,5,20,25\n", "val.csv": "\0\0"}
    with pytest.raises(UserError, match=r"val\.csv: holds zero bytes: it is not a text file"):
        find_layout(write(tmp_path / "csv", files))
    files = {f"JPEGImages/{name}.jpg": None for name in "abcd"} | {f"Annotations/{name}.xml": XML for name in "abcd"}
    files |= {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/val.txt": "c\nd\n\0"}
    with pytest.raises(UserError, match=r"val\.txt: holds zero bytes: it is not a text file"):
        find_layout(write(tmp_path / "voc", files))


def test_an_image_that_is_a_link_to_itself(tmp_path):
    root = write(
        tmp_path, {"a.jpg": None, "b.jpg": None, "c.jpg": None, "_annotations.coco.json": coco("a.jpg", "b.jpg")}
    )
    (root / "c.jpg").unlink()
    (root / "c.jpg").symlink_to("c.jpg")
    (source,) = find_layout(root).parts["all"]
    with pytest.raises(UserError, match=r"c\.jpg: cannot read the image: Too many levels"):
        build_records(DataConfig(train=[source], classes="auto"), "train", Path("/"))


def test_roboflow_coco(tmp_path):
    files = {"train/a.jpg": None, "train/b.jpg": None, "valid/c.jpg": None}
    files |= {"train/_annotations.coco.json": coco("a.jpg", "b.jpg", placeholder=True)}
    files |= {"valid/_annotations.coco.json": coco("c.jpg", placeholder=True)}
    assert images_of(write(tmp_path, files)) == {
        "train": {"train/a.jpg": 1, "train/b.jpg": 0},
        "val": {"valid/c.jpg": 1},
    }


def test_coco_with_unlisted_images(tmp_path):
    files = {"photos/a.jpg": None, "photos/b.jpg": None, "photos/c.jpg": None, "labels.json": coco("photos/a.jpg")}
    assert images_of(write(tmp_path, files)) == {"all": {"photos/a.jpg": 1, "photos/b.jpg": 0, "photos/c.jpg": 0}}


@pytest.mark.parametrize("name", ["../../media/upload/1/{}", r"D:\photos\{}", r"images\{}", "/home/x/{}"])
def test_coco_with_another_machines_paths(tmp_path, name):
    names = [name.format(image) for image in ("a.jpg", "b.jpg")]
    found = images_of(write(tmp_path, {"images/a.jpg": None, "images/b.jpg": None, "result.json": coco(*names)}))
    assert found == {"all": {"images/a.jpg": 1, "images/b.jpg": 0}}


def test_files_that_name_images_in_another_case(tmp_path):
    photos = {"photos/A.JPG": None, "photos/B.JPG": None, "table/C.JPG": None}
    table = "filename,class,xmin,ymin,xmax,ymax\nc.jpg,white cell,2,5,20,25\n"
    write(tmp_path, photos | {"lists/x.json": coco("a.jpg", "b.jpg"), "table/t.csv": table})
    assert images_of(tmp_path / "table") == {"all": {"C.JPG": 1}}
    (tmp_path / "table/C.JPG").unlink()
    assert images_of(tmp_path) == {"all": {"photos/A.JPG": 1, "photos/B.JPG": 0}}


def test_names_without_suffix_tell_the_folder_of_the_images(tmp_path):
    """Kaggle's sets have unlabelled test images beside: these are no images without objects."""
    table = 'image_id,bbox,class\na,"[2, 5, 18, 20]",white cell\n'
    write(tmp_path, {"train/a.jpg": None, "train/b.jpg": None, "test/c.jpg": None, "train.csv": table})
    assert images_of(tmp_path) == {"all": {"train/a.jpg": 1, "train/b.jpg": 0}}


def test_csv_for_each_part(tmp_path):
    header, line = "filename,width,height,class,xmin,ymin,xmax,ymax\n", ",40,30,white cell,2,5,20,25\n"
    files = {"images/a.jpg": None, "images/b.jpg": None, "train_labels.csv": f"{header}a.jpg{line}"}
    files |= {"test_labels.csv": f"{header}b.jpg{line}"}
    assert images_of(write(tmp_path, files)) == {"train": {"images/a.jpg": 1}, "test": {"images/b.jpg": 1}}


def test_labelme_with_parts(tmp_path):
    shape = {"label": "white cell", "points": [[2, 5], [20, 25]], "shape_type": "rectangle"}
    text = json.dumps({"shapes": [shape], "imagePath": "x", "imageHeight": 30, "imageWidth": 40})
    files = {"train/a.jpg": None, "train/a.json": text, "val/b.jpg": None, "val/b.json": text, "train/c.jpg": None}
    assert images_of(write(tmp_path, files)) == {"train": {"train/a.jpg": 1, "train/c.jpg": 0}, "val": {"val/b.jpg": 1}}


def test_parts_with_windows_paths_and_parts_that_are_not_here(tmp_path):
    text = "train: ['C:\\x\\images\\s1', images/s2]\nval: D:/x/images/s3\ntest: images/s4\nnames: [dog, white cell]\n"
    files = {"data.yaml": text} | {f"images/s{n}/{n}.jpg": None for n in (1, 2, 3)}
    files |= {f"labels/s{n}/{n}.txt": TXT for n in (1, 2, 3)}
    assert images_of(write(tmp_path, files)) == {
        "train": {"images/s1/1.jpg": 1, "images/s2/2.jpg": 1},
        "val": {"images/s3/3.jpg": 1},
    }
    assert any("data.yaml: test: images/s4 is not here" in note for note in find_layout(tmp_path).notes)


def test_a_list_with_an_image_that_is_not_here(tmp_path):
    files = {
        "train.txt": "images/a.jpg\nimages/z.jpg\n",
        "val.txt": "images/b.jpg\n",
        "classes.txt": "dog\nwhite cell\n",
    }
    files |= {f"images/{name}.jpg": None for name in "ab"} | {f"labels/{name}.txt": TXT for name in "ab"}
    assert set(images_of(write(tmp_path, files))) == {"all"}
    assert any("train.txt: names images/z.jpg, which is not here" in note for note in find_layout(tmp_path).notes)


def test_another_number_of_classes_in_a_yaml_of_any_name(tmp_path):
    files = {"my.yaml": "nc: 3\nnames: [dog, white cell]\n", "a.jpg": None, "a.txt": TXT}
    with pytest.raises(UserError, match=r"my\.yaml: nc is 3, but names lists 2"):
        find_layout(write(tmp_path, files))


@pytest.mark.parametrize("name", ["train/_darknet.labels", "labels.txt"])
def test_other_lists_of_class_names(tmp_path, name):
    files = {"train/a.jpg": None, "train/a.txt": TXT, name: "dog\nwhite cell\n"}
    assert images_of(write(tmp_path, files)) == {"all": {"train/a.jpg": 1}}


def test_keypoints_told_elsewhere_than_in_data_yaml(tmp_path):
    files = {"cfg/pose.yaml": "kpt_shape: [1, 2]\nnames: [dog, white cell]\n", "a.jpg": None, "a.txt": TXT}
    with pytest.raises(UserError, match=r"pose\.yaml: kpt_shape is read from .*/data\.yaml alone"):
        find_layout(write(tmp_path, files))


def test_coco_files_with_an_image_in_common(tmp_path):
    files = {f"images/{name}.jpg": None for name in "abc"}
    files |= {"train.json": coco("a.jpg", "b.jpg"), "val.json": coco("b.jpg", "c.jpg"), "x.json": coco("a.jpg")}
    found = images_of(write(tmp_path, files))
    assert found == {"train": {"images/a.jpg": 1, "images/b.jpg": 0}, "val": {"images/b.jpg": 1, "images/c.jpg": 0}}
    assert any("names images that another" in note for note in find_layout(tmp_path).notes)  # x.json
    (tmp_path / "val.json").rename(tmp_path / "more.json")
    with pytest.raises(UserError, match=r"more\.json: names .*b\.jpg as .*train\.json does .*: take them out"):
        find_layout(tmp_path)


def test_of_two_layouts_the_one_that_annotates_more(tmp_path):
    files = {"a.jpg": None, "b.jpg": None, "a.xml": XML, "a.txt": TXT, "b.txt": TXT, "classes.txt": "dog\nwhite cell\n"}
    assert images_of(write(tmp_path, files)) == {"all": {"a.jpg": 1, "b.jpg": 1}}
    layout = find_layout(tmp_path)
    assert layout.name.startswith("YOLO")
    assert "annotations as Pascal VOC XML" in layout.notes[-1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.jpg": None, "notes.txt": "hello"}, "1 image and no annotations that are known (files: .txt)"),
        (
            {"a.jpg": None, "b.csv": "a.jpg,40\na.jpg,40\n"},
            "b.csv begins with 'a.jpg,40 a.jpg,40': its first line",
        ),
        ({"a.jpg": None, "b.csv": "x,x\n1,2\n"}, "b.csv line 1: names the column x twice"),
        ({"a.jpg": None, "cvat.xml": "<annotations/>"}, "cvat.xml begins with '<annotations/>': export it as one of"),
        ({"a.jpg": None, "b.json": coco("z.jpg")}, "b.json: none of its 1 image is here"),
        ({"a.jpg": None, "b.xml": XML}, "1 annotation file without image, for example"),
        ({"a.jpg": None}, "draw boxes with a labelling tool first"),
        ({"a.txt": "hello"}, "holds no image"),
        ({"export.zip": ""}, "unpack export.zip first"),
    ],
)
def test_what_is_no_data_set(tmp_path, files, said):
    with pytest.raises(UserError) as error:
        find_layout(write(tmp_path, files))
    assert said in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        find_layout(tmp_path / "nowhere")
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(UserError, match=r"no such folder \(did you mean my_photos\?\)"):
        find_layout(tmp_path / "my_photo")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "")
    with pytest.raises(UserError, match="is an archive: unpack it"):
        find_layout(tmp_path / "photos.zip")
    (tmp_path / "a.jpg").write_text("")
    with pytest.raises(UserError, match="is a file: give the folder"):
        find_layout(tmp_path / "a.jpg")


CREATEML = {"image": "a.jpg", "annotations": [
    {"label": "white cell", "coordinates": {"x": 11, "y": 15, "width": 18, "height": 20}}
]}  # fmt: skip
DATUMARO = {"categories": {"label": {"labels": [{"name": "white cell"}]}}, "items": [
    {"id": "a", "annotations": [{"type": "bbox", "label_id": 0, "bbox": COCO_BOX}]}
]}  # fmt: skip
LABEL_STUDIO = [{"data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"result": [{"value": {
    "x": 2 / 0.4, "y": 5 / 0.3, "width": 18 / 0.4, "height": 20 / 0.3, "rectanglelabels": ["white cell"],
}}]}]}]  # fmt: skip
VOTT = {"asset": {"name": "a.jpg"}, "regions": [
    {"tags": ["white cell"], "boundingBox": dict(zip(("left", "top", "width", "height"), COCO_BOX, strict=True))}
]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_annotations.createml.json", [CREATEML]),
        ("annotations/default.json", DATUMARO),
        ("project-1-at-2024.json", LABEL_STUDIO),
        ("p-export.json", {"tags": [], "assets": {"1": VOTT}}),
        ("target/1-asset.json", VOTT),
    ],
)
def test_lists_of_other_tools(tmp_path, name, content):
    files = {name: json.dumps(content), "photos/a.jpg": None, "photos/b.jpg": None}
    assert images_of(write(tmp_path, files)) == {"all": {"photos/a.jpg": 1, "photos/b.jpg": 0}}


def test_createml_of_labelimg_is_one_source(tmp_path):
    files = {f"{name}.json": json.dumps([{**CREATEML, "image": f"{name}.jpg"}]) for name in "ab"}
    assert images_of(write(tmp_path, {**files, "a.jpg": None, "b.jpg": None})) == {"all": {"a.jpg": 1, "b.jpg": 1}}
    assert [source.annotations for source in find_layout(tmp_path).parts["all"]] == [str(tmp_path.resolve())]


CVAT = '<image name="{}" width="40" height="30"{}><box label="white cell" xtl="2" ytl="5" xbr="20" ybr="25"/></image>'


def test_cvat_xml_and_its_subsets(tmp_path):
    images = CVAT.format("a.jpg", ' subset="Train"') + CVAT.format("b.jpg", ' subset="Validation"')
    xml = "<?xml version='1.0'?>\n<annotations>{}</annotations>".format
    files = {"annotations.xml": xml(images), "images/Train/a.jpg": None, "images/Validation/b.jpg": None}
    expected = {"train": {"images/Train/a.jpg": 1}, "val": {"images/Validation/b.jpg": 1}}
    assert images_of(write(tmp_path / "project", files)) == expected
    files = {"labels.xml": xml(CVAT.format("a.jpg", "")), "data/a.jpg": None, "data/b.jpg": None}
    assert images_of(write(tmp_path / "task", files)) == {"all": {"data/a.jpg": 1, "data/b.jpg": 0}}


def test_kitti_beside_images_and_in_a_folder_of_its_own(tmp_path):
    line = "white_cell 0.00 0 -1.58 2 5 20 25 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
    for labels in ("data/", "labels/"):
        files = {"data/a.jpg": None, f"{labels}a.txt": line, "data/b.jpg": None}
        layout = find_layout(write(tmp_path / labels, files))
        assert (layout.name, layout.num_labelled) == ("KITTI text", 1)
        assert [source.format for source in layout.parts["all"]] == ["kitti"]


def test_lists_of_classes_make_parts_where_all_name_the_same_images(tmp_path):
    files = {f"JPEGImages/{name}.jpg": None for name in "abc"} | {f"Annotations/{name}.xml": XML for name in "abc"}
    for name, flags in (("cat", (1, -1)), ("white cell", (1, 1))):
        files[f"ImageSets/Main/{name}_train.txt"] = f"a.jpg {flags[0]}\nb.jpg {flags[1]}\n"
        files[f"ImageSets/Main/{name}_val.txt"] = "c.jpg 1\n"
    found = images_of(write(tmp_path / "vott", files))
    assert {part: sorted(images) for part, images in found.items()} == {
        "train": ["JPEGImages/a.jpg", "JPEGImages/b.jpg"], "val": ["JPEGImages/c.jpg"],
    }  # fmt: skip
    files["ImageSets/Main/cat_train.txt"] = "a.jpg 1\n"
    assert list(images_of(write(tmp_path / "others", files))) == ["all"]


def test_an_export_without_its_images(tmp_path):
    with pytest.raises(UserError, match=r"holds no image .*: put the images of result\.json below the folder"):
        find_layout(write(tmp_path, {"result.json": coco("a.jpg")}))


def test_xml_of_labelme_3(tmp_path):
    """The old LabelMe's form, which CVAT writes: outlines, its own size, and objects that were deleted."""
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((2, 5), (20, 5), (20, 25), (2, 25)))
    thing = f"<object><name>white cell</name><deleted>{{}}</deleted><polygon>{points}</polygon></object>"
    size = "<imagesize><nrows>30</nrows><ncols>40</ncols></imagesize>"
    xml = f"<annotation><filename>a.jpg</filename>{size}{thing.format(0)}{thing.format(1)}</annotation>"
    assert images_of(write(tmp_path, {"default/a.jpg": None, "default/a.xml": xml})) == {"all": {"default/a.jpg": 1}}
    (source,) = find_layout(tmp_path).parts["all"]
    records = build_records(DataConfig(train=[source], classes="auto"), "train", Path("/"))
    assert records.boxes.tolist() == [[2, 5, 20, 25]]


def test_a_table_of_label_studio_says_what_to_export(tmp_path):
    table = "annotation_id,annotator,created_at,id,image,label\n1,1,x,1,/data/upload/1/a.jpg,[]\n"
    with pytest.raises(UserError, match=r"p\.csv begins with .*: it is Label Studio's: export the project as JSON"):
        find_layout(write(tmp_path, {"p.csv": table, "a.jpg": None}))


def test_an_image_of_via_without_a_name_is_left_to_the_reader(tmp_path):
    shape = {"name": "rect", **dict(zip(("x", "y", "width", "height"), COCO_BOX, strict=True))}
    region = {"shape_attributes": shape, "region_attributes": {"class": "white cell"}}
    content = {str(i): {"filename": name, "regions": [region]} for i, name in enumerate(("a.jpg", None))}
    layout = find_layout(write(tmp_path, {"via.json": json.dumps(content), "a.jpg": None}))
    with pytest.raises(UserError, match=r"via\.json: filename is null"):
        build_records(DataConfig(train=layout.parts["all"], classes="auto"), "train", Path("/"))
