"""The parts of an analysis belong together: one threshold, one outcome, one set of objects."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.data import align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.report.analysis import analyse
from detection.evaluation.report.errors import ERRORS
from detection.evaluation.voc import FALSE, TRUE
from tests.detection.evaluation.report.made import BOX, FAR, HALF, analysis_of
from tools.benchmarks.synthetic import make_set


def test_counts_are_of_errors_at_the_working_threshold() -> None:
    """F1 is best at the second score (3 objects: 2/4, 4/5, 4/6, 4/7): the third and fourth are counted nowhere."""
    objects = [(0, 1, BOX), (1, 1, BOX), (2, 2, BOX)]
    found = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.8), (2, 2, HALF, 0.3), (0, 3, FAR, 0.2)]
    analysis = analysis_of(objects, found)
    assert analysis.threshold == 0.8
    assert analysis.outcome.tolist() == [TRUE, TRUE, FALSE, FALSE]
    assert analysis.overlooked.tolist() == [False, False, True]
    assert {kind: analysis.counts[kind] for kind in ERRORS} == dict.fromkeys(ERRORS, 0)
    assert analysis.counts["missed"] == 0  # the badly placed detection explains it, whatever its score
    surer = [(2, 2, HALF, 0.95), (0, 3, FAR, 0.85), *found[:2]]
    assert analysis_of(objects, surer).counts == {
        "classification": 0, "localisation": 1, "both": 0, "duplicate": 0, "background": 1, "missed": 0,
    }  # fmt: skip
    assert analysis_of(objects, found[:2]).counts["missed"] == 1


def test_gains_by_hand() -> None:
    """Two classes at AP 1 and 0: the badly placed one, put right, makes both 1: half a point of mAP for one."""
    objects = [(0, 1, BOX), (2, 2, BOX)]
    gains = analysis_of(objects, [(0, 1, BOX, 0.9), (2, 2, HALF, 0.3)]).gains
    assert gains["localisation"] == pytest.approx(0.5)
    assert all(gains[kind] == pytest.approx(0) for kind in gains if kind != "localisation")


def test_parts_add_up_to_the_whole() -> None:
    truth, found = make_set("voc", images=60, classes=4, objects=200, detections=900, seed=3)
    analysis = analyse(align(truth, found))
    wanted = int((~truth.difficult).sum())
    for groups in (analysis.sizes, analysis.crowding, analysis.neighbours):
        assert sum(group.objects for group in groups) == wanted
        hit = sum(group.recall * group.objects for group in groups if group.objects)
        assert hit == pytest.approx(wanted - analysis.overlooked.sum())
    assert analysis.matches.positives.sum() == wanted
    assert analysis.confusion[:-1].sum() == wanted
    sure = (found.scores >= analysis.threshold) & (analysis.outcome >= 0)
    assert sum(analysis.counts[kind] for kind in ERRORS) == np.sum(sure & (analysis.outcome == FALSE))
    one_class = analyse(align(truth, found))
    assert one_class.gains == analysis.gains
    assert max(analysis.gains.values()) <= 1 - evaluate(truth, found)["voc12"]["mAP"]
