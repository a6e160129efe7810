"""`Predictor`: every kind of input gives what the detector itself says, in the inputs' order."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detection
from configs.errors import UserError
from datasets.batch import Collate
from datasets.resize import resize_image, resized_size
from datasets.target import Sample, Target
from detection import ImageDetections, Predictor, load_detector, predictor
from detection.inputs import array_input
from detection.prediction import to_numpy
from detection.video import VideoWriter
from tests.detection.made import make_image, save_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("weights") / "w.pt")


@pytest.fixture(scope="module")
def finds(weights: Path) -> Predictor:
    return Predictor(weights, device="cpu", threshold=0.3)


def assert_equal(found: ImageDetections, expected: ImageDetections) -> None:
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)


def plain(weights: Path, image: np.ndarray) -> ImageDetections:
    """What the detector says of one image, without any of the predictor's code."""
    detector, config = load_detector(weights, overrides=["test.score_thresh=0.3"])
    size = resized_size(image.shape[:2], config.data.test_min_size, config.data.test_max_size)
    nothing = Target(np.zeros((0, 4), np.float32), *(np.zeros(0, kind) for kind in (np.int64, np.float32, bool, bool)))
    sample = Sample(resize_image(image, size), nothing, 0, image.shape[:2])
    with torch.no_grad():
        return to_numpy(detector(Collate(32)([sample])))[0]


def test_every_kind_of_input_gives_the_detectors_own_answer(weights: Path, finds: Predictor, tmp_path: Path) -> None:
    image = make_image(0, (50, 90))
    expected = plain(weights, image)
    assert len(expected) > 0
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    kinds = [
        path, str(path), str(tmp_path / "*.png"), image, np.asfortranarray(image), Image.fromarray(image),
        Image.open(path), torch.from_numpy(image).permute(2, 0, 1),
    ]  # fmt: skip
    for found in finds(kinds):
        assert_equal(found, expected)
        assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)
        assert found.image_size == (50, 90)
        assert found.names == [["red", "blue"][label - 1] for label in found.labels]
    for one in kinds:  # alone, not in a list
        assert len(finds(one)) == 1
    assert [found.path for found in finds([path, image])] == [str(path), None]


def test_results_come_in_the_inputs_order_whatever_shares_a_batch(finds: Predictor, tmp_path: Path) -> None:
    """Sizes are mixed, so that batches and groups are not in the inputs' order."""
    sizes = [(48, 64), (20, 60), (64, 48), (60, 20), (50, 90), (20, 60), (48, 64)]  # padded in three ways
    images = [make_image(number, size) for number, size in enumerate(sizes)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    alone = [finds(image)[0] for image in images]
    for batch_size in (1, 3, 8):
        for found in (finds(images, batch_size=batch_size), finds(tmp_path, batch_size=batch_size)):
            assert [one.image_size for one in found] == sizes
            for one, expected in zip(found, alone, strict=True):
                assert_equal(one, expected)
    assert [Path(one.path or "").name for one in finds([str(tmp_path / "3.png"), str(tmp_path)])] == [
        "3.png", *(f"{number}.png" for number in range(7))]  # fmt: skip


def test_files_of_one_padded_size_share_batches(finds: Predictor, tmp_path: Path, monkeypatch) -> None:
    images = [make_image(number, ((48, 64), (20, 60))[number % 2]) for number in range(8)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    shapes = []
    infer = finds._infer
    monkeypatch.setattr(finds, "_infer", lambda batch: shapes.append(tuple(batch.images.shape)) or infer(batch))
    for given in (tmp_path, images):
        assert len(finds(given, batch_size=4)) == 8
    assert shapes == [(4, 3, 32, 64), (4, 3, 64, 64)] * 2


def test_thresholds(weights: Path, finds: Predictor) -> None:
    image = make_image(1)
    (everything,) = finds(image)
    middle = len(everything) // 2
    limit = float(everything.scores[middle : middle + 2].mean())  # between two scores: best first
    (few,) = Predictor(weights, "cpu", threshold=limit)(image)
    assert_equal(few, everything.select(everything.scores >= limit))
    (by_class,) = Predictor(weights, "cpu", threshold=0.99, class_thresholds={"red": 0.3})(image)
    assert_equal(by_class, everything.select(everything.labels == 1))
    assert len(Predictor(weights, "cpu", threshold=1e-5)(image)[0]) >= len(everything)  # YAML reads 1e-05 as text
    with pytest.raises(UserError, match=r"a threshold for 'green', which is not a class of .*: red, blue"):
        Predictor(weights, "cpu", class_thresholds={"green": 0.5})
    with pytest.raises(UserError, match=r"threshold: a threshold of 1\.5 is not between 0 and 1"):
        Predictor(weights, "cpu", threshold=1.5)


def test_overrides_and_ensembles(weights: Path, finds: Predictor, tmp_path: Path) -> None:
    image = make_image(2)
    (one,) = Predictor(weights, "cpu", 0.3, ["test.detections_per_img=1"])(image)
    assert len(one) == 1
    (twice,) = Predictor([weights, str(weights)], "cpu", 0.3)(image)
    assert_equal(twice, finds(image)[0])
    (scales,) = Predictor(weights, "cpu", 0.3, ["test.tta.scales=[32,64]", "test.tta.hflip=true"])(image)
    assert scales.scores.tolist() != twice.scores.tolist()
    other = save_detector(tmp_path / "other.pt", names=("red", "green"))
    with pytest.raises(UserError, match="other classes"):
        Predictor([weights, other], "cpu")
    with pytest.raises(UserError, match="the list is empty"):
        Predictor([], "cpu")


def test_a_video_is_a_stream_of_its_frames(finds: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10.0) as writer:
        for number in range(5):
            writer.write(make_image(number))
    frames = list(finds.stream(str(path), batch_size=2))
    assert [found.frame for found in frames] == [0, 1, 2, 3, 4]
    assert all(found.image_size == (48, 64) and found.path == str(path) for found in frames)
    for found in frames:
        assert_equal(found, finds(found.pixels)[0])
    with pytest.raises(UserError, match=r"clip\.mp4: is a video: give it to stream"):
        finds(path)
    assert len(list(finds.stream([make_image(0), make_image(1)]))) == 2


def test_a_stream_reads_only_what_it_needs_next(finds: Predictor) -> None:
    """Memory stays constant: of a source without end a bounded number of frames is read for each result."""
    read = 0

    def endless():
        nonlocal read
        for number in itertools.count():
            read += 1
            yield array_input(make_image(number % 3), str(number), frame=number)

    results = finds.detect(endless(), batch_size=2)
    for number in range(12):
        assert next(results).name == str(number)
        assert read <= number + 2 + 2 * predictor.THREADS + 3 * 2 + 1
    results.close()


def test_unreadable_images(finds: Predictor, tmp_path: Path) -> None:
    Image.fromarray(make_image(0)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png: cannot be"):
        finds(tmp_path)
    messages: list[str] = []
    inputs = predictor.image_inputs([tmp_path, make_image(1)])
    found = list(finds.detect(inputs, on_unreadable=messages.append))
    assert [one.name for one in found] == ["good.png", "image 1"]
    assert len(messages) == 1


def test_grey_16_bit_and_turned_images_are_as_files(finds: Predictor, tmp_path: Path) -> None:
    """A PIL image gives what its file gives."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(3)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(make_image(3)[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(make_image(3)).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack((make_image(3), make_image(4)[:, :, 0]))).save(tmp_path / "transparent.png")
    cv2.imwrite(
        str(tmp_path / "deep.png"), np.kron(rng.integers(0, 65535, (6, 8), np.uint16), np.ones((8, 8), np.uint16))
    )
    for path in sorted(tmp_path.iterdir()):
        file, pil = finds([path, Image.open(path)])
        assert_equal(pil, file)
        assert len(file) > 0
    assert finds(tmp_path / "turned.png")[0].image_size == (64, 48)


def test_devices(weights: Path) -> None:
    assert Predictor(weights).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device 'gpu': give auto, cpu or cuda"):
        Predictor(weights, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            Predictor(weights, device="cuda")


def test_the_package_exports_its_names_without_importing_torch(root: Path) -> None:
    code = (
        "import detection, detection.evaluation.evaluate, sys; assert 'torch' not in sys.modules; print(dir(detection))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    for name in detection.__all__:
        assert getattr(detection, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        detection.Nothing  # noqa: B018


def test_an_image_at_its_further_sizes(finds: Predictor, monkeypatch) -> None:
    """Each resized from the file's own pixels; the one of the network's own size is not made twice."""
    monkeypatch.setattr(finds, "_sizes", lambda size: [(48, 64), (24, 32), (48, 64), (96, 128)])
    (one,) = predictor.image_inputs(make_image(0))
    _, pixels, sample = finds._load(3, one)
    assert sample.image.shape == (48, 64, 3)
    assert sample.scaled[1] is sample.image
    for image, size in ((sample.scaled[0], (24, 32)), (sample.scaled[2], (96, 128))):
        np.testing.assert_array_equal(image, resize_image(make_image(0), size))
    np.testing.assert_array_equal(pixels, make_image(0))
    assert (sample.index, sample.original_size) == (3, make_image(0).shape[:2])
