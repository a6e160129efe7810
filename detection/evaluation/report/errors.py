"""Kinds of errors and what each costs, after TIDE (Bolya et al. 2020), by VOC's rule at an overlap of .5.

Each false detection has the first kind that fits:

| error | a false detection that |
|---|---|
| duplicate | overlaps an object of its class enough, but that is taken |
| localisation | overlaps an object of its class by .1 to .5 |
| classification | overlaps an object of another class by .5 or more |
| both | overlaps an object of another class by .1 to .5 |
| background | overlaps no object by .1 |

Missed are the objects that no detection hits and that no localisation or classification error explains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detection.evaluation.data import Aligned
from detection.evaluation.pairs import best_objects
from detection.evaluation.voc import (
    FALSE,
    NOT_COUNTED,
    TRUE,
    VocMatches,
    class_aps,
    class_order,
    mean_of_classes,
    voc_overlap,
)

FOREGROUND, BACKGROUND = 0.5, 0.1
"""Overlaps from which a detection hits an object, and below which it does not touch it."""

ERRORS = ("classification", "localisation", "both", "duplicate", "background")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, ONLY_BACKGROUND = range(5)
NO_ERROR = -1


@dataclass(frozen=True)
class Errors:
    """What is wrong with the detections of a set."""

    kind: np.ndarray
    """(D,) int8: position in ERRORS of a false detection, else NO_ERROR."""
    other_object: np.ndarray
    """(D,) int64: the object of another class that a detection overlaps most; -1: none."""
    missed: np.ndarray
    """(M,) bool."""


def find_errors(data: Aligned, matches: VocMatches, outcome: np.ndarray) -> Errors:
    """Tell the kinds of errors apart (see the module's table)."""
    truth = data.ground_truth
    other_overlap, other_object = best_objects(
        data.detections.voc_boxes,
        data.detection_images,
        truth.voc_boxes,
        truth.image_index,
        voc_overlap,
        allowed=lambda detection, item: data.detection_labels[detection] != truth.labels[item],
    )
    kinds = {
        NO_ERROR: outcome != FALSE,
        DUPLICATE: matches.overlap >= FOREGROUND,
        LOCALISATION: matches.overlap >= BACKGROUND,
        CLASSIFICATION: other_overlap >= FOREGROUND,
        BOTH: other_overlap >= BACKGROUND,
    }
    kind = np.select(list(kinds.values()), list(kinds), default=ONLY_BACKGROUND).astype(np.int8)
    missed = ~matches.difficult & ~objects_hit(matches, outcome)
    missed[matches.best_object[kind == LOCALISATION]] = False
    missed[other_object[kind == CLASSIFICATION]] = False
    return Errors(kind, other_object, missed)


def objects_hit(matches: VocMatches, outcome: np.ndarray, threshold: float = -np.inf) -> np.ndarray:
    """(M,) bool: objects that a true detection of at least this score hits."""
    hit = np.zeros(len(matches.difficult), dtype=bool)
    hit[matches.best_object[(outcome == TRUE) & (matches.scores >= threshold)]] = True
    return hit


def best_f1_threshold(matches: VocMatches, outcome: np.ndarray) -> float:
    """The score from which on detections have the best F1 over all classes; .5 where nothing is ever right."""
    counted = np.flatnonzero(outcome != NOT_COUNTED)
    order = counted[np.argsort(-matches.scores[counted], kind="stable")]
    true = np.cumsum(outcome[order] == TRUE)
    if not len(order) or true[-1] == 0:
        return 0.5
    f1 = 2 * true / (np.arange(1, len(order) + 1) + matches.positives.sum())
    return float(matches.scores[order[int(np.argmax(f1))]])


def gains(data: Aligned, matches: VocMatches, outcome: np.ndarray, errors: Errors) -> dict[str, float]:
    """The voc12 mAP that fixing each kind of error, and nothing else, would add.

    Duplicates, clutter and doubly wrong detections go; a badly placed or wrongly named one becomes a hit where its
    object is still free, else it goes; missed objects are no longer asked for (a class whose objects were all missed
    counts as solved).
    """
    base = class_aps(matches, outcome)
    mean = mean_of_classes(base)
    if np.isnan(mean):
        return dict.fromkeys((*ERRORS, "missed"), 0.0)
    added = {}
    for code, name in enumerate(ERRORS):
        fixed, labels = np.where(errors.kind == code, NOT_COUNTED, outcome), matches.labels.copy()
        if code in (LOCALISATION, CLASSIFICATION):
            target = matches.best_object if code == LOCALISATION else errors.other_object
            promoted = _first_on_free_objects(matches, outcome, np.flatnonzero(errors.kind == code), target)
            fixed[promoted] = TRUE
            labels[promoted] = data.ground_truth.labels[target[promoted]]
        order, starts = class_order(labels, matches.scores, len(matches.class_names))
        changed = replace(matches, labels=labels, order=order, starts=starts)
        added[name] = mean_of_classes(class_aps(changed, fixed)) - mean
    missed = np.bincount(data.ground_truth.labels[errors.missed], minlength=len(matches.class_names) + 1)[1:]
    fewer = class_aps(replace(matches, positives=matches.positives - missed), outcome)
    solved = np.where(np.isnan(base), np.nan, np.nan_to_num(fewer, nan=1.0))
    return added | {"missed": mean_of_classes(solved) - mean}


def _first_on_free_objects(
    matches: VocMatches, outcome: np.ndarray, candidates: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """The best-scored candidate on each object that is to be found and not hit yet."""
    free = ~matches.difficult & ~objects_hit(matches, outcome)
    candidates = candidates[free[target[candidates]]]
    candidates = candidates[np.argsort(-matches.scores[candidates], kind="stable")]
    _, first = np.unique(target[candidates], return_index=True)
    return candidates[first]
