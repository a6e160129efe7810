"""Large JSON files in parts: the same records as from the whole file, whatever the layout, and the same errors."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from datasets import coco, json_lists
from datasets.json_lists import read_lists

WANTED = ("images", "annotations", "categories")
KEYS = ("id", "bbox", "name")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lists, "PART", 1000)


def in_parts(path: Path, key: str) -> list:
    lists = read_lists(path, "file", WANTED, limit=0)
    return list(chain.from_iterable(lists.parts(key, KEYS)))


def annotations(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"segmentation": [rng.uniform(0, 99, 2 * (i % 9)).round(2).tolist()], "id": i, "bbox": [i, 0.5, 1e3, -2]}
        | (
            {"attributes": {"occluded": False}, "segmentation": {"counts": "a]},{b", "size": [1, 2]}}
            if i % 5 == 0
            else {}
        )
        for i in range(count)
    ]


CONTENT = {
    "info": {"about": [1, {"a": "]}"}], "text": "é" * 3000},
    "licenses": [{"id": 1}],
    "annotations": annotations(60),
    "images": [],
    "version": 1.5,
    "categories": [{"id": 1, "name": "a\u00e9 }, {"}, {"id": 2, "name": "b"}],
}


@pytest.mark.parametrize(
    "layout", [{}, {"indent": 1}, {"indent": 4, "ensure_ascii": False}, {"separators": (",", ":")}]
)
def test_same_records_as_from_the_whole_file(tmp_path: Path, layout: dict) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, **layout), encoding="utf-8")
    lists = read_lists(path, "file", WANTED, limit=0)
    assert lists.content is None  # it was not parsed whole
    for key in WANTED:
        expected = [{k: item[k] for k in KEYS if k in item} for item in CONTENT[key]]
        assert in_parts(path, key) == expected
    assert len(list(lists.parts("annotations", KEYS))) > 5
    assert "info" not in lists


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": [{"id": i, "segments_info": [{"id": 1}, {"id": 2}]} for i in range(40)]},  # a list of objects
        {"annotations": [{"id": i, "name": "}, {" * 30} for i in range(9)]},  # no cut is right
        {"annotations": [1, 2]},
        {"categories": {"id": 1}},
    ],
)
def test_unusual_files_are_parsed_whole(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT | change))
    lists = read_lists(path, "file", WANTED, limit=0)
    key = next(iter(change))
    if isinstance(change[key], list):
        found = list(chain.from_iterable(lists.parts(key, KEYS)))
        assert [item["id"] if isinstance(item, dict) else item for item in found] == [
            item["id"] if isinstance(item, dict) else item for item in change[key]
        ]
    else:
        assert lists.content is not None


def test_of_a_key_that_appears_twice_the_last_value_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"id": 1}], "images": [{"id": 2, "id": 3, "name": null}]}')
    assert in_parts(path, "images") == [{"id": 3, "name": None}]


@given(position=st.integers(0, 3000), byte=st.sampled_from(b'{}[],:"\\x0\n\xff'), remove=st.booleans())
def test_damage_is_found_or_means_the_same(tmp_path_factory, position: int, byte: int, remove: bool) -> None:
    data = json.dumps(CONTENT | {"info": {}}, indent=1).encode()
    position = position % len(data)
    data = data[:position] + (b"" if remove else bytes([byte])) + data[position + 1 :]
    path = tmp_path_factory.mktemp("damaged") / "a.json"
    path.write_bytes(data)
    results = []
    for limit in (0, 1 << 30):
        try:
            lists = read_lists(path, "file", WANTED, limit=limit)
            found = {key: list(chain.from_iterable(lists.parts(key, KEYS))) for key in WANTED if key in lists}
            results.append({
                key: [{k: item[k] for k in KEYS if k in item} if isinstance(item, dict) else item for item in items]
                for key, items in found.items()
            })  # fmt: skip
        except (UserError, TypeError) as error:
            results.append(str(error))
    whole_finds_doubles = isinstance(results[1], str) and "twice" in results[1]  # looked for in small files only
    assert results[0] == results[1] or whole_finds_doubles


def test_coco_in_parts(tmp_path: Path, write_coco, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's checks hold in every part: the same file, the same error, the same record number."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in range(4)],
        "annotations": [
            {"id": i, "image_id": i % 4, "category_id": 5, "bbox": [1, 2, 3 + i % 7, 4], "area": None, "iscrowd": i % 2}
            for i in range(50)
        ],
        "categories": [{"id": 5, "name": "thing"}],
    }
    path, folder = write_coco(content)
    whole = coco.read_coco(path, folder)
    monkeypatch.setattr(coco, "read_lists", lambda *args: read_lists(*args, limit=0))
    parts = coco.read_coco(path, folder)
    for name in ("boxes", "labels", "area", "iscrowd", "offsets", "annotation_ids", "sizes", "image_ids"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    for key, value in (("bbox", [1, 2, "3", 4]), ("category_id", 6), ("image_id", 9), ("iscrowd", "0"), ("id", "a")):
        changed = json.loads(json.dumps(content))
        changed["annotations"][43][key] = value
        path.write_text(json.dumps(changed))
        if key == "id":  # ids of annotations may be anything
            assert len(set(coco.read_coco(path, folder).annotation_ids.tolist())) == 50
            continue
        with pytest.raises(UserError, match=f"annotation number 43 .*{key}"):
            coco.read_coco(path, folder)
