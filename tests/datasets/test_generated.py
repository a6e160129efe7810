"""The built-in set: a pure function, whole files only, and the kinds of picture that it promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets import generated
from datasets.detection import DetectionDataset
from datasets.generated import HUES, draw_picture, generate
from datasets.target import SampleKey, check_sample
from datasets.voc import read_voc


def test_pictures_are_functions_of_set_and_index() -> None:
    for key in [("train", 3), ("val", 3), ("test", 3)]:
        (first, objects), (again, same) = draw_picture(*key), draw_picture(*key)
        assert np.array_equal(first, again)
        assert [(o.name, o.box) for o in objects] == [(o.name, o.box) for o in same]
    assert not np.array_equal(draw_picture("train", 3)[0][:9, :9], draw_picture("val", 3)[0][:9, :9])


def test_it_is_what_it_promises() -> None:
    pictures = [draw_picture("train", i) for i in range(120)]
    objects = [item for _, items in pictures for item in items]
    names = Counter(item.name for item in objects)
    assert len(names) == len(HUES)
    assert len(HUES) >= 4
    assert min(names.values()) > 0.5 * max(names.values())
    assert 0.02 < np.mean([not items for _, items in pictures]) < 0.15
    assert 0.03 < np.mean([item.difficult for item in objects]) < 0.2
    assert np.mean([item.cut for item in objects]) > 0.1
    assert np.mean([item.visible < 0.8 for item in objects]) > 0.1
    sides = np.array([max(b[2] - b[0], b[3] - b[1]) for b in (item.box for item in objects)])
    assert np.percentile(sides, 90) > 4 * np.percentile(sides, 10)
    assert len({image.shape for image, _ in pictures}) >= 3


def test_boxes_are_tight_around_what_is_seen() -> None:
    for index in range(20):
        image, objects = draw_picture("train", index)
        for item in objects:
            xmin, ymin, xmax, ymax = item.box
            assert 1 <= xmin <= xmax <= image.shape[1]
            assert 1 <= ymin <= ymax <= image.shape[0]
            outside = item.mask.copy()
            outside[ymin - 1 : ymax, xmin - 1 : xmax] = False
            assert not outside.any()
            for edge in (item.mask[ymin - 1], item.mask[ymax - 1], item.mask[:, xmin - 1], item.mask[:, xmax - 1]):
                assert edge.any()
        seen = np.sum([item.mask for item in objects], axis=0) if objects else np.zeros(1)
        assert seen.max() <= 1  # what covers an object takes its pixels


def test_colour_alone_and_shape_alone_do_not_tell() -> None:
    """Objects show their class's hue; clutter shows the same hues and shapes in other company."""
    hues = {name: [] for name in HUES}
    for index in range(60):
        image, objects = draw_picture("train", index)
        for item in objects:
            if not item.difficult:
                red, green, blue = np.median(image[item.mask], axis=0) / 255
                hues[item.name].append(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))
    for name, values in hues.items():
        distance = (np.array(values) - HUES[name] + 180) % 360 - 180
        assert np.percentile(np.abs(distance), 90) < 30, name


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_files_are_voc_and_pass_the_checker(tmp_path: Path, caplog) -> None:
    root, name = generate("val", 16, tmp_path)
    records = read_voc(root, name)
    assert name == "val_16"
    assert not caplog.records  # no box has anything to report
    assert {Path(str(path)).suffix for path in records.image_paths} == {".jpg", ".png"}
    dataset = DetectionDataset(records, min_sizes=(144,), max_size=192)
    for i in range(16):
        check_sample(dataset[SampleKey(0, i)], num_classes=len(records.class_names))
        image, objects = draw_picture("val", i)
        part = records.objects(i)
        assert [records.class_names[label - 1] for label in records.labels[part]] == [item.name for item in objects]
        assert records.difficult[part].tolist() == [item.difficult for item in objects]
        boxes = np.array([item.box for item in objects], float).reshape(-1, 4) - (1, 1, 0, 0)
        assert np.array_equal(records.boxes[part], boxes)
        assert records.image_size(i) == image.shape[:2]


def test_written_once_completed_and_redrawn(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(generated, "draw_picture", lambda *key: (drawn.append(key), draw_picture(*key))[1])
    generate("test", 4, tmp_path)
    first = _files(tmp_path)
    assert len(drawn) == 4
    generate("test", 4, tmp_path)
    assert len(drawn) == 4
    generate("test", 6, tmp_path)  # a smaller set is the beginning of a larger one
    assert drawn[4:] == [("test", 4), ("test", 5)]
    assert first.items() <= _files(tmp_path).items()
    (tmp_path / "JPEGImages" / "test_0002.jpg").unlink()  # an interrupted run
    generate("test", 4, tmp_path)
    assert drawn[6:] == [("test", 2)]
    assert first.items() <= _files(tmp_path).items()
    (tmp_path / "version.txt").write_text("0")  # another version's files
    generate("test", 4, tmp_path)
    assert _files(tmp_path) == first
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith(".old-")]


def test_unknown_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no set trian \(did you mean train\?\); there are train, val, test"):
        generate("trian", 0, tmp_path)


def test_default_lies_in_the_checkout(root: Path) -> None:
    assert root / "data" / "generated" == generated.DEFAULT_ROOT
