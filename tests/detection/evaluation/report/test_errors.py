"""Kinds of errors, and what fixing each would give, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.evaluation.data import align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.report.analysis import Analysis, analyse
from detection.evaluation.report.errors import ERRORS, NO_ERROR
from tests.detection.evaluation.report.made import BOX, FAR, HALF, analysis_of
from tools.benchmarks.synthetic import make_set


def kinds(analysis: Analysis) -> list[str]:
    return ["-" if kind == NO_ERROR else ERRORS[kind] for kind in analysis.errors.kind]


# ---------------------------------------------------------------------------------------------- kinds


def test_each_kind_of_error() -> None:
    found = [
        (0, 1, BOX, 0.9),  # hits the cat
        (0, 1, BOX, 0.8),  # the cat again
        (0, 1, HALF, 0.7),  # 30 % of the cat
        (1, 1, BOX, 0.6),  # the dog, called a cat
        (1, 1, HALF, 0.5),  # 30 % of the dog, called a cat
        (2, 1, BOX, 0.4),  # nothing there
    ]
    analysis = analysis_of([(0, 1, BOX), (1, 2, BOX), (2, 2, FAR)], found)
    assert kinds(analysis) == ["-", "duplicate", "localisation", "classification", "both", "background"]
    assert analysis.errors.missed.tolist() == [False, False, True]  # the first dog is explained by the wrong name


def test_detections_on_difficult_objects_are_no_errors() -> None:
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9)], difficult=[True, False])
    assert kinds(analysis) == ["-"]
    assert analysis.errors.missed.tolist() == [False, True]


# ---------------------------------------------------------------------------------------------- gains


def test_fixing_names_by_hand() -> None:
    # One cat and one dog; the dog is called a cat. AP: cat 1/1 then a false one = 1, dog 0. Renamed: both 1.
    analysis = analysis_of([(0, 1, BOX), (1, 2, BOX)], [(0, 1, BOX, 0.9), (1, 1, BOX, 0.8)])
    assert analysis.gains == {**dict.fromkeys((*ERRORS, "missed"), 0.0), "classification": pytest.approx(0.5)}


def test_fixing_places_by_hand() -> None:
    # Badly placed at the top: precision 0, 1/2 -> AP (of two cats) 1/2 * 1/2. Placed well: AP 1.
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, HALF, 0.9), (1, 1, BOX, 0.8)])
    assert analysis.gains["localisation"] == pytest.approx(0.75)
    assert analysis.gains["missed"] == 0  # the badly placed one explains it


def test_removing_clutter_and_duplicates_by_hand() -> None:
    # Ranks: false, true -> AP 1/2; without the false one 1.
    clutter = analysis_of([(0, 1, BOX)], [(1, 1, BOX, 0.9), (0, 1, BOX, 0.8)])
    assert clutter.gains["background"] == pytest.approx(0.5)
    # Ranks: true, duplicate, true -> AP 1/2 + 1/2 * 2/3; without the duplicate 1.
    twice = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8), (1, 1, BOX, 0.7)])
    assert twice.gains["duplicate"] == pytest.approx(1 / 6)


def test_finding_missed_objects_by_hand() -> None:
    half_found = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9)])
    assert half_found.gains["missed"] == pytest.approx(0.5)
    nothing_found = analysis_of([(0, 1, BOX), (0, 2, FAR)], [(0, 1, BOX, 0.9)])
    assert nothing_found.gains["missed"] == pytest.approx(0.5)


def test_an_object_is_given_to_one_mended_detection_only() -> None:
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, HALF, 0.9), (0, 1, HALF, 0.8), (1, 1, BOX, 0.7)])
    # The second badly placed one goes: true, true -> 1. Before: 0, 0, 1/3 -> 1/2 * 1/3.
    assert analysis.gains["localisation"] == pytest.approx(1 - 1 / 6)


@given(st.integers(0, 2**32 - 1))
def test_the_base_is_voc12_and_fixing_never_harms(seed: int) -> None:
    truth, found = make_set("voc", images=12, classes=3, objects=40, detections=150, seed=seed)
    analysis = analyse(align(truth, found))
    mean = evaluate(truth, found, ["voc12"])["voc12"]["mAP"]
    for name, gain in analysis.gains.items():
        assert -1e-12 <= gain <= 1 - mean + 1e-12, name
    wrong = (analysis.outcome == 0).sum()
    assert (analysis.errors.kind != NO_ERROR).sum() == wrong


# ---------------------------------------------------------------------------------------------- threshold, parts


def test_working_threshold_has_the_best_f1() -> None:
    # F1 after 1, 2, 3, 4 detections with 2 objects: 2/3, 1, 4/5, 4/6: the second score.
    found = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.6), (2, 1, BOX, 0.5), (2, 1, FAR, 0.4)]
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], found)
    assert analysis.threshold == 0.6
    assert not analysis.overlooked.any()
    assert analysis.counts["background"] == 0  # both lie below the threshold
    assert analysis_of([(0, 1, BOX)], []).threshold == 0.5
