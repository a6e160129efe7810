"""Which images the galleries show, and what is drawn where, by hand."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.report import gallery
from detection.evaluation.report.analysis import Analysis, analyse
from detection.evaluation.report.gallery import (
    MOST_CARDS,
    THUMBNAIL,
    Card,
    _Placement,
    confident_false_positives,
    find_image,
    make_figures,
    worst_missed,
)
from tests.detection.evaluation.report.made import BOX, FAR, analysis_of
from tools.benchmarks.synthetic import make_set

SMALL = (1.0, 1.0, 20.0, 10.0)


@pytest.fixture(scope="module")
def made() -> tuple[GroundTruth, Detections]:
    return make_set("voc", images=40, classes=4, objects=120, detections=600, seed=2)


def test_galleries_are_capped_and_ordered() -> None:
    truth, found = make_set("voc", images=300, classes=4, objects=900, detections=3000, seed=2)
    analysis = analyse(align(truth, found))
    missed, wrong = worst_missed(analysis), confident_false_positives(analysis)
    assert len(missed) == len(wrong) == MOST_CARDS
    counts = [int(card.caption.split()[0]) for card in missed]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == np.bincount(truth.image_index[analysis.overlooked]).max()
    shown = [analysis.matches.scores[card.focus] for card in wrong]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == found.scores[analysis.outcome == 0].max()
    assert len({card.image for card in wrong}) == MOST_CARDS


def test_images_are_found_by_name_or_id(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, _ = made
    (tmp_path / "000002.png").touch()
    (tmp_path / "other.jpg").touch()
    assert find_image(truth, 1, tmp_path) == tmp_path / "000002.png"
    assert find_image(truth, 0, tmp_path) is None
    named = replace(truth, image_files=[str(tmp_path / "other.jpg")] + ["val/other.jpg"] * 39)
    assert find_image(named, 0, None) == tmp_path / "other.jpg"
    assert find_image(named, 1, tmp_path) == tmp_path / "other.jpg"  # the annotation's name goes before the id


@pytest.mark.parametrize(
    ("box", "x", "anchor"),
    [
        ((10, 50, 30, 90), 12, "start"),
        ((350, 50, 358, 90), 356, "end"),  # at the picture's right edge: the word ends with the box
        ((340, 50, 500, 90), 358, "end"),  # a box that leaves the picture
    ],
)
def test_a_word_stays_in_the_picture(box: tuple[int, ...], x: float, anchor: str) -> None:
    label = _Placement(360, 240).box(np.array(box, dtype=float), "wrong", "", "potted plant").label
    assert label is not None
    assert (label.x, label.anchor) == (x, anchor)
    assert (label.y, label.size) == (47, 11)


def three_images() -> Analysis:
    """One missed in the first image, two in the second, one larger in the third; a false cow and a lesser cat."""
    objects = [(0, 1, SMALL), (0, 2, FAR), (1, 1, SMALL), (1, 2, SMALL), (2, 1, BOX)]
    found = [(0, 2, FAR, 0.9), (0, 3, BOX, 0.95), (0, 1, BOX, 0.92), (2, 1, FAR, 0.91)]
    return analysis_of(objects, found)


def test_the_worst_by_hand() -> None:
    analysis = three_images()
    assert worst_missed(analysis) == [
        Card(1, "2 of 2 missed"), Card(2, "1 of 1 missed"), Card(0, "1 of 2 missed")
    ]  # fmt: skip
    assert worst_missed(analysis, 1) == [Card(1, "2 of 2 missed")]
    assert confident_false_positives(analysis) == [
        Card(0, "cow 0.950: background", 1), Card(2, "cat 0.910: background", 3)
    ]  # fmt: skip


def test_what_is_drawn_by_hand(tmp_path: Path) -> None:
    """Objects on top where they are missed, the false detection where it is the point; tooltips say what is what."""
    analysis = three_images()
    missed, wrong = make_figures([Card(0, "missed"), Card(0, "wrong", 1)], [analysis], tmp_path)
    assert (missed.caption, missed.image_id) == ("missed", "a")
    boxes = [(box.style, box.title, box.label.text if box.label else "") for box in missed.shots[0].boxes]
    assert boxes == [
        ("wrong", "cow 0.950, background", ""),
        ("wrong", "cat 0.920, background", ""),
        ("right", "dog 0.900, right", ""),
        ("gt overlooked", "cat, annotated, missed", "cat"),
        ("gt", "dog, annotated, found", ""),
    ]
    last = wrong.shots[0].boxes[-1]
    assert (last.style, last.title, last.label and last.label.text) == (
        "wrong focus",
        "cow 0.950, background",
        "cow 0.950",
    )
    assert (last.x, last.y, last.width, last.height) == (0, 0, 100, 100)  # both end pixels of (1, 1, 100, 100)


def test_two_runs_and_the_first_ones_focus() -> None:
    analysis = three_images()
    shots = make_figures([Card(0, "wrong", 1)], [analysis, analysis], None)[0].shots
    assert [sum(box.style == "wrong focus" for box in shot.boxes) for shot in shots] == [1, 0]


def with_sizes(analysis: Analysis, *sizes: tuple[int, int]) -> Analysis:
    truth = replace(analysis.data.ground_truth, image_sizes=np.array(sizes))
    return replace(analysis, data=replace(analysis.data, ground_truth=truth))


def test_size_of_the_picture(tmp_path: Path) -> None:
    """(H, W) of the file, else as declared, else what holds all boxes and ten pixels more."""
    analysis = with_sizes(three_images(), (450, 600), (0, 0), (300, 200))
    Image.new("RGB", (800, 500), "teal").save(tmp_path / "a.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    shots = [make_figures([Card(image, "")], [analysis], tmp_path)[0].shots[0] for image in range(3)]
    assert [(shot.height, shot.width) for shot in shots] == [(500, 800), (100, 100), (300, 200)]
    assert [bool(shot.thumbnail) for shot in shots] == [True, False, False]
    small = Image.open(io.BytesIO(base64.b64decode(shots[0].thumbnail)))
    assert small.size == (THUMBNAIL, 225)
    far = make_figures([Card(0, "")], [with_sizes(three_images(), (0, 0), (0, 0), (0, 0))], None)[0].shots[0]
    assert (far.height, far.width) == (410, 410)


def test_large_photos_are_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG of 3001 x 2000 (H, W), stored lying on its side, at a quarter; the thumbnail shows the same."""
    ramp = np.linspace(0, 255, 3001)[:, None, None].repeat(2000, 1).repeat(3, 2).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=turned)
    decoded = []
    monkeypatch.setattr(
        gallery, "read_image", lambda *args, **options: decoded.append(read_image(*args, **options)) or decoded[-1]
    )
    (figure,) = make_figures([Card(0, "")], [with_sizes(three_images(), (3001, 2000), (0, 0), (0, 0))], tmp_path)
    shot = figure.shots[0]
    assert (shot.height, shot.width) == (3001, 2000)
    assert [image.shape for image in decoded] == [(751, 500, 3)]
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot.thumbnail)))).astype(float)
    assert small.shape == (THUMBNAIL, 240, 3)
    assert np.abs(small.mean((1, 2)) - np.linspace(0, 255, THUMBNAIL)).max() < 2


def test_a_turned_photograph_is_shown_as_it_was_annotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    # (H, W) as the pixels are stored, upright, and not declared: then as every viewer shows it.
    for declared, shown in (((40, 60), (40, 60)), ((60, 40), (60, 40)), ((0, 0), (60, 40))):
        analysis = with_sizes(three_images(), declared, (0, 0), (0, 0))
        shot = make_figures([Card(0, "")], [analysis], tmp_path)[0].shots[0]
        assert (shot.height, shot.width) == shown


def test_a_damaged_png_ends_no_report(tmp_path: Path) -> None:
    """Its second half is a part of no known kind, for which Pillow raises a SyntaxError."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    first, _, second = path.read_bytes().rpartition(b"IDAT")
    path.write_bytes(first + b"\1\2\3\4" + second)
    shot = make_figures([Card(0, "")], [with_sizes(three_images(), (300, 400), (0, 0), (0, 0))], tmp_path)[0].shots[0]
    assert (shot.height, shot.width) == (300, 400)
