"""What costs a detector its AP: kinds of errors, sizes, crowding, confusions; the numbers behind the report.

All of it follows VOC's rule at an overlap of .5, so that its base is the voc12 mAP of the same run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detection.evaluation.data import Aligned
from detection.evaluation.report.breakdown import Group, by_crowding, by_neighbour, by_size, confusion
from detection.evaluation.report.errors import (
    ERRORS,
    FOREGROUND,
    Errors,
    best_f1_threshold,
    find_errors,
    gains,
    objects_hit,
)
from detection.evaluation.voc import VocMatches, match, outcomes


@dataclass(frozen=True)
class Analysis:
    """What the report tells beyond the protocols' numbers."""

    data: Aligned
    matches: VocMatches
    outcome: np.ndarray
    """(D,) int8: TRUE, FALSE, NOT_COUNTED (`voc.py`)."""
    errors: Errors
    threshold: float
    """The working threshold: the score at which precision and recall over all classes have the best F1."""
    overlooked: np.ndarray
    """(M,) bool: objects to be found that no detection of at least the working threshold hits."""
    gains: dict[str, float]
    """Error -> voc12 mAP that fixing all errors of the kind, and nothing else, would add."""
    counts: dict[str, int]
    """Error -> how many: false detections of at least the working threshold, missed objects."""
    sizes: list[Group]
    crowding: list[Group]
    neighbours: list[Group]
    confusion: np.ndarray
    """(K + 1, K + 1) int64 at the working threshold (`breakdown.confusion`)."""


def analyse(data: Aligned) -> Analysis:
    """Take the detections of a set apart."""
    matches = match(data)
    outcome = outcomes(matches, FOREGROUND)
    errors = find_errors(data, matches, outcome)
    threshold = best_f1_threshold(matches, outcome)
    sure = matches.scores >= threshold
    found = objects_hit(matches, outcome, threshold)
    counts = {name: int(((errors.kind == code) & sure).sum()) for code, name in enumerate(ERRORS)}
    return Analysis(
        data=data,
        matches=matches,
        outcome=outcome,
        errors=errors,
        threshold=threshold,
        overlooked=~matches.difficult & ~found,
        gains=gains(data, matches, outcome, errors),
        counts=counts | {"missed": int(errors.missed.sum())},
        sizes=by_size(data, matches, outcome, found),
        crowding=by_crowding(data, matches, outcome, found),
        neighbours=by_neighbour(data, matches, outcome, found),
        confusion=confusion(data, sure, matches.difficult),
    )
