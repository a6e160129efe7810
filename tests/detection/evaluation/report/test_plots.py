"""The plots' curves, bars and cells hold the numbers that they are drawn from."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from detection.evaluation.report import plots
from detection.evaluation.report.analysis import Analysis
from detection.evaluation.report.errors import ERRORS
from tests.detection.evaluation.report.made import BOX, FAR, analysis_of


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """Cats: right, wrong, right with two objects; dogs: one, not found; cows: none at all, one false detection."""
    objects = [(0, 1, BOX), (1, 1, BOX), (2, 2, BOX)]
    found = [(0, 1, BOX, 0.9), (2, 1, FAR, 0.8), (1, 1, BOX, 0.7), (2, 3, FAR, 0.3)]
    return analysis_of(objects, found)


def test_curves_are_the_monotone_precision(analysis: Analysis) -> None:
    """Precision 1 up to a recall of 1/2, then 2/3: a panel for each class with objects."""
    figure = plots.precision_recall([("x", analysis)])
    cat, dog, *rest = figure.axes
    assert (cat.get_title(), dog.get_title()) == ("cat", "dog")
    recall, precision = cat.lines[0].get_data()
    assert precision[recall <= 0.5] == pytest.approx(1)
    assert precision[recall > 0.5] == pytest.approx(2 / 3)
    assert np.all(dog.lines[0].get_ydata() == 0)
    assert not any(axis.axison for axis in rest)
    two = plots.precision_recall([("x", analysis), ("y", analysis)])
    assert [line.get_color() for line in two.axes[0].lines] == list(plots.RUN_COLORS)


def test_steps_end_where_the_recall_ends() -> None:
    grid, values = plots._steps(np.array([0.25, 0.5, 0.5]), np.array([0.5, 0.75, 0.6]))
    assert values[grid <= 0.5] == pytest.approx(0.75)
    assert values[grid > 0.5] == pytest.approx(0)


def test_scores_and_thresholds(analysis: Analysis) -> None:
    left, right = plots.scores([("x", analysis)]).axes
    assert left.get_title() == "scores of right and wrong detections"
    bars = [[round(patch.get_height()) for patch in group] for group in left.containers]
    assert [sum(group) for group in bars] == [2, 2]
    edges = [round(patch.get_x(), 3) for patch, height in zip(left.containers[0], bars[0], strict=True) if height]
    assert edges == [0.675, 0.9]
    precision, recall, f1 = (dict(zip(*line.get_data(), strict=True)) for line in right.lines[:3])
    # From a threshold of 0.75 on up one right and one wrong, of three objects
    at = min(precision, key=lambda x: abs(x - 0.75))
    assert (precision[at], recall[at], f1[at]) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert np.isnan(precision[max(precision)])
    assert right.lines[3].get_xdata() == [analysis.threshold] * 2


def test_many_detections_are_counted_in_plain_numbers() -> None:
    many = analysis_of([(0, 1, BOX)], [(0, 1, FAR, 0.3)] * 600)
    with matplotlib.rc_context(plots.STYLE):
        figure = plots.scores([("x", many)])
        figure.draw_without_rendering()
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"0", "10", "100", "1,000"} <= set(labels)
    assert not any("$" in label for label in labels)


def test_errors_are_the_gains_in_points(analysis: Analysis) -> None:
    axis = plots.errors([("x", analysis)]).axes[0]
    kinds = (*ERRORS, "missed")
    assert [label.get_text() for label in axis.get_yticklabels()] == [kind.capitalize() for kind in kinds]
    assert [bar.get_width() for bar in axis.containers[0]] == [100 * analysis.gains[kind] for kind in kinds]
    two = plots.errors([("x", analysis), ("y", analysis)]).axes[0]
    first, second = two.containers
    assert all(a.get_y() + a.get_height() <= b.get_y() for a, b in zip(first, second, strict=True))
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["x", "y"]


def test_groups_are_ap_and_recall(analysis: Analysis) -> None:
    size, crowding, neighbours = plots.groups([("x", analysis)]).axes
    ap, recall = size.containers
    assert [bar.get_height() for bar in recall] == pytest.approx([0, 0, 2 / 3])
    assert [bar.get_height() for bar in ap] == pytest.approx([0, 0, analysis.sizes[2].ap])
    assert [text.get_text() for text in size.texts] == ["–", "–", f"{100 * analysis.sizes[2].ap:.0f}", "–", "–", "67"]
    assert [label.get_text() for label in crowding.get_xticklabels()][:2] == ["1\n(3)", "2 to 3\n(0)"]
    assert len(neighbours.containers) == 1  # no AP there: a false detection has no neighbour


def test_confusion_shows_the_classes_that_take_part(analysis: Analysis) -> None:
    """At the working threshold 0.7 the false cow does not take part, so the cows have no row."""
    assert analysis.threshold == 0.7
    axis = plots.confusion("x", analysis).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog", "(no object)"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["cat", "dog", "(missed)"]
    cells = {text.get_position()[::-1]: text.get_text() for text in axis.texts}  # (row, column)
    assert cells == {(0, 0): "2", (1, 2): "1", (2, 0): "1"}
    np.testing.assert_allclose(axis.images[0].get_array(), [[1, 0, 0], [0, 0, 1], [1, 0, 0]])


def test_long_names_are_cut() -> None:
    assert plots._short("abcde", 5) == "abcde"
    assert plots._short("abcdef", 5) == "abcd…"
