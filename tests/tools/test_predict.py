"""Prediction on one's own files: what is found, named, drawn, left out."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.loading import load_config
from datasets.batch import Collate
from datasets.detection import DetectionDataset
from datasets.images import image_file_size, read_image
from datasets.make_records import make_records
from datasets.target import SampleKey
from detection import predictor
from detection.checkpoint import load_detector
from detection.inputs import find_files
from detection.model import build_detector
from detection.prediction import to_numpy
from detection.video import VideoReader, VideoWriter
from tools import predict
from tools.runtime import cli
from tools.runtime.checkpoint import save_checkpoint


@pytest.fixture
def weights(tiny_config, tmp_path) -> Path:
    """A detector with random weights that finds much of everything."""
    config = load_config(tiny_config)
    torch.manual_seed(0)
    detector = build_detector(config.model, ["red", "blue"])
    path = tmp_path / "weights.pt"
    content = {
        "format": 1, "kind": "detector", "config": config.model_dump(mode="json"), "class_names": ["red", "blue"],
        "preprocessing": detector.preprocessing.to_dict(), "model": detector.state_dict(),
    }  # fmt: skip
    save_checkpoint(path, content)
    return path


@pytest.mark.parametrize("options", [[], ["--compile"]])
def test_compiles_where_asked_to(tiny_voc, weights, tmp_path, monkeypatch, options):
    """After folding."""
    calls = []
    monkeypatch.setattr(predictor, "compile_regions", calls.append)
    run(weights, tmp_path / "out", tiny_voc / "JPEGImages", *options)
    assert [isinstance(detector.backbone.body.bn1, torch.nn.Identity) for detector in calls] == [True] * len(options)


def test_detections_are_graphs_where_asked_to(tiny_voc, weights, tmp_path, graphs_on_the_cpu):
    """One for each padded size, and nothing else is found."""
    images = tiny_voc / "JPEGImages"
    plain = run(weights, tmp_path / "plain", images, "--batch-size", 1)
    assert run(weights, tmp_path / "graphs", images, "--batch-size", 1, "--graphs") == plain
    assert len(graphs_on_the_cpu) == 1


def run(weights: Path, out: Path, *inputs: object, threshold: str = "0.3") -> list[dict]:
    command = ["--weights", weights, "--out", out, "--threshold", threshold, "--device", "cpu", *inputs]
    predict.main(predict.make_parser().parse_intermixed_args([str(part) for part in command]))
    return json.loads((out / "detections.json").read_text())


def test_folder_gives_pictures_and_the_detectors_own_boxes(tiny_voc, weights, tmp_path, capsys):
    """detections.json holds what the detector says of each image at its evaluation size, in VOC's pixels."""
    images = tiny_voc / "JPEGImages"
    rows = run(weights, tmp_path / "out", images, "--batch-size", 3)
    names = sorted(path.name for path in images.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    assert "8 images" in capsys.readouterr().out

    detector, _ = load_detector(weights, overrides=["test.score_thresh=0.3"])
    paths = [images / name for name in names]
    records = make_records(
        images=[(str(path), path.name, image_file_size(path)) for path in paths], boxes=[], labels=[], counts=[0] * 8,
        class_names=["red", "blue"], source="", annotation_file="{}", annotated=False,
    )  # fmt: skip
    dataset = DetectionDataset(records, min_sizes=[48], max_size=64)
    assert rows
    for index, name in enumerate(names):
        with torch.no_grad():
            (expected,) = to_numpy(detector(Collate(32)([dataset[SampleKey(0, index)]])))
        mine = [row for row in rows if row["image_id"] == name]
        assert [row["category"] for row in mine] == [["red", "blue"][label - 1] for label in expected.labels]
        np.testing.assert_allclose([row["score"] for row in mine], expected.scores, rtol=1e-4)
        np.testing.assert_allclose([row["bbox"] for row in mine], expected.boxes + np.array([1, 1, 0, 0]), atol=0.05)
    picture = cv2.imread(str(tmp_path / "out" / names[0]))
    assert picture.shape == cv2.imread(str(paths[0])).shape


def test_threshold_and_settings(tiny_voc, weights, tmp_path):
    images = tiny_voc / "JPEGImages"
    few, many = run(weights, tmp_path / "a", images, threshold="0.45"), run(weights, tmp_path / "b", images)
    assert 0 <= len(few) < len(many)
    assert all(row["score"] >= 0.3 for row in many)
    one = run(weights, tmp_path / "c", images / "image_0.png", "--set", "test.detections_per_img=1", threshold="0")
    assert len(one) == 1
    with pytest.raises(UserError, match=r"unknown key test\.nms_tresh: did you mean test\.nms_thresh"):
        run(weights, tmp_path / "d", "--set", "test.nms_tresh=0.5", images)


def test_inputs_are_files_folders_and_patterns_each_image_once(tiny_voc, tmp_path):
    images = tiny_voc / "JPEGImages"
    (images / "deep").mkdir()
    shutil.copy(images / "image_0.png", images / "deep" / "x.PNG")
    (images / "readme.txt").touch()
    out = tmp_path / "out"

    def names(*inputs: object) -> list[str]:
        return [name for _, name in find_files([str(text) for text in inputs], ignore=out)]

    assert names(images)[:2] == ["deep/x.PNG", "image_0.png"]
    assert len(names(images)) == 9
    assert names(images / "image_1.png", images / "*_1.png", images / "image_0.png") == ["image_1.png", "image_0.png"]
    assert names(images / "d*") == ["x.PNG"]
    assert names(f"{images}/**/*.PNG") == ["x.PNG"]
    shutil.copytree(images, tmp_path / "other")
    both = names(images / "image_0.png", tmp_path / "other" / "image_0.png")
    assert len(set(both)) == 2
    with pytest.raises(UserError, match=r"no such image or folder \(did you mean image_\d.png\?\)"):
        names(images / "image_9.png")
    with pytest.raises(UserError, match="no such image or folder"):
        names(images / "nothing.png")
    with pytest.raises(UserError, match="no images here"):
        names(images / "*.gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images here"):
        names(tmp_path / "empty")
    with pytest.raises(UserError, match=r"Images: lies in .*, where the results go: choose another folder for them"):
        find_files([str(images)], ignore=images)


def test_results_of_an_earlier_run_are_no_inputs_and_no_image_is_overwritten(tiny_voc, weights):
    images = tiny_voc / "JPEGImages"
    first = run(weights, images / "out", images)
    assert run(weights, images / "out", images) == first
    with pytest.raises(UserError, match="would overwrite this input"):
        run(weights, images, images / "image_0.png")


def test_names_with_brackets_are_files_first(tiny_voc, weights, tmp_path):
    odd = tmp_path / "odd [1].png"
    shutil.copy(tiny_voc / "JPEGImages/image_0.png", odd)
    assert {row["image_id"] for row in run(weights, tmp_path / "out", odd)} == {odd.name}


def test_photos_are_turned_by_their_exif_note(tiny_voc, weights, tmp_path):
    """The same picture, upright, and lying on its side with the note that turns it."""
    upright = Image.open(tiny_voc / "JPEGImages/image_0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    rows = run(weights, tmp_path / "out", tmp_path / "upright.png", tmp_path / "lying.png")
    found = {
        name: [(r["bbox"], r["score"]) for r in rows if r["image_id"] == name] for name in ("upright.png", "lying.png")
    }
    assert found["upright.png"]
    assert found["upright.png"] == found["lying.png"]
    sizes = [cv2.imread(str(tmp_path / "out" / name)).shape for name in found]
    assert sizes[0] == sizes[1] == (48, 64, 3)


def test_bad_files_are_reported_and_left_out(tiny_voc, weights, tmp_path, capsys):
    images = tiny_voc / "JPEGImages"
    (images / "empty.jpg").touch()
    (images / "text.jpg").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(images / "cut.jpg"), noise)
    data = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(data[: len(data) // 2])
    rows = run(weights, tmp_path / "out", images)
    assert {row["image_id"] for row in rows} <= {f"image_{i}.png" for i in range(8)}
    printed = capsys.readouterr()
    for name in ("empty.jpg", "text.jpg", "cut.jpg"):
        assert name in printed.err
    assert "3 files could not be read" in printed.out
    assert "8 images" in printed.out


def test_nothing_readable_is_the_users_mistake(weights, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    command = ["--weights", str(weights), "--out", str(tmp_path / "out"), str(tmp_path / "text.jpg")]
    with pytest.raises(SystemExit) as ending:
        cli.run(predict.main, predict.make_parser(), command, intermixed=True)
    assert ending.value.code == 2
    assert "cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "out/detections.json").exists()


@pytest.mark.parametrize(
    "options",
    [["--threshold", "2"], ["--threshold", "red=2"], ["--batch-size", "0"], ["--threshold", "x"], ["--thickness", "0"]],
)
def test_wrong_options(weights, tmp_path, options):
    with pytest.raises(SystemExit) as ending:
        predict.make_parser().parse_args(["--weights", "w", "--out", "o", "x", *options])
    assert ending.value.code == 2


def test_grey_transparent_and_16_bit_images(weights, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50), np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 255, (40, 50, 4), np.uint8)).save(tmp_path / "transparent.png")
    cv2.imwrite(str(tmp_path / "deep.tif"), rng.integers(0, 65535, (40, 50), np.uint16))
    out = tmp_path / "out"
    run(weights, out, tmp_path / "grey.png", tmp_path / "transparent.png", tmp_path / "deep.tif", threshold="0")
    assert sorted(path.name for path in out.glob("*.png")) == ["deep.tif.png", "grey.png", "transparent.png"]


def test_improvements_and_ensembles(tiny_voc, weights, tmp_path):
    """With the folded net too; an ensemble of one detector twice finds what it finds."""
    images = tiny_voc / "JPEGImages"
    plain = run(weights, tmp_path / "plain", images)

    def options(*texts: str) -> list[str]:
        return [part for text in texts for part in ("--set", text)]

    for number, texts in enumerate((["test.refine_rounds=1", "test.vote_iou=0.5"], ["test.scales=[32,48,80]"],
                                    ["test.tta={hflip: true, scales: [32, 48]}"])):  # fmt: skip
        rows = run(weights, tmp_path / f"out{number}", images, "--batch-size", 3, *options(*texts))
        assert rows
        assert rows != plain
        for one in ("image_0.png", "image_1.png"):  # whatever else is in the batch
            alone = run(weights, tmp_path / f"alone{number}", images / one, *options(*texts))
            np.testing.assert_allclose([row["bbox"] for row in alone],
                                       [row["bbox"] for row in rows if row["image_id"] == one], atol=0.05)  # fmt: skip
    twice = run(weights, tmp_path / "twice", images, "--weights", weights)
    assert [(row["image_id"], row["category"]) for row in twice] == [(r["image_id"], r["category"]) for r in plain]
    np.testing.assert_allclose([row["bbox"] for row in twice], [row["bbox"] for row in plain], atol=0.05)
    with pytest.raises(UserError, match="exclude each other"):
        run(weights, tmp_path / "wrong", images, *options("test.scales=[32,48]", "test.tta.scales=[32]"))


def test_thresholds_of_classes(tiny_voc, weights, tmp_path):
    """A class's own threshold takes the place of the common one; the last of a kind counts."""
    images = tiny_voc / "JPEGImages"
    everything = run(weights, tmp_path / "all", images, threshold="0.3")
    names = {row["category"] for row in everything}
    assert names == {"red", "blue"}
    limit = float(np.median([row["score"] for row in everything if row["category"] == "red"]))
    some = run(weights, tmp_path / "some", images, "--threshold", "0.3", "--threshold", f"red={limit}", threshold="0.9")
    assert some == [row for row in everything if row["category"] == "blue" or row["score"] >= limit - 1e-7]
    assert len(some) < len(everything)
    with pytest.raises(UserError, match=r"a threshold for 'green', which is not a class of .*weights\.pt: red, blue"):
        run(weights, tmp_path / "wrong", images, "--threshold", "green=0.3")


def test_other_files_hold_the_same_detections(tiny_voc, weights, tmp_path):
    """detections.jsonl by image, detections_coco.json in COCO's frame, detections.csv as a table."""
    out = tmp_path / "out"
    images = tmp_path / "images"
    images.mkdir()
    for number, name in enumerate(("000000000139.png", "=1+1,x.png")):
        shutil.copy(tiny_voc / f"JPEGImages/image_{number}.png", images / name)
    rows = run(weights, out, images, "--coco", "--csv")
    assert {row["image_id"] for row in rows} == {"000000000139.png", "=1+1,x.png"}
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line["height"], line["width"]) for line in lines] == [
        ("000000000139.png", 48, 64), ("=1+1,x.png", 64, 48)]  # fmt: skip
    assert [{"image_id": line["image_id"], **found} for line in lines for found in line["detections"]] == rows
    coco = json.loads((out / "detections_coco.json").read_text())
    assert [row["image_id"] for row in coco] == [139 if "139" in row["image_id"] else row["image_id"] for row in rows]
    for voc, other in zip(rows, coco, strict=True):
        x, y, width, height = other["bbox"]
        np.testing.assert_allclose([x + 1, y + 1, x + width, y + height], voc["bbox"], atol=0.011)
        assert ["red", "blue"][other["category_id"] - 1] == voc["category"]
        assert other["score"] == voc["score"]
    with (out / "detections.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["image", "category", "xmin", "ymin", "xmax", "ymax", "score"]
    assert [[float(cell) for cell in line[2:]] for line in table[1:]] == [[*row["bbox"], row["score"]] for row in rows]
    assert {line[0] for line in table[1:]} == {"000000000139.png", "'=1+1,x.png"}  # no formula


def test_no_two_images_share_a_picture(tiny_voc, weights, tmp_path):
    """a.bmp becomes a.bmp.png, and so is another file called; names that differ in capitals count as equal."""
    source = Image.open(tiny_voc / "JPEGImages/image_0.png")
    images = tmp_path / "images"
    for name in ("a.bmp", "a.bmp.png", "A.bmp.PNG", "deep/a.bmp"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        source.save(images / name, format="PNG" if name.lower().endswith("png") else None)
    run(weights, tmp_path / "out", images)
    pictures = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.[pP][nN][gG]")}
    assert len({name.lower() for name in pictures}) == 4
    assert {"deep/a.bmp.png"} < pictures


def test_videos_and_pictures_without_names(tiny_voc, weights, tmp_path, capsys):
    """Each frame is an image; the drawn video has as many frames, and the input stays."""
    frames = [read_image(tiny_voc / f"JPEGImages/image_{number}.png") for number in (0, 2, 4)]
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, 10.0) as writer:
        for frame in frames:
            writer.write(frame)
    before = clip.read_bytes()
    out = tmp_path / "out"
    rows = run(weights, out, clip, tiny_voc / "JPEGImages/image_0.png", "--no-names", "--batch-size", 2)
    assert {row["image_id"] for row in rows} == {"image_0.png", *(f"clip.mp4#00000{number}" for number in range(3))}
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line.get("frame") for line in lines] == [None, 0, 1, 2]
    drawn = list(VideoReader(out / "clip.mp4"))
    assert [frame.shape for frame in drawn] == [(48, 64, 3)] * 3
    assert clip.read_bytes() == before
    assert f"{len(rows)} objects in 1 image and 3 frames: " in capsys.readouterr().out
    assert run(weights, out, clip, threshold="0.999") == []
    said = capsys.readouterr().out
    assert "0 objects in 3 frames: " in said
    assert "nothing reaches the threshold 0.999: the best score was" in said
    assert f"{out} also holds 1 file of earlier calls, such as image_0.png" in said
    with pytest.raises(UserError, match=r"clip\.mp4: a picture would overwrite this input"):
        run(weights, tmp_path, clip)


def test_where_nothing_is_found_the_best_score_is_said(tiny_voc, weights, tmp_path, capsys):
    (best,) = [max(row["score"] for row in run(weights, tmp_path / "all", tiny_voc / "JPEGImages", threshold="0"))]
    capsys.readouterr()
    assert run(weights, tmp_path / "none", tiny_voc / "JPEGImages", threshold="0.999") == []
    assert f"nothing reaches the threshold 0.999: the best score was {best:.2g}" in capsys.readouterr().out
    own = ("--threshold", "red=0.999", "--threshold", "blue=0.998")  # above the common one, which all would reach
    assert run(weights, tmp_path / "own", tiny_voc / "JPEGImages", *own, threshold="0.01") == []
    said = capsys.readouterr().out
    assert re.search(
        rf"the threshold (red=0.999|blue=0.998): the best score was {best:.2g}: --threshold (red|blue)=", said
    )
