"""What people give to look at (files, folders, patterns, addresses, pixels) as images that can be read one by one."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from configs import downloads
from configs.errors import UserError, counted, did_you_mean, printable_logger
from datasets.images import image_file_size, read_image
from datasets.listing import IMAGE_SUFFIXES, list_files, list_images
from detection.video import VideoReader

logger = printable_logger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
ADDRESSES = ("http://", "https://")
MAX_DOWNLOAD = 512 * 2**20
"""Bytes of a download; more than that is refused."""


@dataclass(frozen=True)
class ImageInput:
    """An image that can be read."""

    name: str
    """What results call it: its path from the folder that was given, or its file's name."""
    load: Callable[[], np.ndarray]
    """Gives (H, W, 3) uint8 RGB; raises UserError where that is not possible."""
    size: Callable[[], tuple[int, int]]
    """Gives (H, W) without decoding the image; raises UserError."""
    path: str | None = None
    """File or address; None: pixels."""
    frame: int | None = None
    """Position in a video, whose frames come one after another and have one size."""


def image_inputs(images: Any) -> list[ImageInput]:
    """The images that are meant, in the order given; folders' and patterns' files are sorted by name.

    Args:
        images: a path of an image or a folder (searched with its subfolders), a pattern, an http(s) address; an array
            (H, W, 3) or (H, W) uint8 RGB; a PIL image; a tensor (3, H, W) uint8 RGB; or a list of these, mixed.

    Raises:
        UserError: an input names nothing, or is not an image; says which and why.
    """
    if isinstance(images, str | Path | np.ndarray | torch.Tensor | Image.Image):
        images = [images]
    found: list[ImageInput] = []
    for position, one in enumerate(images):
        if isinstance(one, str | Path):
            found += [file_input(file, name) for file, name in _files(str(one), None)]
        else:
            pixels = _pixels(one, f"image {position}")
            found.append(array_input(pixels, f"image {position}"))
    return found


def find_files(inputs: Sequence[str], *, ignore: Path | None = None) -> list[tuple[str, str]]:
    """The files and addresses that paths, folders and patterns mean, each once, and names that tell them apart.

    Files of the same name in different folders are called by their whole paths.

    Raises:
        UserError: an input names nothing.
    """
    found: dict[str, tuple[str, str]] = {}
    for text in inputs:
        for file, name in _files(text, ignore, videos=True):
            key = file if is_address(file) else os.path.realpath(file)
            found.setdefault(key, (file, name))
    names = [name for _, name in found.values()]
    several = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [(file, key.lstrip("/") if name in several else name) for key, (file, name) in found.items()]


def file_input(file: str, name: str) -> ImageInput:
    """An image file, or an address of one."""
    if is_address(file):
        return ImageInput(name, lambda: _read_address(file), lambda: (0, 0), path=file)
    return ImageInput(name, lambda: read_image(file), lambda: image_file_size(file), path=file)


def array_input(pixels: np.ndarray, name: str, *, path: str | None = None, frame: int | None = None) -> ImageInput:
    """An image (H, W, 3) uint8 RGB in memory."""
    return ImageInput(name, lambda: pixels, lambda: pixels.shape[:2], path, frame)


def is_address(text: str) -> bool:
    """Whether a text is an address on the web."""
    return text.lower().startswith(ADDRESSES)


def is_video(text: str) -> bool:
    """Whether a path or an address is a video's, by its suffix."""
    return text.split("?")[0].lower().endswith(VIDEO_SUFFIXES)


# ---------------------------------------------------------------------------------------------- files


def _files(text: str, ignore: Path | None, *, videos: bool = False) -> list[tuple[str, str]]:
    """The files that one text means, and their names; never none."""
    if is_address(text):
        return [(text, text.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "image")]
    path = Path(text)
    if path.exists():
        found = _files_in(path, ignore)
    elif glob.has_magic(text):
        found = [item for match in sorted(glob.glob(text, recursive=True)) for item in _files_in(Path(match), ignore)]
    else:
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{text}: there is no such image or folder{did_you_mean(path.name, beside)}")
    if not videos and len(found) == 1 and is_video(found[0][0]):
        raise UserError(f"{text}: is a video: give it to stream(), which goes through its frames one by one")
    if not found and ignore is not None and _is_below(path, ignore):
        raise UserError(f"{text}: lies in {ignore}, where the results go: choose another folder for them")
    if not found:
        raise UserError(f"{text}: no images here ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _files_in(path: Path, ignore: Path | None) -> list[tuple[str, str]]:
    """A file itself under its name; a folder's images under their paths from there, without those in `ignore`.

    A folder's videos are passed over, which is said: one of them can take longer than all images.
    """
    if path.is_file():
        return [(str(path), path.name)]
    images, videos = (
        [file for file in files if ignore is None or not _is_below(file, ignore)]
        for files in (list_images(path), list_files(path, VIDEO_SUFFIXES))
    )
    if videos:
        number = counted(len(videos), "video", " is", " are")
        logger.warning("%s: %s passed over, among them %s: name what is meant", path, number, videos[0].name)
    return [(str(file), file.relative_to(path).as_posix()) for file in images]


def _is_below(path: Path, folder: Path) -> bool:
    """Whether it is the folder or in it, links followed."""
    real = Path(os.path.realpath(folder))
    return real in (place := Path(os.path.realpath(path)), *place.parents)


# ---------------------------------------------------------------------------------------------- pixels


def _pixels(value: Any, what: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an array, a PIL image or a tensor."""
    if isinstance(value, Image.Image):
        return _from_pil(value, what)
    if isinstance(value, torch.Tensor):
        if value.ndim != 3 or value.shape[0] != 3 or value.dtype != torch.uint8:
            raise UserError(f"{what}: a tensor {tuple(value.shape)} of {value.dtype}: give (3, H, W) uint8 RGB")
        value = value.permute(1, 2, 0).cpu().numpy()
    elif not isinstance(value, np.ndarray):
        raise UserError(
            f"{what}: {type(value).__name__} is not an image: give a path, an array, a PIL image or a tensor"
        )
    if value.ndim == 2 and value.dtype == np.uint8:
        value = np.repeat(value[:, :, None], 3, axis=2)
    if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8 or not value.size:
        hint = " (a batch of images? give a list of them)" if value.ndim == 4 else ""
        raise UserError(f"{what}: an array {value.shape} of {value.dtype}: give (H, W, 3) uint8 RGB{hint}")
    return value


def _from_pil(image: Image.Image, what: str) -> np.ndarray:
    """As the same image's file would be decoded: turned by its EXIF note, 16 bits cut to 8, without transparency."""
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion keeps none above 255
            return np.repeat((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except OSError as error:  # Pillow reads a file's pixels at the first use
        raise UserError(f"{what}: {getattr(image, 'filename', '') or 'the PIL image'}: {error}") from error


# ---------------------------------------------------------------------------------------------- the web


def download(address: str, path: Path, *, limit: int | None = None) -> None:
    """Fetch an http(s) address into a file.

    Raises:
        UserError: the server does not answer, answers with an error, or sends more than `limit` (`MAX_DOWNLOAD`) bytes.
    """
    try:
        downloads.download(address, path, limit=MAX_DOWNLOAD if limit is None else limit, attempts=1)
    except downloads.DownloadError as error:
        raise UserError(f"{address}: cannot be fetched: {error}") from None


def _read_address(address: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        download(address, path)
        try:
            return read_image(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), address)) from None


# ---------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True)
class Video:
    """A video or a camera whose frames are inputs."""

    name: str
    path: str | None
    """File or address; None: a camera."""
    reader: VideoReader

    def inputs(self) -> Iterator[ImageInput]:
        """The frames, one after another."""
        for number, frame in enumerate(self.reader):
            yield array_input(frame, f"{self.name}#{number:06d}", path=self.path, frame=number)


@contextmanager
def open_video(source: str | Path | int, name: str | None = None) -> Iterator[Video]:
    """A video file, an address of one (it is downloaded first) or a camera's index, open for reading.

    Args:
        source: which.
        name: what results call it; None: its file's name, or camera0.

    Raises:
        UserError: it cannot be fetched, is not a video, or is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = source
        if isinstance(source, str) and is_address(source):
            local = Path(folder) / "video"
            download(source, local)
        if isinstance(source, int):
            yield Video(name or f"camera{source}", None, VideoReader(source))
        else:
            file_name = str(source).split("?")[0].rsplit("/", 1)[-1]
            yield Video(name or file_name, str(source), VideoReader(local))
