"""convert_data.py: parts are kept or made, and what is said is what happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from configs.errors import UserError
from tools import convert_data
from tools.runtime.own_data import read_own_data


def run(*words: object) -> None:
    convert_data.main(convert_data.make_parser().parse_args([str(word) for word in words]))


def test_parts_are_kept(tiny_voc: Path, tmp_path: Path, capsys) -> None:
    run(tiny_voc, tmp_path / "coco", "--to", "coco")
    said = capsys.readouterr().out
    assert "written    coco" in said
    assert "lost" not in said
    before, after = read_own_data(tiny_voc), read_own_data(tmp_path / "coco")
    assert {part: len(records) for part, records in after.records.items()} == {"train": 6, "test": 2}
    for part, records in after.records.items():
        assert records.boxes.tolist() == before.records[part].boxes.tolist()
        assert records.labels.tolist() == before.records[part].labels.tolist()


def test_images_without_annotation_are_named(tiny_voc: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    for name in ("Annotations", "JPEGImages"):
        shutil.copytree(tiny_voc / name, photos / name)
    next((photos / "Annotations").iterdir()).unlink()
    run(photos, tmp_path / "yolo", "--to", "yolo")
    assert "1 of 8 images without annotation: written as images without objects" in capsys.readouterr().out


def test_the_new_set_does_not_lie_in_the_old_one(tiny_voc: Path) -> None:
    with pytest.raises(UserError, match="new: lies in the data set that is read"):
        run(tiny_voc, tiny_voc / "new", "--to", "coco")
    assert not (tiny_voc / "new").exists()


def test_new_parts(tiny_voc: Path, tmp_path: Path) -> None:
    run(tiny_voc, tmp_path / "a", "--to", "yolo", "--split", ".5,.25,.25")
    found = read_own_data(tmp_path / "a").records
    assert list(found) == ["train", "val", "test"]
    assert sum(map(len, found.values())) == 8
    run(
        tiny_voc, tmp_path / "b", "--to", "yolo", "--split", ".5,.5", "--seed", "3", "--split-by", r"image_[0-3]|image_"
    )
    part_of = {path.stem: path.parent.name for path in (tmp_path / "b/images").rglob("*.png")}
    assert len({part_of[f"image_{i}"] for i in range(4, 8)}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", ".5,.4"], "add up to 1"),
        (["--split", "x"], "give two or three shares"),
        (["--split", "1.5"], "add up to 1"),
        (["--seed", "1"], "need --split"),
    ],
)
def test_mistakes(tiny_voc: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        run(tiny_voc, tmp_path / "out", "--to", "voc", *words)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()
