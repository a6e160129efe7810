"""Annotations that are kept: the same as read anew, whatever changes, is damaged, or writes at the same time."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from configs.detection import DataConfig
from configs.errors import UserError
from datasets import build, cache
from datasets.build import build_dataset
from datasets.records import Records
from tests.datasets.conftest import annotation_xml, write_image

ROOT = Path(__file__).resolve().parents[2]
CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(4)],
    "annotations": [
        {"id": i + 1, "image_id": i % 3, "category_id": 5 + i % 2, "bbox": [1, 2, 9 + i, 40 * (i == 2) + 4]}
        for i in range(6)
    ],
    "categories": [{"id": 5, "name": "a"}, {"id": 6, "name": "b"}],
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sets are kept too, also such as were written a moment ago."""
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    for name, value in {"MIN_IMAGES": 0, "_FRESH": 0, "_FRESH_IN_SECONDS": 0}.items():
        monkeypatch.setattr(cache, name, value)
    return tmp_path / "home" / "annotations"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by an entry whenever a source is really read."""
    seen: list[str] = []
    read = build._read_whole
    monkeypatch.setattr(build, "_read_whole", lambda source, *rest: seen.append(source.format) or read(source, *rest))
    return seen


def coco(tmp_path: Path, content: dict = CONTENT, **options: object) -> DataConfig:
    (tmp_path / "a.json").write_text(json.dumps(content))
    for image in content["images"]:
        if not (tmp_path / "photos" / image["file_name"]).exists():
            write_image(tmp_path / "photos" / image["file_name"], (20, 30), image["id"])
    source = {"format": "coco", "images": "photos", "annotations": "a.json"}
    return DataConfig.model_validate({"train": [source], "val": [source], **options})


def same(one: Records, other: Records) -> bool:
    for field in fields(Records):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "image_paths":
            a, b = a.tolist(), b.tolist()
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or not np.array_equal(a, b):
                return False
        elif a != b:
            return False
    return True


def test_warnings_of_a_reading_are_seen_where_no_logging_is_set_up(tmp_path, capsys, monkeypatch) -> None:
    content = {**CONTENT, "annotations": [{**item, "bbox": [100, 2, 9, 4]} for item in CONTENT["annotations"]]}
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own
    records = build.build_records(coco(tmp_path, content), "train", tmp_path)
    assert len(records.labels) == 6
    assert "6 objects wholly outside the image" in capsys.readouterr().err


def test_second_start_reads_nothing_and_says_the_same(tmp_path, readings, caplog) -> None:
    data = coco(tmp_path)
    started = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            records = build_dataset(data, "train", tmp_path).records
        started.append((records, [(r.name, r.levelname, r.getMessage()) for r in caplog.records]))
    assert len(readings) == 1
    (first, warnings), (second, again) = started
    assert same(first, second)
    assert warnings == again
    assert "reaching out of the image" in warnings[0][2]
    assert not second.boxes.flags.writeable
    assert not second.boxes.flags.owndata
    assert second.target(1).boxes.tolist() == first.target(1).boxes.tolist()
    assert second.subset([1]).image_paths.tolist() == [str(tmp_path / "photos/1.png")]


def test_different_questions_have_different_answers(tmp_path, readings) -> None:
    build_dataset(coco(tmp_path), "train", tmp_path)
    fewer = build_dataset(coco(tmp_path, classes=["a", "b"], keep_classes=["b"]), "train", tmp_path)
    assert fewer.class_names == ["b"]
    assert len(fewer.records.labels) == 3
    assert build_dataset(coco(tmp_path, train_empty=False), "train", tmp_path).records.image_ids.tolist() == [0, 1, 2]
    assert len(readings) == 3
    other = build_dataset(coco(tmp_path, min_size=300), "train", tmp_path)  # does not decide what is read
    assert len(readings) == 3
    assert other.min_sizes == (300,)


@pytest.mark.parametrize("keep_time", [False, True])
def test_an_edited_file_is_read_anew(tmp_path, readings, keep_time) -> None:
    data = coco(tmp_path)
    assert build_dataset(data, "train", tmp_path).records.boxes[0, 0] == 1
    path, before = tmp_path / "a.json", (tmp_path / "a.json").stat()
    path.write_text(path.read_text().replace('"bbox": [1, 2, 9,', '"bbox": [3, 2, 9,'))  # of the same length
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build_dataset(data, "train", tmp_path).records.boxes[0, 0] == 3
    assert len(readings) == 2


def test_a_touched_file_is_not_read_anew(tmp_path, readings, monkeypatch) -> None:
    data = coco(tmp_path)
    build_dataset(data, "train", tmp_path)
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    os.replace(tmp_path / "b.json", tmp_path / "a.json")  # another inode, another time
    build_dataset(data, "train", tmp_path)
    monkeypatch.setattr(cache, "digest_of", lambda path: pytest.fail("the new state was kept"))
    build_dataset(data, "train", tmp_path)
    assert len(readings) == 1


def test_a_missing_image_is_missing_on_every_start(tmp_path) -> None:
    data = coco(tmp_path)
    build_dataset(data, "train", tmp_path)
    (tmp_path / "photos" / "3.png").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"3\.png: there is no such image"):
            build_dataset(data, "train", tmp_path)


@pytest.mark.parametrize("kind", ["inputs", "records"])
@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"", lambda d: d[:700] + b"\1" + d[701:]])
def test_a_damaged_file_is_made_anew(tmp_path, home, readings, kind, damage) -> None:
    data = coco(tmp_path)
    first = build_dataset(data, "train", tmp_path).records
    (path,) = home.glob(f"*.{kind}")
    path.write_bytes(damage(path.read_bytes()))
    assert same(first, build_dataset(data, "train", tmp_path).records)
    assert len(readings) == 2
    build_dataset(data, "train", tmp_path)
    assert len(readings) == 2
    assert len(list(home.glob("*.inputs"))) == 1


def test_what_changes_during_the_reading_is_not_kept(tmp_path, home, monkeypatch) -> None:
    data = coco(tmp_path)
    read = build._read_whole

    def edited(*args):
        records = read(*args)
        (tmp_path / "a.json").write_text(json.dumps(CONTENT | {"info": {}}))
        return records

    monkeypatch.setattr(build, "_read_whole", edited)
    build_dataset(data, "train", tmp_path)
    assert not home.exists()


def test_files_written_just_now_are_not_kept(tmp_path, home, monkeypatch) -> None:
    """A second change within a tick of the file system's clock would not show."""
    monkeypatch.setattr(cache, "_FRESH", 10**10)
    data = coco(tmp_path)
    build_dataset(data, "train", tmp_path)
    assert not home.exists()
    state = (1, 5, 5 * 10**9 + 1, 7)
    assert cache._is_fresh(state, 6 * 10**9)
    assert not cache._is_fresh(state, 20 * 10**9)


@pytest.mark.parametrize("without_home", [False, True])
def test_unwritable_home_is_said_once(tmp_path, home, readings, caplog, monkeypatch, without_home) -> None:
    monkeypatch.setattr(cache, "_told", [])
    data = coco(tmp_path)
    if without_home:
        monkeypatch.setattr(cache, "home", lambda: Path("~nobody-of-that-name").expanduser())
    else:
        home.parent.write_text("a file")
    for _ in range(2):
        build_dataset(data, "train", tmp_path)
    assert len([r for r in caplog.records if "cannot be kept" in r.getMessage()]) == 1
    assert len(readings) == 2


def test_off(tmp_path, home) -> None:
    build_dataset(coco(tmp_path, cache=False), "train", tmp_path)
    assert not home.exists()


def test_old_files_are_removed(tmp_path, home) -> None:
    data = coco(tmp_path)
    build_dataset(data, "train", tmp_path)
    old = time.time() - 2 * cache.MAX_AGE
    for path in home.iterdir():
        os.utime(path, (old, old))
    build_dataset(coco(tmp_path, train_empty=False), "train", tmp_path)
    assert len(list(home.iterdir())) == 2


def test_pickled_as_a_name(tmp_path) -> None:
    """A worker that is started anew maps the file itself; parts of the records travel as they are."""
    data = coco(tmp_path)
    build_dataset(data, "train", tmp_path)
    records = build_dataset(data, "train", tmp_path).records
    packed = pickle.dumps(records)
    assert len(packed) < 400
    code = "import pickle, sys; r = pickle.load(sys.stdin.buffer); print(r.boxes.sum(), r.image_paths[2])"
    out = subprocess.run([sys.executable, "-c", code], input=packed, stdout=subprocess.PIPE, cwd=ROOT, check=True)
    assert out.stdout.decode().split() == [str(records.boxes.sum()), str(tmp_path / "photos/2.png")]
    part = pickle.loads(pickle.dumps(records.subset([0])))
    assert part.boxes.tolist() == records.subset([0]).boxes.tolist()


def test_two_writers(tmp_path, home) -> None:
    """Both write whole files; what is left is one of the two, and is found."""
    data = coco(tmp_path)

    def write() -> None:
        for _ in range(20):
            build_dataset(data, "train", tmp_path)
            for path in home.glob("*.inputs"):
                path.unlink(missing_ok=True)

    processes = [multiprocessing.get_context("fork").Process(target=write) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    build_dataset(data, "train", tmp_path)
    assert len(list(home.glob("*.inputs"))) == 1
    assert not list(home.glob(".*"))
    kept = build_dataset(data, "train", tmp_path).records
    assert same(kept, build_dataset(data.model_copy(update={"cache": False}), "train", tmp_path).records)


def voc(root: Path) -> dict:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        write_image(root / "JPEGImages" / f"{i}.png", (20, 30), i)
        (root / "Annotations" / f"{i}.xml").write_text(annotation_xml([("cat", (1, 2, 9 + i, 12))], (20, 30)))
    (root / "ImageSets" / "Main" / "all.txt").write_text("0\n1\n2\n")
    return {"format": "voc", "root": str(root), "image_set": "all"}


def yolo(root: Path) -> dict:
    for i in range(3):
        write_image(root / "images" / "all" / f"{i}.png", (20, 30), i)
        (root / "labels" / "all").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "all" / f"{i}.txt").write_text(f"0 0.5 0.5 0.{i + 2} 0.4\n")
    (root / "data.yaml").write_text("names: [cat]\n")
    return {"format": "yolo", "root": str(root), "image_set": "all"}


def labelme(root: Path) -> dict:
    for i in range(3):
        write_image(root / "in" / f"{i}.png", (20, 30), i)
        shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [9 + i, 12]]}
        (root / "in" / f"{i}.json").write_text(
            json.dumps({"shapes": [shape], "imagePath": f"{i}.png", "imageHeight": 20, "imageWidth": 30})
        )
    return {"format": "labelme", "root": str(root), "unlabelled": "empty"}


def csv(root: Path) -> dict:
    lines = ["filename,class,xmin,ymin,xmax,ymax"]
    for i in range(3):
        write_image(root / f"{i}.png", (20, 30), i)
        lines.append(f"{i}.png,cat,1,2,{9 + i},12")
    (root / "boxes.csv").write_text("\n".join(lines))
    return {"format": "csv", "images": str(root), "annotations": str(root / "boxes.csv"), "unlabelled": "empty"}


@pytest.mark.parametrize("make", [voc, yolo, labelme, csv])
def test_no_change_of_any_file_goes_unseen(tmp_path, home, make) -> None:
    """Each file of a set is removed, emptied, doubled and changed: the answer is always that of a reading anew."""
    root = tmp_path / "set"
    source = make(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    assert len(files) >= 4

    def answer(keep: bool) -> str:
        data = DataConfig.model_validate({"train": [source], "cache": keep})
        try:
            records = build_dataset(data, "train", "/").records
        except UserError as error:
            return str(error)
        return str([getattr(records, field.name) for field in fields(Records)]) + str(records.image_paths.tolist())

    original = answer(True)
    assert "Names" in original
    assert list(home.glob("*.records"))
    changes = {
        "removed": lambda path, data: path.unlink(),
        "emptied": lambda path, data: path.write_bytes(b""),
        "doubled": lambda path, data: path.with_name("9" + path.suffix).write_bytes(data),
        "changed": lambda path, data: path.write_bytes(data.replace(b"12", b"11").replace(b"0.4", b"0.3")),
    }
    for path in files:
        data = path.read_bytes()
        for what, change in changes.items():
            change(path, data)
            assert answer(True) == answer(False), (path, what)
            path.with_name("9" + path.suffix).unlink(missing_ok=True)
            path.write_bytes(data)
            assert answer(True) == original
