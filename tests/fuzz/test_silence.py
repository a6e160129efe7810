"""No change of a value is silent: an error, a warning, or other records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from datasets.annotation_files import read_folder
from datasets.annotation_lists import read_list
from datasets.annotation_tables import read_csv
from datasets.coco import read_coco
from datasets.records import Records
from datasets.via import read_via
from datasets.voc import read_voc
from datasets.yolo import read_yolo
from tests.fuzz.formats import COCO, LABELME, SUPERVISELY, SUPERVISELY_META, TABLE, VIA, XML, digest, make_folder
from tests.fuzz.lists import CREATEML, CVAT, DATUMARO, KITTI, LABEL_STUDIO, VOTT
from tests.fuzz.mutate import VALUES, WORDS, places

YOLO = "0 .5 .5 .25 .5\n1 .1 .1 .4 .1 .4 .5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def read_of(name: str, folder: Path) -> Records:
    pictures = folder / "JPEGImages"
    if name in ("labelme", "supervisely"):
        (pictures / "meta.json").write_text(json.dumps(SUPERVISELY_META))
        return read_folder(pictures, name, unlabelled="empty")  # type: ignore[arg-type]
    if name in ("createml", "label_studio", "datumaro", "vott", "cvat"):
        path = folder / ("annotations.xml" if name == "cvat" else "list.json")
        return read_list(path, pictures, name, unlabelled="empty")  # type: ignore[arg-type]
    readers: dict[str, Callable[[], Records]] = {
        "kitti": lambda: read_folder(pictures, "kitti", unlabelled="empty"),
        "coco": lambda: read_coco(folder / "a.json", folder),
        "via": lambda: read_via(folder / "via.json", pictures, unlabelled="empty"),
        "voc": lambda: read_voc(folder, "train"),
        "yolo": lambda: read_yolo(folder, "train"),
        "table": lambda: read_csv(folder / "boxes.csv", pictures, unlabelled="empty"),
    }
    return readers[name]()


def silent(name: str, folder: Path, file: Path, changes: Iterator[tuple[str, str]], caplog: Any) -> list[str]:
    """Which changes of a file change nothing and are not told."""
    before, found = digest(read_of(name, folder)), []
    for what, text in changes:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        caplog.clear()
        try:
            if digest(read_of(name, folder)) == before and not caplog.records:
                found.append(what)
        except UserError:
            pass
    return found


TREES = {
    "coco": (COCO, "a.json", {"height", "width"}),
    "labelme": (LABELME, "JPEGImages/a.json", {"version", "imagePath", "imageHeight", "imageWidth", "shape_type"}),
    "supervisely": (SUPERVISELY, "JPEGImages/a.png.json", {"height", "width", "size", "geometryType", "interior"}),
    "via": (VIA, "via.json", {"size", "file_attributes"}),
    "createml": (CREATEML, "list.json", set()),
    "label_studio": (LABEL_STUDIO, "list.json", {"id", "original_width", "original_height", "type", "was_cancelled"}),
    "datumaro": (DATUMARO, "list.json", {"info", "id", "image", "parent", "attributes"}),
    "vott": (VOTT, "list.json", {"id", "color", "size", "points", "state", "type"}),
}
"""Tree, file, and the keys that may hold anything, or say what the image says too."""


@pytest.mark.parametrize("name", TREES)
def test_values_of_json(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree, file, free = TREES[name]
    (folder / file).write_text(json.dumps(tree))

    def changes() -> Iterator[tuple[str, str]]:
        for path in places(tree):
            for value in VALUES if path and not free & set(path) else ():
                changed = json.loads(json.dumps(tree))
                parent = changed
                for step in path[:-1]:
                    parent = parent[step]
                if not same_meaning(parent[path[-1]], value, path[-1]):
                    parent[path[-1]] = value
                    yield f"{'.'.join(map(str, path))} = {value!r:.60}", json.dumps(changed)

    assert silent(name, folder, folder / file, changes(), caplog) == []


def same_meaning(old: Any, new: Any, key: Any) -> bool:
    """0, false and null are one as a flag, nothing and an empty list of objects too; numbers are taken by value."""
    if key == "iscrowd":
        return bool(old) == bool(new) and (new is None or isinstance(new, bool | int))
    empty = old in ([], {}) and new in (None, [], {}, False, 0, "")
    ticked = old is True and bool(new)  # a box of several in VIA
    return empty or ticked or (type(old) in (int, float) and type(new) in (int, float) and old == new)


TEXTS = {
    "voc": (XML, "Annotations/a.xml", r"<(?:name|difficult|truncated|xmin|ymin|xmax|ymax)>([^<]*)<"),
    "yolo": (YOLO, "labels/train/a.txt", r"(\S+)"),
    "cvat": (CVAT, "annotations.xml", r'(?<=[^h])(?:label|xtl|ytl|xbr|ybr|rotation|points|cx|cy|rx|ry)="([^"]*)"'),
    "kitti": (KITTI, "JPEGImages/a.txt", r"\b(Car|Van|0\.50|5\.00|6\.00|25\.00|20\.50|30\.00)\b"),
    "table": (TABLE.replace(",width,height", "").replace(",64,48", ""), "boxes.csv", r"([^,\n]+)"),
}
"""Text, file, and what finds its values (but for sizes, which are read from the image where they are no numbers)."""


@pytest.mark.parametrize("name", TEXTS)
def test_values_of_text(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, file, values = TEXTS[name]
    (folder / file).write_text(text)

    def changes() -> Iterator[tuple[str, str]]:
        for match in re.finditer(values, text):
            for word in WORDS:
                if not same_text(match[1], word):
                    changed = text[: match.start(1)] + word + text[match.end(1) :]
                    yield f"{match.start()} {match[1]} = {word!r:.60}", changed

    assert silent(name, folder, folder / file, changes(), caplog) == []


def same_text(old: str, new: str) -> bool:
    """Words that mean the same as a flag or as a column's name; a mark and a remark mean nothing."""
    groups = {"0", "", "<!-- c -->", "\ufeff"}, {"1", "True", "yes", "-1"}, {"x", "xmin"}
    return any({old, new} <= group for group in groups)
