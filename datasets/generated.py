"""The built-in default set: drawn pictures in VOC layout, a detection problem that needs no download. Imports no torch.

A class is a shape together with a family of hues: a circle is red, and a green one is nothing at all. Objects are
shaded, turned, squeezed, of sizes from 7 to 100 pixels, cut by the border and covered by each other; the background is
textured and littered with strokes, pebbles and decoys (a class's shape in grey or in another class's hue). Objects that
are tiny or mostly hidden are marked difficult, and some images are empty.

Every picture is a pure function of (VERSION, set, index). They are written once, to data/generated/ of the checkout.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from tqdm import tqdm

from configs.errors import UserError, did_you_mean
from configs.files import write_bytes

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of every seed; raise it with any change of the drawing, and the files are written anew."""

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "data" / "generated"

DEFAULT_SIZES = {"train": 600, "val": 60, "test": 150}

HUES = {"circle": 0, "ring": 285, "square": 215, "star": 48, "triangle": 130}
"""Class -> middle of its hues, degrees; drawn from +-HUE_JITTER."""

HUE_JITTER = 14

_IMAGE_SIZES = ((144, 192), (144, 192), (144, 192), (144, 192), (144, 176), (192, 144))  # (H, W)
_EMPTY = 0.06
"""Share of images without objects."""
_MIN_VISIBLE = 0.2
"""Nothing is drawn where it would leave less of an object to be seen."""
_DIFFICULT_VISIBLE = 0.45
_DIFFICULT_SIDE = 12
"""Pixels."""
_OVERSAMPLING = 4


@dataclass
class DrawnObject:
    """One object of a picture."""

    name: str
    mask: np.ndarray
    """(H, W) bool: the pixels where it is seen; later objects take theirs away."""
    full_area: float
    """Pixels that it would cover if nothing hid it and the picture went on."""
    cut: bool
    """It reaches out of the picture."""

    @property
    def visible(self) -> float:
        """The share of it that is seen."""
        return float(self.mask.sum()) / self.full_area

    @property
    def box(self) -> tuple[int, int, int, int]:
        """xmin ymin xmax ymax of what is seen, in VOC's pixels: from 1, both ends inclusive."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def difficult(self) -> bool:
        """Mostly hidden, or tiny."""
        xmin, ymin, xmax, ymax = self.box
        return self.visible < _DIFFICULT_VISIBLE or min(xmax - xmin, ymax - ymin) + 1 < _DIFFICULT_SIDE


def generate(image_set: str, size: int = 0, root: Path = DEFAULT_ROOT) -> tuple[Path, str]:
    """The folder and the image set's name under which `voc.read_voc` reads the set; drawn where it is not there yet.

    Files appear whole and their names never change, so that several processes may do this at once.

    Args:
        image_set: train, val or test.
        size: number of images; 0: the default. A smaller set is the beginning of a larger one.
        root: the folder.

    Raises:
        UserError: there is no such set.
    """
    if image_set not in DEFAULT_SIZES:
        raise UserError(
            f"generated: there is no set {image_set}{did_you_mean(image_set, list(DEFAULT_SIZES))}; "
            f"there are {', '.join(DEFAULT_SIZES)}"
        )
    size = size or DEFAULT_SIZES[image_set]
    list_name = image_set if size == DEFAULT_SIZES[image_set] else f"{image_set}_{size}"
    _remove_other_version(root)
    names = [f"{image_set}_{index:04d}" for index in range(size)]
    present = {path.stem for path in (root / "Annotations").glob(f"{image_set}_*.xml")}
    present &= {path.stem for path in (root / "JPEGImages").glob(f"{image_set}_*.*")}
    missing = [index for index, name in enumerate(names) if name not in present]
    if missing:
        logger.info("drawing %d images of the built-in set into %s", len(missing), root)
    quiet = len(missing) < 50 or None  # None: where there is no terminal
    for index in tqdm(missing, desc=f"drawing {image_set}", unit="image", disable=quiet, leave=False):
        _write_picture(root, image_set, index, names[index])
    list_file = root / "ImageSets" / "Main" / f"{list_name}.txt"
    if missing or not list_file.is_file():
        write_bytes(root / "version.txt", f"{VERSION}\n".encode())
        write_bytes(list_file, ("\n".join(names) + "\n").encode())
    return root, list_name


def draw_picture(image_set: str, index: int) -> tuple[np.ndarray, list[DrawnObject]]:
    """Picture `index` of a set: (H, W, 3) uint8 RGB and its objects, the last drawn on top."""
    rng = np.random.default_rng([VERSION, list(DEFAULT_SIZES).index(image_set), index])
    height, width = _IMAGE_SIZES[rng.integers(len(_IMAGE_SIZES))]
    image = _background(rng, height, width)
    for _ in range(rng.integers(4, 12)):
        _draw_clutter(rng, image)
    objects: list[DrawnObject] = []
    wanted = 0 if rng.random() < _EMPTY else int(rng.integers(1, 7))
    names = list(HUES)
    for _ in range(wanted):
        _draw_object(rng, image, names[rng.integers(len(names))], objects)
    for _ in range(rng.integers(0, 4)):
        _draw_stroke(rng, image, thickness=1)
    return _photograph(rng, image), objects


# ------------------------------------------------------------------------------------------------ drawing


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32, 0..1: two muted colours mixed by cloudy noise, lit from one side."""
    hue = rng.uniform(0, 360)
    first = _colour(hue, rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.75))
    second = _colour(hue + rng.uniform(-60, 60), rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.75))
    noise = np.zeros((height, width), np.float32)
    stretch = rng.uniform(0.3, 1, 2)  # grain of wood or cloth rather than clouds
    for octave in range(1, 6):
        cells = np.maximum(2, (2**octave * stretch * (1, width / height)).astype(int))
        layer = rng.standard_normal((cells[0], cells[1])).astype(np.float32)
        noise += cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) * 0.65**octave
    mix = np.clip(0.5 + 0.6 * noise, 0, 1)[..., None]
    image = first * mix + second * (1 - mix)
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    return image * (1 + 0.18 * (xs * np.cos(angle) + ys * np.sin(angle)))[..., None]


def _draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Something that is no object: a stroke, a pebble, or a decoy."""
    kind = rng.random()
    if kind < 0.4:
        _draw_stroke(rng, image, thickness=int(rng.integers(1, 3)))
        return
    names = list(HUES)
    name = names[rng.integers(len(names))]
    if kind < 0.75:  # a pebble
        outline: Callable[[np.random.Generator], list[np.ndarray]] = _blob_outline
        colour = _colour(rng.uniform(0, 360), rng.uniform(0.05, 0.3), rng.uniform(0.25, 0.8))
    elif kind < 0.92:  # a class's shape in grey
        outline = _OUTLINES[name]
        colour = _colour(rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(0.3, 0.85))
    else:  # a class's shape in another class's hue
        outline = _OUTLINES[name]
        other = names[(names.index(name) + rng.integers(1, len(names))) % len(names)]
        colour = _class_colour(rng, other)
    radius = np.exp(rng.uniform(np.log(4), np.log(20)))
    centre = rng.uniform((0, 0), image.shape[1::-1])
    _paint(rng, image, outline(rng), centre, radius, colour)


def _draw_stroke(rng: np.random.Generator, image: np.ndarray, thickness: int) -> None:
    """A thin curve of any colour."""
    height, width = image.shape[:2]
    heading = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.3, 16).cumsum()
    steps = rng.uniform(2, 6) * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    points = rng.uniform((0, 0), (width, height)) + steps.cumsum(axis=0)
    alpha = np.zeros((height, width), np.uint8)
    cv2.polylines(alpha, [np.round(points * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_AA, shift=4)
    colour = _colour(rng.uniform(0, 360), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.9))
    cover = (alpha.astype(np.float32) / 255)[..., None]
    image[:] = image * (1 - cover) + colour * cover


def _draw_object(rng: np.random.Generator, image: np.ndarray, name: str, objects: list[DrawnObject]) -> None:
    """Draw an object where it hides no other too much; after ten failed places, nothing is drawn."""
    height, width = image.shape[:2]
    outline, colour = _OUTLINES[name](rng), _class_colour(rng, name)
    radius = float(np.exp(rng.uniform(np.log(6), np.log(45))))
    for _ in range(10):
        centre = rng.uniform((0, 0), (width, height))
        alpha, full_area, (left, top) = _rasterise(outline, centre, radius)
        mask = _on_canvas(alpha > 0.5, left, top, height, width)
        seen = mask.sum() / full_area
        if seen < 0.35 or any((item.mask & ~mask).sum() < _MIN_VISIBLE * item.full_area for item in objects):
            continue
        for item in objects:
            item.mask &= ~mask
        _paint(rng, image, outline, centre, radius, colour)
        objects.append(DrawnObject(name, mask, full_area, cut=bool(seen < 0.97)))
        return


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    outline: list[np.ndarray],
    centre: np.ndarray,
    radius: float,
    colour: np.ndarray,
) -> None:
    """Blend a shaded, outlined shape with its shadow into the image."""
    alpha, _, (left, top) = _rasterise(outline, centre, radius)
    height, width = image.shape[:2]
    light = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[-1 : 1 : alpha.shape[0] * 1j, -1 : 1 : alpha.shape[1] * 1j].astype(np.float32)
    shade = 1 + rng.uniform(0.1, 0.3) * (xs * np.cos(light) + ys * np.sin(light))
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8), iterations=1 if radius < 14 else 2)
    shade *= np.where(inner > 0.5, 1, 0.72)
    shade += rng.normal(0, 0.03, alpha.shape).astype(np.float32)
    shape = colour * shade[..., None]

    distance = max(1, round(radius * 0.12))
    shift = (round(-np.cos(light) * distance), round(-np.sin(light) * distance))
    blurred = cv2.GaussianBlur(alpha, (0, 0), max(1.0, radius * 0.1))
    for coverage, paint, (x, y) in (
        (0.45 * blurred, np.zeros_like(shape), (left + shift[0], top + shift[1])),
        (alpha, shape, (left, top)),
    ):
        x1, y1 = max(x, 0), max(y, 0)
        x2, y2 = min(x + alpha.shape[1], width), min(y + alpha.shape[0], height)
        if x1 < x2 and y1 < y2:
            part = np.s_[y1 - y : y2 - y, x1 - x : x2 - x]
            cover = coverage[part][..., None]
            image[y1:y2, x1:x2] = image[y1:y2, x1:x2] * (1 - cover) + paint[part] * cover


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Exposure, softness and grain of a camera; (H, W, 3) uint8."""
    image = image * rng.uniform(0.8, 1.15)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(0.005, 0.025), image.shape)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ shapes


def _rasterise(
    outline: list[np.ndarray], centre: np.ndarray, radius: float
) -> tuple[np.ndarray, float, tuple[int, int]]:
    """A shape's coverage (h, w) float32 of the pixels around it, its area, and the left top pixel of that window."""
    reach = int(np.ceil(max(np.abs(points).max() for points in outline) * radius)) + 2
    left, top = int(centre[0]) - reach, int(centre[1]) - reach
    side = 2 * reach + 1
    fine = np.zeros((side * _OVERSAMPLING, side * _OVERSAMPLING), np.uint8)
    corners = [
        np.round((points * radius + centre - (left, top)) * _OVERSAMPLING).astype(np.int32) for points in outline
    ]
    cv2.fillPoly(fine, corners, 255)  # a second outline inside the first is a hole
    alpha = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return alpha, float((alpha > 0.5).sum()), (left, top)


def _on_canvas(mask: np.ndarray, left: int, top: int, height: int, width: int) -> np.ndarray:
    """The mask of a window in a picture of (height, width); what lies outside is cut off."""
    canvas = np.zeros((height, width), bool)
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + mask.shape[1], width), min(top + mask.shape[0], height)
    if x1 < x2 and y1 < y2:
        canvas[y1:y2, x1:x2] = mask[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def _polygon(rng: np.random.Generator, angles: np.ndarray, radii: np.ndarray | float, squeeze: float) -> np.ndarray:
    """(P, 2) corners at polar positions, squeezed along one axis and then turned by a random angle."""
    points = np.stack([np.cos(angles) * radii * squeeze, np.sin(angles) * radii / squeeze], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _corners(count: int) -> np.ndarray:
    return np.arange(count) * (2 * np.pi / count)


def _circle_outline(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(rng, _corners(64), 1.0, rng.uniform(0.88, 1.12))]


def _ring_outline(rng: np.random.Generator) -> list[np.ndarray]:
    outer = _polygon(rng, _corners(64), 1.0, rng.uniform(0.88, 1.12))
    return [outer, outer * rng.uniform(0.48, 0.6)]


def _square_outline(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(rng, _corners(4) + np.pi / 4, 1.15, rng.uniform(0.88, 1.12))]


def _star_outline(rng: np.random.Generator) -> list[np.ndarray]:
    radii = np.where(np.arange(10) % 2 == 0, 1.15, rng.uniform(0.48, 0.58))
    return [_polygon(rng, _corners(10), radii, rng.uniform(0.92, 1.08))]


def _triangle_outline(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(rng, _corners(3), 1.2, rng.uniform(0.88, 1.12))]


def _blob_outline(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polygon(rng, _corners(7), rng.uniform(0.6, 1.1, 7), rng.uniform(0.7, 1.3))]


_OUTLINES: dict[str, Callable[[np.random.Generator], list[np.ndarray]]] = {
    "circle": _circle_outline,
    "ring": _ring_outline,
    "square": _square_outline,
    "star": _star_outline,
    "triangle": _triangle_outline,
}


def _class_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    return _colour(HUES[name] + rng.uniform(-HUE_JITTER, HUE_JITTER), rng.uniform(0.55, 0.9), rng.uniform(0.6, 0.95))


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB, 0..1, of a hue in degrees, saturation and value in 0..1."""
    hsv = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


# ------------------------------------------------------------------------------------------------ files


def _write_picture(root: Path, image_set: str, index: int, name: str) -> None:
    image, objects = draw_picture(image_set, index)
    suffix, options = (".png", []) if index % 8 == 7 else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 93])
    _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    write_bytes(root / "JPEGImages" / f"{name}{suffix}", data.tobytes())
    write_bytes(root / "Annotations" / f"{name}.xml", _annotation(f"{name}{suffix}", image.shape[:2], objects))


def _annotation(filename: str, image_size: tuple[int, int], objects: list[DrawnObject]) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    size = ElementTree.SubElement(root, "size")
    for tag, number in (("width", image_size[1]), ("height", image_size[0]), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(number)
    for item in objects:
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = item.name
        ElementTree.SubElement(node, "truncated").text = str(int(item.cut))
        ElementTree.SubElement(node, "difficult").text = str(int(item.difficult))
        box = ElementTree.SubElement(node, "bndbox")
        for tag, number in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True):
            ElementTree.SubElement(box, tag).text = str(number)
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _remove_other_version(root: Path) -> None:
    """Remove what another version has drawn, out of the way first, for other processes may do the same."""
    version = root / "version.txt"
    if version.is_file() and version.read_text().strip() != str(VERSION):
        trash = Path(tempfile.mkdtemp(dir=root.parent, prefix=".old-"))
        try:
            root.rename(trash / "generated")
        except FileNotFoundError:
            logger.debug("another process has removed %s", root)
        shutil.rmtree(trash, ignore_errors=True)
