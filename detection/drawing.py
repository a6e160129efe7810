"""Pictures: boxes with names and scores on an image, ground truth dashed, and several pictures as one sheet."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from detection.fonts import Font, load_font

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]

LONGEST_SIDE = 2000
"""Pixels: an image of 1 x 4000 is not enlarged, or it would become millions of pixels long."""


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    truth_boxes: np.ndarray | None = None,
    truth_labels: np.ndarray | None = None,
    names: bool = True,
    thickness: float = 1.0,
    scale: float = 1.0,
) -> np.ndarray:
    """The image with its detections, solid and in their class's colour, and its ground truth, dashed in white.

    Args:
        image: (H, W, 3) uint8 RGB; it stays as it is.
        boxes: (N, 4) x1 y1 x2 y2 in pixels of `image`.
        labels: (N,) in 1..K.
        scores: (N,) in [0, 1], written behind the names; None: names alone.
        class_names: K names.
        truth_boxes, truth_labels: (M, 4) and (M,), drawn below the detections; objects that were found need no name, so
            only those are named that no detection of their class covers by half.
        names: write names and scores. A name that would hide a small object or other names, wherever it were
            put, is left out.
        thickness: of lines and letters, relative to what suits the picture's size.
        scale: enlarges the picture, for small images; no side grows beyond `LONGEST_SIDE`.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    scale = min(scale, max(1.0, LONGEST_SIDE / max(image.shape[:2])))
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int).reshape(-1)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if scale != 1.0:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")
    short = min(picture.size)
    width = max(1 if thickness < 1 else 2, round(thickness * short / 220))
    boxes = boxes * scale
    order = np.argsort(scores, kind="stable") if scores is not None else np.arange(len(boxes))  # the best are on top
    truth = np.zeros((0, 4)) if truth_boxes is None else np.asarray(truth_boxes, float).reshape(-1, 4) * scale
    _draw_truth(draw, truth, width)
    for i in order.tolist():
        draw.rectangle(tuple(boxes[i]), outline=(*class_color(int(labels[i])), 255), width=width)
    if names:
        writer = _NameWriter(
            draw, picture.size, boxes, width, load_font(max(10, round(thickness * short / 32)), "".join(class_names))
        )
        for i in order[::-1].tolist():  # the best choose their places first
            text = class_names[int(labels[i]) - 1] + (f" {scores[i]:.2f}" if scores is not None else "")
            writer.write(text, boxes[i], class_color(int(labels[i])))
        if truth_labels is not None:
            for i in _missed(truth, np.asarray(truth_labels, int), boxes, labels):
                writer.write(f"{class_names[int(truth_labels[i]) - 1]}?", truth[i], (255, 255, 255))
    return np.asarray(picture)


def sheet(
    pictures: Sequence[np.ndarray], *, columns: int | None = None, cell_width: int = 480, gap: int = 8
) -> np.ndarray:
    """Pictures side by side in rows of equal height, on white.

    Args:
        pictures: (H, W, 3) uint8 RGB of any sizes; at least one.
        columns: pictures in a row; None: about as many as there are rows.
        cell_width: mean width of a picture in the sheet, pixels.
        gap: pixels between pictures.

    A row is at most twice as high as a cell is wide.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    total = columns * cell_width + (columns + 1) * gap
    rows: list[Image.Image] = []
    for start in range(0, len(pictures), columns):
        row = [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures[start : start + columns]]
        aspects = sum(picture.width / picture.height for picture in row)
        height = round((total - (columns + 1) * gap) / aspects * len(row) / columns)
        height = min(max(height, 1), 2 * cell_width)  # strips would make a row as high as they are
        strip = Image.new("RGB", (total, height + gap), "white")
        x = gap
        for picture in row:
            resized = picture.resize(
                (max(1, round(height * picture.width / picture.height)), height), Image.Resampling.LANCZOS
            )
            strip.paste(resized, (x, 0))
            x += resized.width + gap
        rows.append(strip)
    result = Image.new("RGB", (total, gap + sum(row.height for row in rows)), "white")
    y = gap
    for strip in rows:
        result.paste(strip, (0, y))
        y += strip.height
    return np.asarray(result)


def class_color(label: int) -> Color:
    """A class's colour, the same in every picture; hues of neighbouring labels are far apart (golden angle)."""
    hue = (0.62 + (label - 1) * 0.381966) % 1.0
    lightness = (0.55, 0.45, 0.65)[(label - 1) // 13 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


# ---------------------------------------------------------------------------------------------- parts

MOST_HIDDEN = 0.5
"""Names hide at most this share of any object, and a name at most so much of others, in terms of its own area."""


class _NameWriter:
    """Writes names on chips of their colours: where no other name is, and never over a small object."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        picture_size: tuple[int, int],
        boxes: np.ndarray,
        line: int,
        font: Font,
    ) -> None:
        self.draw, self.picture_size, self.boxes, self.line, self.font = draw, picture_size, boxes, line, font
        self.taken: list[Box] = []
        """Places of names."""
        self.hidden = np.zeros(len(boxes))
        """The share of each object that names hide."""

    def write(self, text: str, box: np.ndarray, color: Color) -> None:
        """Write at the first corner of the box that is free: above, inside, below, beside, or over other names."""
        _, _, text_width, text_height = self.draw.textbbox((0, 0), text, font=self.font)
        pad = max(1, round(text_height / 6))
        width, height = text_width + 2 * pad, text_height + 2 * pad
        places = np.array(self._places(box, width, height))
        hidden = self._hidden(places)
        allowed = np.flatnonzero((self.hidden + hidden).max(1, initial=0.0) <= MOST_HIDDEN)
        if not len(allowed):
            return
        covered = [sum(_overlap(place, other) for other in self.taken) for place in places[allowed].tolist()]
        if min(covered) > MOST_HIDDEN * width * height:
            return
        chosen = allowed[int(np.argmin(covered))]
        place = tuple(places[chosen].tolist())
        self.taken.append(place)
        self.hidden += hidden[chosen]
        self.draw.rectangle(place, fill=(*color, 225))
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        self.draw.text((place[0] + pad, place[1] + pad), text, font=self.font, fill=ink)

    def _places(self, box: np.ndarray, width: float, height: float) -> list[Box]:
        """Where a chip may be, the best first; within the picture."""
        x1, y1, x2, y2 = box.tolist()
        corners = [
            (x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2),
            (x1 + self.line, y1 + self.line), (x1 + self.line, y2 - height - self.line),
            (x2 + self.line, y1), (x1 - width - self.line, y1),
        ]  # fmt: skip
        places: list[Box] = []
        for x, y in corners:
            x = min(max(x, 0), max(self.picture_size[0] - width, 0))
            if -1 <= y <= self.picture_size[1] - height + 1:
                places.append((x, max(y, 0), x + width, max(y, 0) + height))
        return places or [(max(x1, 0), max(y1, 0), max(x1, 0) + width, max(y1, 0) + height)]

    def _hidden(self, places: np.ndarray) -> np.ndarray:
        """(P, N) the share of each object that a name at each place would hide."""
        extent = np.minimum(places[:, None, 2:], self.boxes[None, :, 2:]) - np.maximum(
            places[:, None, :2], self.boxes[None, :, :2]
        )
        return extent.clip(0).prod(2) / (self.boxes[:, 2:] - self.boxes[:, :2]).clip(1e-6).prod(1)


def _draw_truth(draw: ImageDraw.ImageDraw, boxes: np.ndarray, width: int) -> None:
    """Dashed white boxes with a dark shade, which show on any background."""
    dash = 5 * width
    for x1, y1, x2, y2 in boxes.reshape(-1, 4):
        for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x1, y2), (x2, y2)), ((x1, y1), (x1, y2))):
            draw.line((*start, *end), fill=(0, 0, 0, 110), width=width)
            length = math.hypot(end[0] - start[0], end[1] - start[1])
            for offset in np.arange(0.0, length, 2 * dash):
                a, b = offset / length, min((offset + dash) / length, 1.0)
                points = [start[k] + share * (end[k] - start[k]) for share in (a, b) for k in (0, 1)]
                draw.line(points, fill=(255, 255, 255, 255), width=width)


def _missed(truth: np.ndarray, truth_labels: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """Objects that no detection of their class covers with an IoU of 0.5."""
    missed = []
    for i, (box, label) in enumerate(zip(truth, truth_labels, strict=True)):
        others = boxes[labels == label]
        extent = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
        intersection = extent.clip(0).prod(1)
        union = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - intersection
        if not (intersection >= 0.5 * union).any():
            missed.append(i)
    return missed


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
