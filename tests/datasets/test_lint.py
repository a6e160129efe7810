"""Each code of the linter with a fixture of its own; clean sets have no problems; what is cleaned can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.detection import AnchorConfig
from datasets.lint import (
    CODES,
    SUMMARY_LIMIT,
    Problem,
    clean,
    is_problem_list,
    lint_anchors,
    lint_records,
    summary,
    table,
)
from datasets.make_records import make_records
from datasets.records import Records

SIZE = (480, 640)
GOOD = (100.0, 100.0, 200.0, 180.0)


def records_of(
    boxes: list, *, size: tuple[int, int] = SIZE, names: tuple = ("cat",), labels: list | None = None, **more
):
    return make_records(
        images=[("/nowhere/a.jpg", "a", size)], boxes=boxes, labels=labels or [1] * len(boxes), counts=[len(boxes)],
        class_names=list(names), source="set", annotation_file="/set/{}.xml", **more,
    )  # fmt: skip


def codes(problems: list[Problem]) -> list[str]:
    return sorted(problem.code for problem in problems)


def test_a_clean_set_has_no_problem() -> None:
    assert lint_records(records_of([GOOD, (300, 100, 400, 200)])) == []
    assert table([]) == "no problems"


@pytest.mark.parametrize(
    ("code", "box"),
    [
        ("box-zero-extent", (100, 100, 101, 180)),
        ("box-reversed", (200, 100, 100, 180)),
        ("box-off-image", (700, 100, 800, 180)),
        ("box-outside", (600, 100, 660, 180)),
        ("box-at-edge", (600, 100, 640, 180)),
        ("box-repeated", GOOD),
        ("object-small", (100, 100, 102, 180)),
    ],
)
def test_boxes(code: str, box: tuple) -> None:
    (problem,) = lint_records(records_of([GOOD, box]))
    assert problem.code == code
    assert problem.line().startswith(f"{code}: /set/a.xml object 1 (cat): ")
    assert problem.line().endswith(CODES[code][1])
    assert problem.to_dict()["severity"] == CODES[code][0]
    assert f"{box[0]:g}, {box[1]:g}" in problem.value


def test_a_box_at_the_edge_is_told_although_fractions_of_six_digits_miss_it() -> None:
    # YOLO: centre 0.960938, width 0.078125 of 640: xmax = 640.0003 or 639.9997, ymin = -0.0002 or 0.0002
    for box in ((590, 100, 639.9997, 180), (100, 0.0002, 200, 180), (100, -0.0002, 200, 180)):
        (problem,) = lint_records(records_of([box]))
        assert problem.code == "box-at-edge"
        assert not any(word in problem.value for word in (".", "-"))  # 640, not 639.9997; 0, not -0
    assert lint_records(records_of([(1, 1, 639, 479)])) == []


def test_objects_are_measured_after_resizing() -> None:
    box = (100, 100, 105, 180)
    assert lint_records(records_of([box])) == []
    assert codes(lint_records(records_of([box]), min_size=320)) == ["object-small"]  # 5 x 320 / 480 = 3.3


def test_sets_that_count_from_zero() -> None:
    box = (-1, 50, 100, 100)  # 0 in the file, of which 1 was subtracted
    assert codes(lint_records(records_of([box]), from_one=True)) == ["box-at-edge", "boxes-from-zero"]


def test_images_and_classes() -> None:
    problems = lint_records(records_of([], names=("cat", "Cat ", "dog")))
    assert codes(problems) == ["class-spelling", *["class-unseen"] * 3, "image-without-object"]
    assert "class-spelling: set Cat : beside 'cat': " in "\n".join(problem.line() for problem in problems)
    assert codes(lint_records(records_of([GOOD], size=(480, 30_000)))) == ["object-small", "size-absurd"]
    assert codes(lint_records(records_of([], annotated=False))) == []


@pytest.mark.parametrize(
    ("size", "absurd"),
    [((8, 8), False), ((7, 8), True), ((400, 20_000), False), ((401, 20_001), True), ((20, 1000), False),
     ((1001, 20), True)],
)  # fmt: skip
def test_sizes_that_no_photo_has(size, absurd) -> None:
    assert ("size-absurd" in codes(lint_records(records_of([], size=size)))) == absurd


def test_a_problem_as_a_line_and_as_json(tmp_path: Path) -> None:
    problem = Problem("box-reversed", "a.xml", thing="object 0", value="1 2 0 4")
    severity, cause = CODES["box-reversed"]
    assert problem.line() == f"box-reversed: a.xml object 0: 1 2 0 4: {cause}"
    assert problem.to_dict() == {
        "code": "box-reversed", "severity": severity, "file": "a.xml", "thing": "object 0", "value": "1 2 0 4",
        "cause": cause,
    }  # fmt: skip
    path = tmp_path / "p.json"
    for content, expected in (
        ([problem.to_dict()], True),
        ([], True),
        ([{"x": 1}], False),
        (["code"], False),
        ({}, False),
    ):
        path.write_text(json.dumps(content))
        assert is_problem_list(path) == expected
    path.write_text("[")
    assert not is_problem_list(path)


def coco(boxes: np.ndarray, size: tuple[int, int] = SIZE) -> Records:
    """Boxes as a COCO file has them: x, y and what should be width and height."""
    corners = np.column_stack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
    return records_of(corners.tolist(), size=size, area=boxes[:, 2] * boxes[:, 3], form="coco")


def test_boxes_of_another_meaning() -> None:
    rng = np.random.default_rng(0)
    sides = np.column_stack((rng.integers(200, 300, (20, 2)), rng.integers(30, 60, (20, 2)))).astype(float)
    corners = np.column_stack((sides[:, :2] + 60, sides[:, :2] + 60 + sides[:, 2:]))
    assert "boxes-as-corners" not in codes(lint_records(coco(sides)))
    assert "boxes-as-corners" in codes(lint_records(coco(corners)))
    assert "boxes-as-fractions" not in codes(lint_records(coco(sides)))
    assert "boxes-as-fractions" in codes(lint_records(coco(sides / 640)))


def test_centres_that_hold_corners() -> None:
    """YOLO lines with x1 y1 x2 y2, read as centre, width and height: 8 boxes in the lower right quarter."""
    corners = np.array([[300 + 20 * i, 250 + 10 * i, 400 + 25 * i, 400 + 5 * i] for i in range(8)], float)
    wrong = np.column_stack((corners[:, :2] - corners[:, 2:] / 2, corners[:, :2] + corners[:, 2:] / 2))
    assert "boxes-as-corners" in codes(lint_records(records_of(wrong.tolist())))
    assert "boxes-as-corners" not in codes(lint_records(records_of(corners.tolist())))


def test_the_summary_counts_what_the_linter_lists(monkeypatch) -> None:
    parts = {
        "train": records_of([GOOD, (200, 100, 100, 180), (600, 100, 640, 180)], names=("cat", "Cat")),
        "val": records_of([(100, 100, 101, 180)], size=(480, 30_000)),
    }
    line = summary(parts, min_size=600, max_size=1000, more="see there")
    found = [problem for records in parts.values() for problem in lint_records(records) if problem.severity != "note"]
    told = {text.split()[1]: int(text.split()[0]) for text in line.removesuffix(": see there").split(", ")}
    assert told == {code: codes(found).count(code) for code in set(codes(found))}
    assert summary({"train": records_of([GOOD])}, min_size=600, max_size=1000, more="x").startswith("no errors")
    monkeypatch.setattr("datasets.lint.SUMMARY_LIMIT", 0)
    assert (
        summary(parts, min_size=600, max_size=1000, more="see there") == "not looked at, more than 0 objects: see there"
    )
    assert SUMMARY_LIMIT > 0


def test_anchors_that_miss_the_objects() -> None:
    records = records_of([(100, 100, 112, 111), (300, 50, 310, 64), (5, 5, 18, 17)])
    fits = {"min_size": 480, "max_size": 640}  # as they are
    found, words = lint_anchors(
        records, AnchorConfig(sizes=[[128], [256], [300], [400], [500]], aspect_ratios=[1.0]), fpn=True, **fits
    )
    assert codes(found) == ["anchors-miss"]
    assert words.startswith("anchors reach 0.0 % of 3 objects; model.anchors={sizes: [")
    assert words.endswith("would reach 100.0 %")
    found, words = lint_anchors(
        records, AnchorConfig(sizes=[[12], [256], [300], [400], [500]], aspect_ratios=[1.0]), fpn=True, **fits
    )
    assert found == []
    assert words == "anchors reach 100.0 % of 3 objects"
    assert codes(lint_anchors(records, AnchorConfig(sizes=[128]), fpn=False, **fits)[0]) == ["anchors-miss"]


def test_policies() -> None:
    boxes = [GOOD, (600, 100, 660, 180), (700, 100, 800, 180), (200, 100, 100, 180)]
    assert len(clean(records_of([(-1, -1, 641, 481)]), "drop").boxes) == 1, "a pixel is no matter"
    records = records_of(boxes)
    dropped, clipped = clean(records, "drop"), clean(records, "clip")
    assert dropped.boxes.tolist() == [list(GOOD)]
    assert clipped.boxes.tolist() == [list(GOOD), [600, 100, 640, 180]]
    assert clipped.offsets.tolist() == [0, 2]
    assert not {problem.severity for problem in lint_records(clipped)} & {"error", "warning"}


def test_the_table_counts_the_severest_first() -> None:
    problems = lint_records(records_of([GOOD, (600, 100, 640, 180), (200, 100, 100, 180), (600, 50, 640, 180)]))
    assert [row.split() for row in table(problems).splitlines()] == [
        ["1", "error", "box-reversed"],
        ["2", "note", "box-at-edge"],
    ]


def test_every_code_has_a_fixture() -> None:
    here = Path(__file__).parent
    names = ("test_lint.py", "test_lint_voc.py", "test_lint_images.py", "test_findings.py")
    files = [*(here / name for name in names), here.parent / "tools" / "test_check_data.py"]
    text = "".join(file.read_text() for file in files)
    assert [code for code in CODES if f'"{code}"' not in text] == []


def test_the_reliability_page_lists_the_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    for code, (severity, cause) in CODES.items():
        assert f"| `{code}` | {severity} | {cause} |" in page
