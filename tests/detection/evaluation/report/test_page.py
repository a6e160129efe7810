"""The report's parts; how it looks is for eyes and tests/browser."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import evaluate
from detection.evaluation.report import SECTIONS, Run, write_report
from detection.evaluation.report.gallery import (
    MOST_CARDS,
)
from detection.evaluation.report.page import set_name
from tools.benchmarks.synthetic import IMAGE_SIZE, make_set


class Checker(HTMLParser):
    """Collects ids and images, and checks that elements close in order."""

    VOID = frozenset(("meta", "img", "br", "image", "rect", "link"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert not checker.open
    return checker


def run_of(name: str, truth: GroundTruth, found: Detections) -> Run:
    return Run(name, found, evaluate(truth, found))


@pytest.fixture(scope="module")
def made() -> tuple[GroundTruth, Detections]:
    truth, found = make_set("voc", images=40, classes=4, objects=120, detections=600, seed=2)
    return replace(truth, class_names=["cat", "<b>dog</b>", "cow", "car"]), replace(
        found, class_names=["cat", "<b>dog</b>", "cow", "car"]
    )


def test_page_has_all_parts_and_plots(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, found = made
    images = tmp_path / "images"
    images.mkdir()
    for name in truth.image_ids[:30]:
        Image.new("RGB", IMAGE_SIZE[::-1], "teal").save(images / f"{name}.jpg")
    page = write_report(tmp_path / "report", truth, [run_of("a & b", truth, found)], images=images)
    parts = parse(page)
    assert set(SECTIONS) - set(parts.ids) == {"training"}
    assert parts.counts["img"] == 5
    assert parts.counts["figure"] > MOST_CARDS
    text = page.read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in text
    assert text.count('class="plot small"') == 2  # errors and confusion of few classes fit a phone
    assert "a &amp; b" in text
    assert "&lt;b&gt;dog" in text
    assert "<b>dog" not in text
    assert not re.search(r"""(src|href)=["'](http|//|file)""", text)  # no network
    names = {path.name for path in (tmp_path / "report" / "plots").iterdir()}
    assert names == {"precision_recall.png", "scores.png", "errors.png", "groups.png", "confusion_1.png"}
    for path in (tmp_path / "report" / "plots").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_page_takes_in_the_curves(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, found = made
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "curves.png")
    page = write_report(tmp_path / "report", truth, [run_of("a", truth, found)], curves=tmp_path / "curves.png")
    parts = parse(page)
    assert set(SECTIONS) <= set(parts.ids)
    assert parts.counts["img"] == 6
    content = base64.b64encode((tmp_path / "curves.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{content}"' in page.read_text(encoding="utf-8")


def test_two_runs_stand_side_by_side(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, found = made
    best = np.argsort(-found.scores)[:300]
    columns = {name: getattr(found, name)[best] for name in ("image_index", "labels", "boxes", "scores")}
    other = replace(found, **columns, class_names=["cat", "<b>dog</b>", "cow", "dodo"])
    runs = [run_of("new", truth, found), run_of("old", truth, other)]
    page = write_report(tmp_path, truth, runs)
    parts = parse(page)
    assert parts.counts["img"] == 6
    text = page.read_text(encoding="utf-8")
    first, second = (run.metrics["voc12"]["mAP"] for run in runs)
    assert f"{100 * (first - second):+.1f}" in text
    assert "dodo" in text
    assert parts.counts["svg"] == 2 * parts.counts["figure"]


def test_sets_without_objects_or_detections_make_a_page(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, found = made
    none = {name: getattr(found, name)[:0] for name in ("image_index", "labels", "boxes", "scores")}
    silent = parse(write_report(tmp_path / "silent", truth, [run_of("silent", truth, replace(found, **none))]))
    assert silent.counts["figure"] == MOST_CARDS  # all objects are overlooked, nothing is wrongly found
    names = ("image_index", "labels", "boxes", "area", "iscrowd", "difficult")
    empty = replace(truth, **{name: getattr(truth, name)[:0] for name in names}, image_sizes=None)
    runs = [run_of("empty", empty, found), run_of("both", empty, replace(found, **none))]
    assert parse(write_report(tmp_path / "empty", empty, runs)).counts["figure"] == MOST_CARDS


def test_a_page_shows_one_or_two_runs(made: tuple[GroundTruth, Detections], tmp_path: Path) -> None:
    truth, found = made
    with pytest.raises(ValueError, match="not 3"):
        write_report(tmp_path, truth, [run_of("x", truth, found)] * 3)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/VOCdevkit/VOC2007/test", "VOC2007/test"),
        ("/data/VOCdevkit/VOC2007 (test)", "VOC2007 (test)"),
        ("/data/coco/annotations/instances_val2017.json", "instances_val2017"),
        ("a/x/train + b/y.json", "x/train + y"),
        ("a + b + c + d", "a + 3 more"),
        ("synthetic", "synthetic"),
    ],
)
def test_a_set_is_called_by_its_name_not_its_path(source: str, name: str) -> None:
    assert set_name(source) == name
