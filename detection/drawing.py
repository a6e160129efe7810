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
            names stand only at those that no detection of their class covers by half.
        scale: enlarges the picture, for small images; no side grows beyond `LONGEST_SIDE`.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    scale = min(scale, max(1.0, LONGEST_SIDE / max(image.shape[:2])))
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int).reshape(-1)
    picture = Image.fromarray(np.ascontiguousarray(image))
    if scale != 1.0:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture, "RGBA")
    short = min(picture.size)
    width = max(2, round(short / 220))
    font = load_font(max(10, round(short / 32)), "".join(class_names))
    taken: list[Box] = []  # places of names
    order = np.argsort(scores, kind="stable") if scores is not None else np.arange(len(boxes))  # the best lie on top
    if truth_boxes is not None:
        _draw_truth(draw, np.asarray(truth_boxes, float) * scale, width)
    for i in order:
        color = class_color(int(labels[i]))
        draw.rectangle(tuple(boxes[i] * scale), outline=(*color, 255), width=width)
    for i in order[::-1]:  # the best choose their places first
        text = class_names[labels[i] - 1] + (f" {scores[i]:.2f}" if scores is not None else "")
        _draw_name(draw, text, tuple(boxes[i] * scale), class_color(int(labels[i])), font, picture.size, taken, width)
    if truth_boxes is not None and truth_labels is not None:
        for i in _missed(np.asarray(truth_boxes, float).reshape(-1, 4), np.asarray(truth_labels, int), boxes, labels):
            text = f"{class_names[int(truth_labels[i]) - 1]}?"
            box = tuple(np.asarray(truth_boxes, float)[i] * scale)
            _draw_name(draw, text, box, (255, 255, 255), font, picture.size, taken, width)
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
    """A class's colour, the same in every picture; hues of neighbouring labels lie far apart (golden angle)."""
    hue = (0.62 + (label - 1) * 0.381966) % 1.0
    lightness = (0.55, 0.45, 0.65)[(label - 1) // 13 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


# ---------------------------------------------------------------------------------------------- parts


def _draw_name(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Box,
    color: Color,
    font: Font,
    picture_size: tuple[int, int],
    taken: list[Box],
    line: int,
) -> None:
    """A name on a chip of its colour, at the first free corner of its box: above, inside, below, or over others."""
    x1, y1, x2, y2 = box
    _, _, text_width, text_height = draw.textbbox((0, 0), text, font=font)
    pad = max(1, round(text_height / 6))
    width, height = text_width + 2 * pad, text_height + 2 * pad
    corners = [
        (x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2),
        (x1 + line, y1 + line), (x1 + line, y2 - height - line),
    ]  # fmt: skip
    places = []
    for x, y in corners:
        x = min(max(x, 0), max(picture_size[0] - width, 0))
        if -1 <= y <= picture_size[1] - height + 1:
            places.append((x, max(y, 0), x + width, max(y, 0) + height))
    inside = (max(x1, 0), max(y1, 0), max(x1, 0) + width, max(y1, 0) + height)
    place = min(places or [inside], key=lambda candidate: sum(_overlap(candidate, other) for other in taken))
    taken.append(place)
    draw.rectangle(place, fill=(*color, 225))
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    draw.text((place[0] + pad, place[1] + pad), text, font=font, fill=(0, 0, 0) if bright else (255, 255, 255))


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


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
