"""Folders read part by part, divided, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import UserError
from tests.datasets.conftest import annotation_xml, write_image
from tools.runtime.own_data import divide, read_own_data


def write(root: Path, names: list[str], box=(3, 4, 20, 25), label: str = "cat") -> Path:
    for number, name in enumerate(names):
        write_image(root / f"{name}.jpg", (30, 40), number)
        (root / f"{name}.xml").write_text(annotation_xml([(label, box)], (30, 40)))
    return root


def test_a_set_that_counts_from_zero_is_found_out(tmp_path: Path) -> None:
    own = read_own_data(write(tmp_path, ["a", "b"], box=(0, 0, 20, 25)))
    assert own.sources["all"][0].zero_based
    assert own.records["all"].boxes.tolist() == [[0, 0, 20, 25]] * 2
    assert "this XML counts pixels from 0" in own.notes[0]
    assert not any("coordinate below 1" in note for note in own.notes)


@pytest.mark.parametrize("split", [0.8, [0.5, 0.25, 0.25]])
def test_divided(tmp_path: Path, split) -> None:
    own = divide(read_own_data(write(tmp_path, [f"{i}" for i in range(20)])), split)
    parts = ["train", "val"] if split == 0.8 else ["train", "val", "test"]
    assert list(own.sources) == list(own.records) == parts
    assert sum(map(len, own.records.values())) == 20
    assert own.sources["train"] == own.sources["val"]
    assert len(own.records["train"]) == pytest.approx(20 * (split if split == 0.8 else 0.5), abs=2)


def test_a_test_part_stays_and_train_is_divided(tmp_path: Path) -> None:
    write(tmp_path / "train", [f"{i}" for i in range(10)])
    write(tmp_path / "test", ["x", "y"])
    own = divide(read_own_data(tmp_path))
    assert list(own.records) == ["train", "val", "test"]
    assert sorted(own.records["test"].image_ids) == ["x", "y"]
    assert own.sources["test"][0].split is None
    assert len(own.records["train"]) + len(own.records["val"]) == 10


def test_a_set_with_parts_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "train", ["a"])
    write(tmp_path / "val", ["b"])
    own = read_own_data(tmp_path)
    assert divide(own) is own


def test_roboflows_copies_stay_together(tmp_path: Path) -> None:
    names = [f"{photo}_jpg.rf.{photo}{copy}" for photo in "abcdefgh" for copy in range(3)]
    own = divide(read_own_data(write(tmp_path, names)))
    photos = [{name[0] for name in records.image_ids} for records in own.records.values()]
    assert not photos[0] & photos[1]
    assert "several copies of a photo" in " ".join(own.notes)


def test_series_of_names_are_pointed_out(tmp_path: Path) -> None:
    own = divide(read_own_data(write(tmp_path, [f"clip{c}_frame_{i:03}" for c in "ab" for i in range(4)])))
    assert "2 series (clipa, clipb, ...)" in own.notes[-1]
    pattern = own.notes[-1].split("'")[1]
    grouped = divide(read_own_data(tmp_path), pattern=pattern)
    assert [{name[:5] for name in records.image_ids} for records in grouped.records.values()] in (
        [{"clipa"}, {"clipb"}],
        [{"clipb"}, {"clipa"}],
    )


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be divided into 2 parts: it has 1 image"):
        divide(read_own_data(write(tmp_path / "one", ["a"])))
    write_image(tmp_path / "none/a.jpg", (30, 40))
    (tmp_path / "none/a.xml").write_text(annotation_xml([], (30, 40)))
    with pytest.raises(UserError, match="no image has an annotated object"):
        read_own_data(tmp_path / "none")
