"""Reading image files: one decoder for training, evaluation and prediction. Imports no torch.

Rotation: a camera may store an image lying on its side with a note to turn it, in EXIF, XMP or TIFF's own tag, which
are read here, not by the decoder. Annotations were drawn either on the turned image or on the stored one, and the
declared size tells which: the rotation is applied unless the stored size is the declared one. Of a declared size that
is neither, as of a copy that was resized, it counts which side is the longer one. Where nothing is declared
(prediction), or both fit, it is applied, as every image viewer does.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from configs.errors import UserError
from configs.files import FOREIGN
from configs.inputs import note, open_file
from datasets.complaints import heard, note_damage, say_once

MAX_PIXELS = 250_000_000
"""Larger images are refused before a byte is decoded: 20,000 x 20,000 would take 1.2 GB, and as much to turn it."""
MAX_BYTES = 1 << 31
"""Larger files are refused before they are read: no image of so few pixels has more."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower than what OpenCV reads; ours is checked in its place
warnings.filterwarnings("ignore", module="PIL")  # about odd EXIF, without the file's name

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")
_FOREIGN = {
    **FOREIGN, b"<!doctype": "a web page", b"<svg": "an SVG drawing", b"<?xml": "XML",
    b"\0\5\x16\7": "macOS' note about another file",
}  # fmt: skip
_ORIENTATION_TAG = 0x0112
_MAX_METADATA = 1 << 24
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_PNG_END = b"IEND\xaeB`\x82"


class HasBytes(Protocol):
    """A file inside another one, as `datasets.shards.Member`; as a text it says where it is."""

    def read_bytes(self) -> bytes:
        """Its content."""
        ...


ImageFile = str | Path | HasBytes
"""What is read as an image: a path, or something with `read_bytes`."""


def read_image(path: ImageFile, declared_size: tuple[int, int] | None = None, *, divisor: int = 1) -> np.ndarray:
    """The file's image as RGB; grey, palette, CMYK, 16-bit and transparent images are converted.

    Args:
        path: the image file, or something whose `read_bytes` gives its content.
        declared_size: (H, W) of the annotation file, which decides about rotation (see the module's docstring).
        divisor: 2, 4 or 8: a JPEG at this part of its size, by libjpeg's own reduction; other files as they are.

    Returns:
        (H, W, 3) uint8; reduced sides are rounded up.

    Raises:
        UserError: the file is missing, truncated, too large or no image.
    """
    try:
        data = np.frombuffer(_bytes_of(path), np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the image: {getattr(error, 'strerror', None) or error}") from error
    return decode_image(data, path, declared_size, divisor=divisor)


def divisor_for(factor: float) -> int:
    """The greatest divisor for `read_image` that is at most `factor`; 1: the whole image."""
    return max((divisor for divisor in _COLOUR if divisor <= factor), default=1)


def decode_image(
    data: np.ndarray, path: ImageFile, declared_size: tuple[int, int] | None = None, *, divisor: int = 1
) -> np.ndarray:
    """The image in the bytes (N,) uint8 of a file, as `read_image`; `path` is what messages call it."""
    header = _header(io.BytesIO(data.tobytes()), path)
    if header.deep:
        _check_range(_decode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE, path), path)
    # OpenCV's own rotation knows no XMP, and differs between formats and versions.
    divisor = divisor if data[:2].tobytes() == _JPEG_START else 1
    image = _decode(data, _COLOUR[divisor] | cv2.IMREAD_IGNORE_ORIENTATION, path)
    if divisor > 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if not _ends_properly(data):
        _verify(data, path)
    shown, stored = header.shown_size, header.stored_size
    is_turned = header.is_tiff and image.shape[:2] == shown  # OpenCV's TIFF decoder always turns
    if image.shape[:2] != tuple(-(-side // divisor) for side in (shown if is_turned else stored)):
        raise UserError(
            f"{path}: the header says {size_words(stored)}, the pixels are {size_words(image.shape[:2])}: damaged"
        )
    wants_turned = header.is_shown_turned(declared_size)
    if wants_turned == is_turned:
        return image
    return _turn(
        image, header.orientation if wants_turned else {6: 8, 8: 6}.get(header.orientation, header.orientation)
    )


def image_file_size(path: ImageFile, declared_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of what `read_image` returns for the same arguments, from the file's header alone.

    Raises:
        UserError: the file is missing, too large or no image.
    """
    if isinstance(path, str | Path):
        note(path)
    try:
        with open_file(path) if isinstance(path, str | Path) else io.BytesIO(path.read_bytes()) as file:
            header = _header(file, path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such image") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read the image: {getattr(error, 'strerror', None) or error}") from error
    return header.shown_size if header.is_shown_turned(declared_size) else header.stored_size


# ---------------------------------------------------------------------------------------------- headers


class _Header(NamedTuple):
    """What an image file says about itself."""

    shown_size: tuple[int, int]
    """(H, W) as a viewer shows it."""
    orientation: int
    """1..8, as in EXIF."""
    is_tiff: bool
    deep: bool
    """More than 8 bits for each channel."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """(H, W) of the pixels in the file."""
        height, width = self.shown_size
        return (width, height) if self.orientation >= 5 else (height, width)

    def is_shown_turned(self, declared_size: tuple[int, int] | None) -> bool:
        """Whether the boxes of an annotation with this size (H, W) were drawn on the turned image."""
        if declared_size is None or self.shown_size == self.stored_size:
            return True
        height, width = declared_size
        stored_height, stored_width = self.stored_size
        return (height > width) - (height < width) != (stored_height > stored_width) - (stored_height < stored_width)


def _header(file: BinaryIO, path: ImageFile) -> _Header:
    """The header, by Pillow and without its limits.

    Raises:
        UserError: no image of the formats that are read, or more than `MAX_PIXELS`.
    """
    start = b""
    try:
        start = file.read(32)
        file.seek(0)
        if start.startswith(_PNG_START):
            header = _png_header(file, start)
        else:
            with Image.open(file, formats=_FORMATS) as image:
                is_tiff = image.format == "TIFF"
                bits = image.tag_v2.get(258, 8) if isinstance(image, TiffImageFile) else 8
                tags = image.tag_v2 if isinstance(image, TiffImageFile) else image.getexif()
                orientation = _valid(tags.get(_ORIENTATION_TAG))
                width, height = image.size
                # Pillow's size of a TIFF is turned already.
                shown = (width, height) if orientation >= 5 and not is_tiff else (height, width)
                header = _Header(shown, orientation, is_tiff, max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise UserError(f"{path}: cannot be read as an image: {_reason(error, start)}") from error
    height, width = header.shown_size
    if not height * width:
        raise UserError(f"{path}: is {size_words(header.shown_size)}: it has no pixels")
    if height * width > MAX_PIXELS:
        limit = f"more than {MAX_PIXELS // 10**6} million pixels: cut it into tiles"
        raise UserError(f"{path}: is {size_words(header.shown_size)}: {limit}")
    return header


def _png_header(file: BinaryIO, start: bytes) -> _Header:
    """The header of a PNG. Pillow would decode the whole image to look for EXIF behind the pixels."""
    width, height, depth = *struct.unpack(">II", start[16:24]), start[24]
    found: dict[bytes, bytes] = {}
    end = file.seek(0, os.SEEK_END)
    file.seek(8)
    while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IEND":
        length = int.from_bytes(chunk[:4], "big")
        if length > end - file.tell():  # OpenCV would take so much memory before it looks
            raise ValueError("a part of it ends beyond the file: it is truncated or damaged")
        if chunk[4:] in (b"eXIf", b"iTXt") and length <= _MAX_METADATA:
            found.setdefault(chunk[4:], file.read(length))
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    exif = Image.Exif()
    if b"eXIf" in found:
        exif.load(b"Exif\0\0" + found[b"eXIf"])
    orientation = exif.get(_ORIENTATION_TAG)
    if orientation is None and (xmp := re.search(rb'tiff:Orientation(?:="|>)([1-8])', found.get(b"iTXt", b""))):
        orientation = int(xmp[1])
    orientation = _valid(orientation)
    return _Header((width, height) if orientation >= 5 else (height, width), orientation, False, depth > 8)


def _valid(orientation: Any) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _reason(error: Exception, start: bytes) -> str:
    """Why a file is no image, by its first bytes where they tell."""
    for mark, what in _FOREIGN.items():
        if start.lstrip().lower().startswith(mark):
            return f"it is {what}"
    if not start:
        return "it is empty"
    return "unknown format or damaged header" if isinstance(error, UnidentifiedImageError) else str(error)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as a viewer shows it, by the EXIF orientation 1..8."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


# ---------------------------------------------------------------------------------------------- pixels


def _bytes_of(path: ImageFile) -> bytes | np.ndarray:
    if not isinstance(path, str | Path):
        return path.read_bytes()
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: has {size} bytes, more than {MAX_BYTES}: is it an image?")
        return np.fromfile(file, np.uint8)


_COLOUR = {
    1: cv2.IMREAD_COLOR_RGB, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8
}  # fmt: skip
"""OpenCV's flags by divisor; it reduces to BGR only."""


def _decode(data: np.ndarray, flags: int, path: ImageFile) -> np.ndarray:
    with heard() as complaints:
        try:
            image = cv2.imdecode(data, flags) if len(data) else None
        except cv2.error as error:
            raise UserError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise UserError(f"{path}: cannot be decoded: the file is corrupt or its format unknown")
    if complaints:
        note_damage(f"{path}: is damaged inside, some pixels may be wrong ({complaints[0][:200]})")
    return image


def _check_range(pixels: np.ndarray, path: ImageFile) -> None:
    """Say where little is left of an image with more than 8 bits: its upper 8 are taken.

    Raises:
        UserError: the pixels are floating-point numbers, whose range nobody knows.
    """
    if pixels.dtype.kind == "f":
        raise UserError(f"{path}: its pixels are floating-point numbers: save it with 8 or 16 bits for each channel")
    brightest = int(pixels.max(initial=0))
    if pixels.dtype == np.uint16 and 0 < brightest < 1 << 13:
        say_once(
            "16 bits",
            f"{path}: has 16 bits for each channel, but no pixel above {brightest} of 65535: as 8 bits it is nearly "
            "black; scale such images before training (reported once)",
        )


def _ends_properly(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG has its end marker: OpenCV fills what is missing with grey and says nothing."""
    head, tail = data[:2].tobytes(), data[-2:].tobytes()
    if head == _JPEG_START:
        if tail == b"\xff\xd9":
            return True
        everything = data.tobytes()
        return everything.rfind(b"\xff\xd9") > everything.rfind(b"\xff\xda")  # an embedded thumbnail ends earlier
    if head == b"\x89P":
        return _PNG_END in data[-4096:].tobytes()
    return True


def _verify(data: np.ndarray, path: ImageFile) -> None:
    """Let Pillow, which is strict, say whether a file without an end marker is whole."""
    try:
        Image.open(io.BytesIO(data.tobytes()), formats=_FORMATS).load()
    except Exception as error:  # Pillow's plugins raise many kinds
        raise UserError(f"{path}: the image is truncated or corrupt: {error}") from error


def size_words(size: tuple[int, ...]) -> str:
    """A size (H, W) in words."""
    return f"{size[1]} wide and {size[0]} high"
