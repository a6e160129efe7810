"""From config sections to data sets: joined sources, class lists of every kind, and mistakes in one line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.detection import DataConfig
from configs.errors import UserError
from datasets.build import build_dataset, build_records, resolve_class_names
from datasets.class_lists import COCO, VOC
from datasets.target import SampleKey, check_sample


def box(number: int) -> tuple[int, int, int, int]:
    return (2 + number, 3, 20 + number, 25)


@pytest.fixture
def root(write_voc, tmp_path: Path) -> Path:
    """Two VOC folders: one with cats, dogs and an empty image, the other with a dog, and a cow in its val set."""
    write_voc(
        {
            "a": ((30, 40), [("cat", box(1)), ("dog", box(2), {"difficult"})]),
            "b": ((40, 30), []),
            "c": ((30, 40), [("dog", box(3), {"difficult"})]),
        },
        folder="one",
    )
    write_voc({"d": ((30, 40), [("dog", box(4))])}, folder="two")
    write_voc({"e": ((30, 40), [("cow", box(5)), ("cat", box(6))])}, folder="two", image_set="val")
    return tmp_path


def voc(folder: str, image_set: str = "train") -> dict:
    return {"format": "voc", "root": folder, "image_set": image_set}


def config(**changes) -> DataConfig:
    return DataConfig(**{"train": [voc("one"), voc("two")], "val": [voc("two", "val")], **changes})


def test_sources_are_joined_in_order(root: Path) -> None:
    dataset = build_dataset(config(), "train", root)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.records.image_ids.tolist() == ["a", "b", "c", "d"]
    assert dataset.records.labels.tolist() == [1, 2, 2, 2]
    for i in range(4):
        check_sample(dataset[SampleKey(0, i)], num_classes=2)


def test_images_of_several_sources_are_told(root: Path, caplog) -> None:
    records = build_records(config(train=[voc("one"), voc("one")]), "train", root)
    assert len(records) == 6
    assert f"have 3 images in common, the first: {root / 'one/JPEGImages/a.jpg'}" in caplog.text
    caplog.clear()
    build_records(config(), "train", root)
    assert not caplog.text


def test_split_decides_about_augmentation_and_size(root: Path) -> None:
    data = config(min_size=[50, 60], max_size=200, test_min_size=45, test_max_size=55, classes=["cat", "cow", "dog"])
    train, val = build_dataset(data, "train", root), build_dataset(data, "val", root)
    assert {min(train.output_size(epoch, 0)) for epoch in range(20)} == {50, 60}
    assert val.output_size(0, 0) == val.output_size(7, 0) == (41, 55)
    assert train.augment == data.augment
    assert val.augment is None


def test_class_lists_by_name_and_by_list(root: Path) -> None:
    dataset = build_dataset(config(classes="voc"), "val", root)
    assert dataset.class_names == VOC
    assert [VOC[label - 1] for label in dataset.records.labels] == ["cow", "cat"]
    assert resolve_class_names(config(classes="coco"), root) == COCO
    dataset = build_dataset(config(classes=["dog", "cow", "cat"]), "val", root)
    assert dataset.records.labels.tolist() == [2, 3]


def test_auto_is_the_training_sets_and_the_others_must_follow(root: Path) -> None:
    assert resolve_class_names(config(), root) == ["cat", "dog"]
    for names in (None, ["cat", "dog"]):
        with pytest.raises(UserError) as error:
            build_dataset(config(), "val", root, class_names=names)
        assert "e.xml object 0 (cow): class cow is not among the 2 classes [cat, dog]" in str(error.value)
        assert "\n" not in str(error.value)


def test_keep_and_rename(root: Path) -> None:
    data = config(keep_classes=["cat"])
    assert build_dataset(data, "train", root).class_names == ["cat"]
    assert build_dataset(data, "train", root).records.offsets.tolist() == [0, 1, 1, 1, 1]
    data = config(rename_classes={"dog": "pet", "cat": "pet", "cow": "cattle"}, classes=["cattle", "pet"])
    assert build_dataset(data, "train", root).records.labels.tolist() == [2, 2, 2, 2]
    assert build_dataset(data, "val", root).records.labels.tolist() == [1, 2]
    data = config(rename_classes={"dog": "pet", "cow": "pet"})
    assert build_dataset(data, "val", root).class_names == ["cat", "pet"]
    data = config(keep_classes=["dog", "cat"], classes=["cow", "cat", "dog"])
    val = build_dataset(data, "val", root, class_names=["cat", "dog"])
    assert val.class_names == ["cat", "dog"]  # in the classes' order, whatever keep_classes has
    assert val.records.labels.tolist() == [1]
    # a checkpoint's names, the training annotations being elsewhere
    data = config(keep_classes=["cat"], train=[voc("gone")])
    assert build_dataset(data, "val", root, class_names=["cat"]).records.labels.tolist() == [1]


def test_many_classes(tmp_path: Path) -> None:
    """Each was looked for in the list of all: 5 to 16 seconds of CPU time for 20,000."""
    names = [f"class {number}" for number in range(20_000)]
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("".join(f"{number} .5 .5 .5 .5\n" for number in range(len(names))))
    start = time.process_time()
    data = config(train=[{"format": "yolo", "root": "."}], classes=names, keep_classes=names[::-1])
    assert build_records(data, "train", tmp_path).labels.tolist() == list(range(1, len(names) + 1))
    assert time.process_time() - start < 3


def test_a_renaming_of_nothing_is_told(root: Path, caplog) -> None:
    build_dataset(config(rename_classes={"dgo": "cat"}), "train", root)
    assert "data.rename_classes: no class is called dgo (did you mean dog?)" in caplog.text


def test_crowds_alone_are_nothing_to_train_on(root: Path, write_coco) -> None:
    item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 1}
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    path, folder = write_coco({"images": images, "annotations": [item], "categories": [{"id": 1, "name": "cat"}]})
    source = {"format": "coco", "images": str(folder), "annotations": str(path)}
    with pytest.raises(UserError, match=r"all 1 are crowds \(iscrowd: 1\)"):
        build_dataset(config(train=[source]), "train", root)


def test_checkpoints_names_lead(root: Path) -> None:
    dataset = build_dataset(config(classes="voc"), "val", root, class_names=["cow", "cat"])
    assert dataset.class_names == ["cow", "cat"]
    assert dataset.records.labels.tolist() == [1, 2]


def test_empty_images_and_difficult_objects(root: Path) -> None:
    ids = {
        (empty, difficult): build_dataset(
            config(train_empty=empty, train_difficult=difficult), "train", root
        ).records.image_ids.tolist()
        for empty in (True, False)
        for difficult in (True, False)
    }
    assert ids[True, True] == ids[True, False] == ["a", "b", "c", "d"]
    assert ids[False, True] == ["a", "c", "d"]
    assert ids[False, False] == ["a", "d"]  # c has a difficult object only


def test_coco_and_yolo_sources(root: Path, write_coco) -> None:
    write_coco(
        {
            "images": [{"id": 5, "file_name": "x.jpg", "height": 30, "width": 40}],
            "categories": [{"id": 3, "name": "dog"}, {"id": 70, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": 5, "category_id": 70, "bbox": [1, 2, 10, 10], "area": 9}],
        }
    )
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "images" / "train" / "y.png")
    (root / "labels" / "train" / "y.txt").write_text("1 .5 .5 .5 .5")
    coco = {"format": "coco", "images": "images", "annotations": "instances.json"}
    yolo = {"format": "yolo", "root": ".", "image_set": "train"}
    records = build_records(config(train=[coco]), "train", root)
    assert (records.class_names, records.labels.tolist()) == (["cat", "dog"], [1])
    assert records.category_ids.tolist() == [70, 3]
    assert records.image_ids.tolist() == [5]
    records = build_records(config(train=[yolo, coco, voc("two")], classes=["dog", "cat"]), "train", root)
    assert records.labels.tolist() == [2, 2, 1]
    assert records.image_ids.tolist() == ["1/y", "2/5", "3/d"]


def test_imagenet_names_for_wordnet_ids(write_voc, tmp_path: Path) -> None:
    write_voc({"a": ((30, 40), [("n02883205", box(1)), ("zebra", box(2))])})
    records = build_records(config(train=[voc("voc")], classes="imagenet_det"), "train", tmp_path)
    assert [records.class_names[label - 1] for label in records.labels] == ["bow tie", "zebra"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": "vox"}, "data.classes: vox is neither a list of names nor one of voc, coco, imagenet_det, auto"),
        ({"classes": ["cat", "dog", "cat"]}, "data.classes: lists cat more than once"),
        ({"classes": []}, "data.classes: is empty"),
        ({"classes": ["cat", "dog", " "]}, "data.classes: holds an empty name"),
        ({"keep_classes": ["dogg"]}, "data.keep_classes: dogg is not one of the classes (did you mean dog?)"),
        ({"keep_classes": []}, "data.keep_classes: is empty"),
        ({"rename_classes": {"dog": "doge"}, "classes": "voc"}, "data.rename_classes: doge is not one of the classes"),
        ({"classes": ["cat", "dogs"]}, "a.xml object 1 (dog): class dog is not among the 2 classes [cat, dogs]"),
        ({"train": [voc("one", "trian")]}, "there is no such image set (did you mean train?)"),
        ({"train": [voc("VOCdevkit/VOC2007")]}, "tools/prepare_data.py voc2007"),
    ],
)
def test_mistakes(root: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        build_dataset(config(**changes), "train", root)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_to_train_on(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.test: lists no source"):
        build_dataset(config(), "test", root)
    with pytest.raises(UserError, match="has no object of the classes cow to train on"):
        build_dataset(config(classes=["cat", "dog", "cow"], keep_classes=["cow"]), "train", root)
    for path in (root / "two" / "Annotations").iterdir():
        text = path.read_text()
        path.write_text(text.replace("<difficult>0<", "<difficult>1<"))
    with pytest.raises(UserError, match=r"to train on: all \d+ are marked difficult: set data\.train_difficult=true"):
        build_dataset(config(train=[voc("two")], classes="voc", train_difficult=False), "train", root)
    for path in (root / "two" / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no annotations"):
        build_dataset(config(train=[voc("two")], classes="voc"), "train", root)
    assert not build_dataset(config(classes="voc"), "val", root).records.annotated


def test_classes_without_objects_are_reported(root: Path, caplog) -> None:
    build_dataset(config(classes=["cat", "dog", "cow"]), "train", root)
    assert "1 of 3 classes without an object to train on: cow" in caplog.text


def test_generated_set_ignores_the_data_root(monkeypatch, tmp_path: Path) -> None:
    from datasets import build, generated

    monkeypatch.setattr(build, "generate", lambda name, size: generated.generate(name, size, tmp_path / "drawn"))
    data = DataConfig(train=[{"format": "generated", "image_set": "train", "size": 5}])
    dataset = build_dataset(data, "train", tmp_path / "nowhere")
    assert len(dataset) == 5
    assert all(Path(str(path)).parent == tmp_path / "drawn" / "JPEGImages" for path in dataset.records.image_paths)
    assert np.all(dataset.records.labels >= 1)


@pytest.mark.parametrize("split", [0.5, [0.4, 0.3, 0.3]])
def test_a_source_gives_each_list_its_part(write_voc, tmp_path: Path, split) -> None:
    write_voc({f"{i}": ((30, 40), [("cat", box(1))]) for i in range(12)}, folder="all")
    source = {**voc("all"), "split": split}
    data = config(train=[source], val=[source], test=[source])
    parts = ["train", "val"] if split == 0.5 else ["train", "val", "test"]
    ids = [build_records(data, part, tmp_path).image_ids.tolist() for part in parts]
    assert sorted(image_id for some in ids for image_id in some) == sorted(f"{i}" for i in range(12))
    if split == 0.5:
        with pytest.raises(UserError, match="leaves nothing to test"):
            build_records(data, "test", tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_images_without_annotation(write_voc, tmp_path: Path, listed: bool) -> None:
    root = write_voc({"a": ((30, 40), [("cat", box(1))]), "b": ((30, 40), []), "c": ((30, 40), [])}, folder="set")
    (root / "Annotations/c.xml").unlink()
    source = voc("set") if listed else {"format": "voc", "root": "set"}
    with pytest.raises(UserError, match="unlabelled: empty"):
        build_records(config(train=[source]), "train", tmp_path)
    empty = build_records(config(train=[{**source, "unlabelled": "empty"}]), "train", tmp_path)
    assert np.diff(empty.offsets).tolist() == [1, 0, 0]
    skip = build_records(config(train=[{**source, "unlabelled": "skip"}]), "train", tmp_path)
    assert skip.image_ids.tolist() == ["a", "b"]
