"""The formats that are damaged: a small valid file of each, and what a script does with it."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from backbones.conversion import convert
from backbones.weights import read_weights_file
from configs.classification import ClassificationConfig, ImageSourceConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config, parse_config
from configs.localisation import LocalisationSourceConfig
from configs.pickles import PickleError, read_pickle
from datasets.annotation_files import read_folder
from datasets.annotation_lists import ListFormat, read_list
from datasets.annotation_tables import read_csv
from datasets.cifar import read_cifar10
from datasets.classification import read_set
from datasets.coco import read_coco
from datasets.coco_exports import add_unlisted
from datasets.images import image_file_size, read_image
from datasets.localisation import read_localisation
from datasets.records import Records
from datasets.via import read_via
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from detection.checkpoint import load_detector
from detection.evaluation.coco import evaluate_coco
from detection.evaluation.data import GroundTruth, align
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.results import read_detections, read_detections_together
from detection.model import build_detector
from tests.fuzz.lists import CREATEML, CVAT, DATUMARO, KITTI, LABEL_STUDIO, VOTT
from tests.fuzz.mutate import as_json, mutate_bytes, mutate_text, mutate_tree

SIZE = (48, 64)
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 15], "area": 250.5, "iscrowd": 0},
        {"id": 11, "image_id": 2, "category_id": 5, "bbox": [30, 10, 12, 24], "area": 287.5, "iscrowd": 1},
    ],
}
RESULTS = [
    {"image_id": image, "category_id": category, "bbox": [5.5, 6, 20, 15.25], "score": 0.75 - image / 10}
    for image, category in ((1, 1), (2, 5), (2, 1))
]
XML = """<?xml version="1.0" encoding="UTF-8"?>
<annotation><folder>v</folder><filename>a.png</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><truncated>1</truncated>
<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>20.5</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>30</xmin><ymin>10</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""
YAML = (
    "data:\n  train:\n    - {format: voc, root: my_data, image_set: train}\n  classes: [cat, dog]\n"
    "model: {backbone: resnet18, weights: random, norm: batch, frozen_stages: 0}\n"
    "optim: {name: sgd, lr: 0.01, reference_batch_size: 2}\nschedule: {iterations: 10, policy: constant}\n"
    "train: {batch_size: 2}\n"
)


CLASSIFIER_YAML = (
    "data:\n  train: {format: folders, root: a}\n  crop_size: 32\n  augment: {crop: pad, pad: 4}\n"
    "model:\n  backbone: resnet18\noptim: {lr: 0.1, reference_batch_size: 8}\n"
    "schedule: {iterations: 10, milestones: [5, 8]}\ntrain: {batch_size: 8}\n"
)
LABELME = {
    "version": "5.0", "imagePath": "a.png", "imageHeight": SIZE[0], "imageWidth": SIZE[1],
    "shapes": [
        {"label": "cat", "shape_type": "rectangle", "points": [[5, 6], [25, 20.5]]},
        {"label": "dog", "shape_type": "polygon", "points": [[30, 10], [50, 12], [40, 40]]},
        {"label": "dog", "shape_type": "circle", "points": [[20, 20], [25, 20]]},
    ],
}  # fmt: skip
SUPERVISELY = {
    "size": {"height": SIZE[0], "width": SIZE[1]},
    "objects": [
        {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[5, 6], [25, 20]], "interior": []}},
        {"classTitle": "dog", "geometryType": "polygon", "points": {"exterior": [[30, 10], [50, 12], [40, 40]]}},
    ],
}
SUPERVISELY_META = {"classes": [{"title": "cat", "shape": "rectangle"}, {"title": "dog", "shape": "polygon"}]}
VIA = {
    "a.png99": {
        "filename": "a.png", "size": 99, "file_attributes": {},
        "regions": [
            {"shape_attributes": {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 14.5},
             "region_attributes": {"class": "cat"}},
            {"shape_attributes": {"name": "polygon", "all_points_x": [30, 50, 40], "all_points_y": [10, 12, 40]},
             "region_attributes": {"class": {"dog": True}}},
            {"shape_attributes": {"name": "circle", "cx": 20, "cy": 20, "r": 5}, "region_attributes": {"class": "cat"}},
        ],
    },
    "b b.png99": {"filename": "b b.png", "size": 99, "regions": {}, "file_attributes": {}},
}  # fmt: skip
VIA_CSV = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.png,99,"{}",1,0,"{""name"":""rect"",""x"":5,""y"":6,""width"":20,""height"":14}","{""class"":""cat""}"\n'
    'b b.png,99,"{}",0,0,"{}","{}"\n'
)
TABLE = (
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,cat,5,6,25,20.5\na.png,64,48,dog,30,10,50,40\n"
    "b b.png,64,48,cat,1,2,30,40\n"
)
WHEAT = 'image_id,width,height,bbox,source\na,64,48,"[5.0, 6, 20.5, 14]",x\nb b,64,48,"[1, 2, 3, 4]",x\n'
"""Kaggle's Global Wheat Detection."""


def check_records(records: Records) -> None:
    """What a training makes of records that a reader let through."""
    assert np.isfinite(records.boxes).all()
    assert len(records.labels) == records.offsets[-1]
    for index in range(len(records)):
        target = records.target(index)
        height, width = records.image_size(index)
        assert (target.boxes >= 0).all()
        assert (target.boxes <= [width, height, width, height]).all()
        assert ((target.labels >= 1) & (target.labels <= len(records.class_names))).all()
    GroundTruth.from_records(records)


def coco(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_bytes(as_json(mutate_tree(COCO, rng), rng))
    records = read_coco(folder / "a.json", folder)
    check_records(add_unlisted(records, folder, "empty"))


def coco_scored(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_bytes(as_json(mutate_tree(COCO, rng), rng))
    (folder / "dt.json").write_text(json.dumps(RESULTS))
    truth = read_coco_ground_truth(folder / "a.json")
    evaluate_coco(align(truth, read_detections(folder / "dt.json", truth)))


def coco_results(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_text(json.dumps(COCO))
    (folder / "dt.json").write_bytes(as_json(mutate_tree(RESULTS, rng), rng))
    truth = read_coco_ground_truth(folder / "a.json")
    evaluate_coco(align(truth, read_detections(folder / "dt.json", truth)))


def results_together(folder: Path, rng: random.Random) -> None:
    (folder / "a.json").write_text(json.dumps(RESULTS))
    (folder / "b.json").write_bytes(as_json(mutate_tree(RESULTS, rng), rng))
    read_detections_together([folder / "a.json", folder / "b.json"])


def voc(folder: Path, rng: random.Random) -> None:
    (folder / "Annotations" / "a.xml").write_bytes(mutate_text(XML, rng))
    check_records(read_voc(folder, "train"))
    read_voc_ground_truth(folder, "train")


def voc_lists(folder: Path, rng: random.Random) -> None:
    lists = {"ImageSets/Main/train.txt": "a\nb b 1\n", "comp4_det_train_cat.txt": "a .5 1 1 9 9\nb b .75 3 3 19 19\n"}
    damaged = rng.choice(list(lists))
    for name, text in lists.items():
        (folder / name).write_bytes(mutate_text(text, rng) if name == damaged else text.encode())
    check_records(read_voc(folder, "train"))
    read_detections(folder, read_voc_ground_truth(folder, "train"), "train")


def yolo(folder: Path, rng: random.Random) -> None:
    (folder / "labels" / "train" / "a.txt").write_bytes(mutate_text("0 .5 .5 .25 .5\n1 .1 .1 .4 .1 .4 .5\n", rng))
    names = "names: [cat, dog]\nnc: 2\nkpt_shape: null\n"
    (folder / "data.yaml").write_bytes(names.encode() if rng.random() < 0.7 else mutate_text(names, rng))
    check_records(read_yolo(folder, "train"))


def config(folder: Path, rng: random.Random) -> None:
    (folder / "c.yaml").write_bytes(mutate_text(YAML, rng))
    read = load_config(folder / "c.yaml", [], DetectionConfig)
    (folder / "again.yaml").write_text(dump_config(read), encoding="utf-8")
    assert load_config(folder / "again.yaml", [], DetectionConfig) == read


def classifier_config(folder: Path, rng: random.Random) -> None:
    (folder / "c.yaml").write_bytes(mutate_text(CLASSIFIER_YAML, rng))
    load_config(folder / "c.yaml", [], ClassificationConfig)


def images(folder: Path, rng: random.Random) -> None:
    picture, buffer, exif = Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)), io.BytesIO(), Image.Exif()
    exif[0x0112] = rng.randrange(10)
    picture.save(buffer, rng.choice(("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")), exif=exif)
    path = folder / "x.png"
    path.write_bytes(mutate_bytes(buffer.getvalue(), rng))
    for declared in (None, SIZE):
        size = image_file_size(path, declared)
        image = read_image(path, declared)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8


def labelme(folder: Path, rng: random.Random) -> None:
    write_annotation(folder, "JPEGImages/a.json", as_json(mutate_tree(LABELME, rng), rng))
    check_records(read_folder(folder / "JPEGImages", "labelme", unlabelled="empty"))


def supervisely(folder: Path, rng: random.Random) -> None:
    write_annotation(folder, "JPEGImages/a.png.json", as_json(mutate_tree(SUPERVISELY, rng), rng))
    meta = SUPERVISELY_META if rng.random() < 0.8 else mutate_tree(SUPERVISELY_META, rng)
    write_annotation(folder, "JPEGImages/meta.json", as_json(meta, rng))
    check_records(read_folder(folder / "JPEGImages", "supervisely", unlabelled="empty"))


def via(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        path = write_annotation(folder, "via.json", as_json(mutate_tree(VIA, rng), rng))
    else:
        path = write_annotation(folder, "via.csv", mutate_text(VIA_CSV, rng))
    check_records(read_via(path, folder / "JPEGImages", unlabelled="empty"))


def table(folder: Path, rng: random.Random) -> None:
    path = write_annotation(folder, "boxes.csv", mutate_text(rng.choice((TABLE, WHEAT)), rng))
    check_records(read_csv(path, folder / "JPEGImages", unlabelled="empty"))


def kitti(folder: Path, rng: random.Random) -> None:
    write_annotation(folder, "JPEGImages/a.txt", mutate_text(KITTI, rng))
    check_records(read_folder(folder / "JPEGImages", "kitti", unlabelled="empty"))


def cvat(folder: Path, rng: random.Random) -> None:
    path = write_annotation(folder, "annotations.xml", mutate_text(CVAT, rng))
    check_records(read_list(path, folder / "JPEGImages", "cvat", unlabelled="empty"))


LISTS: dict[ListFormat, Any] = {
    "createml": CREATEML, "label_studio": LABEL_STUDIO, "datumaro": DATUMARO, "vott": VOTT,
}  # fmt: skip


def lists(folder: Path, rng: random.Random) -> None:
    name = rng.choice(list(LISTS))
    path = write_annotation(folder, "list.json", as_json(mutate_tree(LISTS[name], rng), rng))
    check_records(read_list(path, folder / "JPEGImages", name, unlabelled="empty"))


def write_annotation(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def cifar(folder: Path, rng: random.Random) -> None:
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [3, 9]}
    for number in range(1, 6):
        data = pickle.dumps(batch, 2)
        (folder / f"data_batch_{number}").write_bytes(mutate_bytes(data, rng) if number == 1 else data)
    assert read_cifar10(folder, "train").images.shape[1:] == (32, 32, 3)


def cifar_zip(folder: Path, rng: random.Random) -> None:
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(picture, "PNG")
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in ("cat", "dog"):
            archive.writestr(f"train/{name}/1.png", picture.getvalue())
    (folder / "c.zip").write_bytes(mutate_bytes(buffer.getvalue(), rng))
    assert read_cifar10(folder / "c.zip", "train").images.shape[1:] == (32, 32, 3)


def imagenet(folder: Path, rng: random.Random) -> None:
    name, text = rng.choice((
        ("gt.csv", "ImageId,PredictionString\na,n01 1 2 3 4\nb b,n02 1 2 3 4 n01 5 6 7 8\n"),
        ("gt.txt", "a.png n01\nb b.png n02\n"),
    ))  # fmt: skip
    write_annotation(folder, name, mutate_text(text, rng))
    source = ImageSourceConfig(format="imagenet_val", root="JPEGImages", ground_truth=name)
    assert len(read_set(source, folder).labels) == 2


def tiny_imagenet(folder: Path, rng: random.Random) -> None:
    (folder / "val" / "images").mkdir(parents=True, exist_ok=True)
    for name in ("1", "2"):
        (folder / "val" / "images" / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    text = "1.png n01 0 0 10 10\n2.png n02 1 2 30 40\n"
    write_annotation(folder, "val/val_annotations.txt", mutate_text(text, rng))
    classes = read_set(ImageSourceConfig(format="tiny_imagenet", root=".", split="val"), folder)
    records = read_localisation(LocalisationSourceConfig(format="tiny_imagenet", root=".", split="val"), folder)
    check_records(records)
    assert len(classes.labels) == 2


def make_checkpoint() -> dict[str, Any]:
    """A detector's checkpoint as small as they come."""
    unit = {"stem": {"kernel": 3, "width": 4, "stride": 2, "pool": True}, "unit": "basic"}
    stages = [{"units": 1, "width": 4, "stride": 1 + (number > 0)} for number in range(4)]
    values = {
        "data": {"train": [{"format": "voc", "root": "v", "image_set": "train"}], "classes": ["cat"]},
        "model": {
            "backbone": {**unit, "stages": stages}, "weights": "random", "norm": "batch", "frozen_stages": 0,
            "anchors": {"sizes": [16]}, "rpn": {"hidden_channels": 4}, "box": {"pool_size": 2},
        },
        "optim": {"name": "sgd", "lr": 0.01, "reference_batch_size": 1}, "schedule": {"iterations": 1},
        "train": {"batch_size": 1},
    }  # fmt: skip
    recipe = parse_config(values, [], DetectionConfig, "checkpoint")
    detector = build_detector(recipe.model, ["cat"])
    return {
        "format": 1, "kind": "detector", "config": recipe.model_dump(mode="json"), "class_names": ["cat"],
        "preprocessing": detector.preprocessing.to_dict(), "model": dict(detector.state_dict()), "training": {},
    }  # fmt: skip


def checkpoints(folder: Path, rng: random.Random) -> None:
    """The bytes and the values of a detector's file."""
    path, content = folder / f"x.{rng.choice(('pt', 'pth'))}", mutate_tree(make_checkpoint(), rng)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=path.suffix == ".pt")
    path.write_bytes(mutate_bytes(buffer.getvalue(), rng) if rng.random() < 0.5 else buffer.getvalue())
    load_detector(path)


def weights(folder: Path, rng: random.Random) -> None:
    """Other projects' weights in every format, through each conversion."""
    name = rng.choice(("w.pt", "w.safetensors", "w.pkl"))
    tensors = {"conv1.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}
    if name == "w.safetensors":
        data = safetensors_bytes(tensors)
    elif name == "w.pkl":
        data = pickle.dumps({"blobs": {key: value.numpy() for key, value in tensors.items()}}, 2)
    else:
        torch.save({"state_dict": tensors}, buffer := io.BytesIO())
        data = buffer.getvalue()
    (folder / name).write_bytes(mutate_bytes(data, rng))
    content = read_weights_file(folder / name)
    read = 0
    for source in ("torchvision", "msra", "akamaster", "caffe-vgg16"):
        try:
            convert(content, source, folder / name)
        except UserError:
            read += 1
    assert read == 4  # no net has two layers


def pickles(folder: Path, rng: random.Random) -> None:
    content = {"blobs": {"conv1_w": np.arange(12, dtype=np.float32).reshape(3, 4)}, "labels": [1, 2], "x": (1.5, None)}
    data = mutate_bytes(pickle.dumps(content, rng.randrange(5)), rng)
    try:
        read_pickle(data)
    except PickleError as error:
        raise UserError(str(error)) from None


FORMATS: dict[str, Callable[[Path, random.Random], None]] = {
    function.__name__: function
    for function in (
        coco, coco_scored, coco_results, results_together, voc, voc_lists, yolo, labelme, supervisely, via, table,
        kitti, cvat, lists, config,
        classifier_config, images, cifar, cifar_zip, imagenet, tiny_imagenet, checkpoints, weights, pickles,
    )
}  # fmt: skip
"""Name -> what writes a damaged file into the folder of a valid set (`make_folder`) and reads it.

Raises:
    UserError: refused, as it should be.
"""


def make_folder(folder: Path) -> Path:
    """A small valid set in every layout."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages", "images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    picture = np.full((*SIZE, 3), 128, np.uint8)
    for name in ("1", "2", "JPEGImages/a", "JPEGImages/b b", "images/train/a", "images/train/b"):
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    for name in ("a", "b b"):
        (folder / "Annotations" / f"{name}.xml").write_text(XML)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb b\n")
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    return folder


def digest(records: Records) -> str:
    """All that training and evaluation take from records, without the names of the files."""
    parts = (
        records.image_paths, records.image_ids, records.sizes, records.offsets, records.boxes, records.labels,
        records.area, records.iscrowd, records.difficult, records.truncated, records.annotation_ids,
        records.class_names, records.category_ids,
    )  # fmt: skip
    return repr([np.asarray(part).tolist() for part in parts])
