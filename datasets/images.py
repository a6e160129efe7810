"""Reading image files: one decoder for training, evaluation and prediction. Imports no torch.

EXIF rotation: a camera may store an image lying on its side with a note to turn it. Annotations were drawn either on
the turned image or on the stored one, and the declared size tells which: the rotation is applied only where the rotated
size is the declared one. Where nothing is declared (prediction) it is applied, as every image viewer does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from configs.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

FOREIGN_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
"""Folders of other programs' copies: macOS archives, Synology thumbnails, Windows' bin."""

_ORIENTATION_TAG = 0x0112
_PNG_END = b"IEND\xaeB`\x82"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own data: `._a.jpg`, `.ipynb_checkpoints`, `__MACOSX`, ..."""
    return name.startswith(".") or name in FOREIGN_FOLDERS


def list_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """The image files in a folder (and the folders below), sorted; hidden files and folders are passed over."""
    return list_files(folder, IMAGE_SUFFIXES, recursive=recursive)


def list_files(folder: Path, suffixes: Sequence[str], *, recursive: bool = True) -> list[Path]:
    """The files with one of the suffixes (lower case, matched in any case), as `list_images`."""
    found: list[Path] = []
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not is_hidden(name)]
        found += [
            Path(directory, name) for name in names if not is_hidden(name) and name.lower().endswith(tuple(suffixes))
        ]
    return sorted(found)


def read_image(path: str | Path, declared_size: tuple[int, int] | None = None) -> np.ndarray:
    """The file's image as RGB; grey, palette, CMYK, 16-bit and transparent images are converted.

    Args:
        path: the image file.
        declared_size: (H, W) of the annotation file, which decides about EXIF rotation (see the module's docstring).

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot read the image: {error.strerror}") from error
    image = _decode(data, cv2.IMREAD_COLOR_RGB, path)
    if declared_size is not None and image.shape[:2] != tuple(declared_size):
        # Rotated or not, the size is not the declared one: the stored orientation stands.
        image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, path)
    if not _ends_properly(data):
        _verify(data, path)
    return image


def image_file_size(path: str | Path, declared_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of what `read_image` returns for the same arguments, from the file's header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such image") from error
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise UserError(f"{path}: cannot be read as an image: {error}") from error
    rotated = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return rotated if declared_size is None or rotated == tuple(declared_size) else (height, width)


def _decode(data: np.ndarray, flags: int, path: str | Path) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error as error:
        raise UserError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        raise UserError(f"{path}: cannot be decoded: the file is corrupt or its format unknown")
    return image


def _ends_properly(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG has its end marker: OpenCV fills what is missing with grey and says nothing."""
    head, tail = data[:2].tobytes(), data[-2:].tobytes()
    if head == b"\xff\xd8":
        if tail == b"\xff\xd9":
            return True
        everything = data.tobytes()
        return everything.rfind(b"\xff\xd9") > everything.rfind(b"\xff\xda")  # an embedded thumbnail ends earlier
    if head == b"\x89P":
        return _PNG_END in data[-4096:].tobytes()
    return True


def _verify(data: np.ndarray, path: str | Path) -> None:
    """Let Pillow, which is strict, say whether a file without an end marker is whole."""
    try:
        Image.open(io.BytesIO(data.tobytes())).load()
    except Exception as error:  # Pillow's plugins raise many kinds
        raise UserError(f"{path}: the image is truncated or corrupt: {error}") from error
