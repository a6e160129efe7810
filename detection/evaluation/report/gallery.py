"""The images that a detector does worst on, as thumbnails with boxes for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import UserError
from datasets.images import divisor_for, image_file_size, read_image
from detection.evaluation.data import GroundTruth
from detection.evaluation.report.analysis import Analysis
from detection.evaluation.report.errors import ERRORS, NO_ERROR
from detection.evaluation.voc import NOT_COUNTED, TRUE

MOST_CARDS = 24
"""Images in a gallery: the page of five thousand images stays as small as that of fifty."""
MOST_BOXES = 40
"""Detections drawn in an image, best first."""
THUMBNAIL = 360
"""Longer side in pixels; boxes are drawn as vectors on top and stay sharp."""

LETTER_WIDTH = 0.62
"""A letter's width relative to the font's size, on average and rather too much."""


@dataclass(frozen=True)
class Card:
    """One image of a gallery."""

    image: int
    """Position in the ground truth."""
    caption: str
    focus: int | None = None
    """Position of the detection that it is about."""


def worst_missed(analysis: Analysis, at_most: int = MOST_CARDS) -> list[Card]:
    """The images with the most missed objects; of equals those with the larger ones."""
    truth = analysis.data.ground_truth
    overlooked = np.flatnonzero(analysis.overlooked)
    images = len(truth.image_ids)
    count = np.bincount(truth.image_index[overlooked], minlength=images)
    area = np.bincount(truth.image_index[overlooked], weights=truth.area[overlooked], minlength=images)
    total = np.bincount(truth.image_index[~analysis.matches.difficult], minlength=images)
    order = np.lexsort((-area, -count))
    return [Card(int(index), f"{count[index]} of {total[index]} missed") for index in order[:at_most] if count[index]]


def confident_false_positives(analysis: Analysis, at_most: int = MOST_CARDS) -> list[Card]:
    """The false detections of the highest scores, one for each image."""
    wrong = np.flatnonzero(analysis.errors.kind != NO_ERROR)
    wrong = wrong[np.argsort(-analysis.matches.scores[wrong], kind="stable")]
    images = analysis.data.detection_images[wrong]
    _, first = np.unique(images, return_index=True)
    cards = []
    for place in np.sort(first)[:at_most]:
        detection = int(wrong[place])
        name = analysis.data.class_names[analysis.matches.labels[detection] - 1]
        kind = ERRORS[analysis.errors.kind[detection]]
        caption = f"{name} {analysis.matches.scores[detection]:.3f}: {kind}"
        cards.append(Card(int(images[place]), caption, detection))
    return cards


# ---------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Label:
    """A word at a box, in pixels of the image; within the picture."""

    text: str
    x: float
    y: float
    size: float
    anchor: str
    """Which end of the text is at x: start or end."""


@dataclass(frozen=True)
class Box:
    """A rectangle with a tooltip, in pixels of the image."""

    x: float
    y: float
    width: float
    height: float
    style: str
    """CSS classes."""
    title: str
    label: Label | None


@dataclass(frozen=True)
class Shot:
    """An image with its boxes, those on top last."""

    width: int
    height: int
    thumbnail: str
    """A JPEG in base64; empty where there is no image file."""
    boxes: list[Box]


@dataclass(frozen=True)
class Figure:
    """A card's picture for each run."""

    caption: str
    image_id: str
    shots: list[Shot]


def make_figures(cards: Sequence[Card], analyses: Sequence[Analysis], images: Path | None) -> list[Figure]:
    """The cards' pictures.

    Args:
        cards: of the first run.
        analyses: of one or two runs; with two each card shows the image once for either.
        images: folder of the image files; None: the paths in the ground truth.
    """
    ids = analyses[0].data.ground_truth.image_ids
    return [
        Figure(
            card.caption,
            str(ids[card.image]),
            # The card's detection belongs to the first run.
            [_shot(analysis, card, images, focus=number == 0) for number, analysis in enumerate(analyses)],
        )
        for card in cards
    ]


def _shot(analysis: Analysis, card: Card, images: Path | None, *, focus: bool) -> Shot:
    """The thumbnail with objects and detections; `focus` emphasises the card's detection."""
    truth = analysis.data.ground_truth
    thumbnail, (height, width) = _thumbnail(analysis, card.image, images)
    place = _Placement(width, height)
    present: list[int] = np.flatnonzero(truth.image_index == card.image).tolist()
    objects = [_object(analysis, card, index, place) for index in present]
    detections = list(_detections(analysis, card, place, focus))
    # What the card is about is on top.
    return Shot(width, height, thumbnail, detections + objects if card.focus is None else objects + detections)


def _object(analysis: Analysis, card: Card, index: int, place: _Placement) -> Box:
    truth = analysis.data.ground_truth
    if analysis.matches.difficult[index]:
        style, word = "gt difficult", "difficult"
    elif analysis.overlooked[index]:
        style, word = "gt overlooked", "missed"
    else:
        style, word = "gt", "found"
    name = truth.class_names[truth.labels[index] - 1]
    label = name if style == "gt overlooked" and card.focus is None else ""
    return place.box(truth.continuous_boxes[index], style, f"{name}, annotated, {word}", label)


def _detections(analysis: Analysis, card: Card, place: _Placement, focus: bool) -> Iterator[Box]:
    scores = analysis.matches.scores
    shown = np.flatnonzero((analysis.data.detection_images == card.image) & (scores >= analysis.threshold))
    shown = shown[np.argsort(-scores[shown], kind="stable")][:MOST_BOXES]
    emphasised = card.focus if focus else None
    if emphasised is not None:
        shown = np.append(shown[shown != emphasised], emphasised)
    boxes = analysis.data.detections.continuous_boxes[shown] if len(shown) else np.zeros((0, 4))
    for detection, box in zip(shown.tolist(), boxes, strict=True):
        name = analysis.data.class_names[analysis.matches.labels[detection] - 1]
        outcome = analysis.outcome[detection]
        words = f"{name} {scores[detection]:.3f}"
        if outcome in (TRUE, NOT_COUNTED):
            yield place.box(box, "right", f"{words}, {'right' if outcome == TRUE else 'not counted'}", "")
        else:
            style, label = ("wrong focus", words) if detection == emphasised else ("wrong", "")
            yield place.box(box, style, f"{words}, {ERRORS[analysis.errors.kind[detection]]}", label)


@dataclass(frozen=True)
class _Placement:
    """The picture's size, which says where words fit."""

    width: int
    height: int

    def box(self, box: np.ndarray, style: str, title: str, label: str) -> Box:
        """A rectangle with a tooltip and, if given, a label above it, or in it where there is no room above."""
        x1, y1, x2, y2 = box.tolist()
        return Box(x1, y1, max(x2 - x1, 0), max(y2 - y1, 0), style, title, self._label(label, x1, y1, x2))

    def _label(self, text: str, x1: float, y1: float, x2: float) -> Label | None:
        if not text:
            return None
        unit = max(self.width, self.height) / THUMBNAIL  # a pixel of the picture as it is shown
        size = 11 * unit
        y = y1 - 3 * unit if y1 > 14 * unit else max(y1, 0) + size
        x, room = max(x1, 0) + 2 * unit, LETTER_WIDTH * size * len(text)
        if x + room <= self.width:
            return Label(text, x, y, size, "start")
        # It would leave the picture at the right: it ends at the box's right side, or at the picture's.
        end = min(x2, self.width) - 2 * unit
        return Label(text, end if end >= room else max(room, self.width - 2 * unit), y, size, "end")


def _thumbnail(analysis: Analysis, index: int, images: Path | None) -> tuple[str, tuple[int, int]]:
    """The image as a JPEG in base64 ('' where there is none), and (H, W) of the annotated image."""
    truth = analysis.data.ground_truth
    sizes = truth.image_sizes
    declared = (int(sizes[index, 0]), int(sizes[index, 1])) if sizes is not None and sizes[index].min() > 0 else None
    path = find_image(truth, index, images)
    if path is None:
        return "", declared or _extent(analysis, index)
    try:
        size = image_file_size(path, declared)
        image = read_image(path, declared, divisor=divisor_for(max(size) / (2 * THUMBNAIL)))  # a half is left to Pillow
    except UserError:
        return "", declared or _extent(analysis, index)
    small, content = Image.fromarray(image), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(content, "JPEG", quality=80, optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii"), size


def _extent(analysis: Analysis, index: int) -> tuple[int, int]:
    """(H, W) that holds all annotated boxes of an image of unknown size."""
    truth = analysis.data.ground_truth
    boxes = truth.continuous_boxes[truth.image_index == index]
    far = np.maximum(np.ceil(boxes[:, 2:].max(axis=0, initial=0)) + 10, 100).astype(int)
    return int(far[1]), int(far[0])


def find_image(truth: GroundTruth, index: int, images: Path | None) -> Path | None:
    """The file of an image: as the annotation names it, or by the image's id."""
    name = truth.image_files[index] if truth.image_files else ""
    candidates = [Path(name)] if name else []
    if images is not None:
        stems = [name, Path(name).name, *(f"{truth.image_ids[index]}{suffix}" for suffix in (".jpg", ".png", ".jpeg"))]
        candidates = [Path(images) / stem for stem in stems if stem] + candidates
    return next((path for path in candidates if path.is_file()), None)
