"""init_data.py: what it writes trains, what it says is true, and its mistakes take one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from detection.model import build_detector
from tests.tools.conftest import write_tiny_voc
from tools import init_data


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch) -> None:
    """No published detector can be had: a training starts from scratch."""
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", "http://127.0.0.1:9")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos with XML beside them, in a folder with a space in its name, and one without."""
    write_tiny_voc(tmp_path / "voc", images=11)
    folder = tmp_path / "my photos"
    folder.mkdir()
    for path in (tmp_path / "voc").rglob("image_*"):
        path.rename(folder / path.name)
    (folder / "image_3.xml").unlink()
    return folder


def run(*words: object) -> None:
    init_data.main(init_data.make_parser().parse_args([str(word) for word in words]))


def test_it_writes_a_config_that_builds(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/my checkout/tools/init_data.py"])
    run("my photos")
    said = capsys.readouterr().out
    assert "layout     Pascal VOC XML beside the images" in said
    assert "1 of 11 images without annotation" in said
    assert "python '/my checkout/tools/train_det.py' --cfg my_photos.yaml" in said  # the folder is not the checkout
    assert "start      random weights, for torchvision://fasterrcnn_resnet50_fpn cannot be downloaded now" in said
    assert (tmp_path / "my_photos_sheet.jpg").is_file()
    config = load_config("my_photos.yaml")
    train, val = (build_dataset(config.data, part, tmp_path / "elsewhere") for part in ("train", "val"))
    assert sorted([*train.records.image_paths, *val.records.image_paths]) == sorted(map(str, photos.glob("*.png")))
    assert train.class_names == val.class_names == ["blue", "red"]
    assert config.data.train[0].unlabelled == "empty"
    assert config.train.batch_size <= len(train)
    steps = config.schedule.epochs * len(train) // config.train.batch_size
    assert config.schedule.warmup_iterations <= steps / 10
    build_detector(config.model, train.class_names, data_root=tmp_path)


def test_a_damaged_photo_is_left_out_of_the_sheet(photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = photos / "image_0.png"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    run("my photos")
    assert f"not on the sheet: {damaged}: " in capsys.readouterr().out
    assert (tmp_path / "my_photos_sheet.jpg").is_file()
    assert (tmp_path / "my_photos.yaml").is_file()


def test_it_never_overwrites_unless_asked(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.yaml"
    run(photos, "--out", out)
    with pytest.raises(UserError, match=r"a\.yaml: is there already"):
        run(photos, "--out", out)
    run(photos, "--out", out, "--overwrite")


def test_a_config_among_the_photos_makes_no_new_photo(photos: Path) -> None:
    for _ in range(2):
        run(photos, "--out", photos / "a.yaml", "--overwrite")
    config = load_config(photos / "a.yaml")
    assert sum(len(build_dataset(config.data, part, photos)) for part in ("train", "val")) == 11


def test_groups(photos: Path, tmp_path: Path) -> None:
    run(photos, "--out", tmp_path / "a.yaml", "--split-by", r"image_(\d)")
    config = load_config(tmp_path / "a.yaml")
    parts = [build_dataset(config.data, part, tmp_path).records.image_ids.tolist() for part in ("train", "val")]
    assert ("image_1" in parts[0]) == ("image_10" in parts[0])


@pytest.mark.parametrize("option", [("--split", "0.8"), ("--split-by", "(.*)_frame")])
def test_a_division_of_what_is_divided_is_refused(tiny_voc: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    (tiny_voc / "ImageSets/Main/test.txt").rename(tiny_voc / "ImageSets/Main/val.txt")
    with pytest.raises(UserError, match=r"has parts of its own \(train, val\), which --split and --split-by do not"):
        run(tiny_voc, "--out", tmp_path / "a.yaml", *option)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no such folder"),
        (["my photos", "--split", "1"], "give a share between 0 and 1"),
        (["my photos", "--out", "a.txt"], "a config is a .yaml file"),
        (["my photos", "--split-by", "("], "is not a regular expression"),
    ],
)
def test_mistakes(photos: Path, tmp_path: Path, monkeypatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        run(*words)
    assert said in str(error.value)


def test_a_set_without_objects_is_refused(photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*.xml"):
        path.unlink()
    image = '<image id="0" name="image_0.png" width="64" height="48"/>'
    labels = "<meta><labels><label><name>cat</name></label></labels></meta>"
    (photos / "annotations.xml").write_text(f"<annotations>{labels}{image}</annotations>")
    with pytest.raises(UserError, match=r"CVAT XML .*, but no image has an annotated object: nothing to train on"):
        run(photos, "--out", tmp_path / "c.yaml")


def test_photos_that_cannot_be_read_make_no_sheet(photos: Path, tmp_path: Path, capsys) -> None:
    for path in photos.glob("*.png"):
        path.write_bytes(b"no image")
    (photos / "image_3.png").unlink()  # all others declare their sizes
    run(photos, "--out", tmp_path / "c.yaml")
    said = capsys.readouterr().out
    assert "not on the sheet: " in said
    assert "sheet      " not in said
    assert {path.suffix for path in tmp_path.glob("c*")} == {".yaml"}
