"""CIFAR-10 and other sets of small images of one size, read whole into memory. Imports no torch."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.files import read_bytes
from configs.pickles import PickleError, read_pickle
from datasets.folders import ImageFiles, find_class, list_folder, read_folders
from datasets.images import decode_image, read_image
from datasets.listing import IMAGE_SUFFIXES, is_hidden

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
"""In the order of the original labels, which is that of the alphabet."""
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32
MOST_BYTES = 8 << 30
"""The largest set that is read into memory."""


@dataclass(frozen=True)
class ImageArrays:
    """A classification set in memory, images of one size."""

    images: np.ndarray
    """(N, H, W, 3) uint8 RGB."""
    labels: np.ndarray
    """(N,) int64, 0..K-1: position in `class_names`."""
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> ImageArrays:
        """The images at `positions` only, (M,) int64."""
        return replace(self, images=self.images[positions], labels=self.labels[positions])


def read_cifar10(root: Path, split: str, class_names: Sequence[str] | None = None) -> ImageArrays:
    """CIFAR-10, whichever form it is in.

    Args:
        root: the folder of the python batches (data_batch_1, ...), of the binary ones (data_batch_1.bin, ...), or of
            train/<class>/ and test/<class>/; or the folder above it; or a zip file of train/<class>/ and test/<class>/.
        split: train or test.
        class_names: the classes in the order of their labels; None: the original order.

    Raises:
        UserError: none of the forms is there, or a file is damaged.
    """
    if root.is_file() and zipfile.is_zipfile(root):  # a pipe would be waited for
        return _read_zip(root, split, class_names)
    if root.is_file():
        raise UserError(f"{root}: is no zip file, or a damaged one: fetch it again, or unpack it and name the folder")
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        for suffix, read in (("", _read_python_batch), (".bin", _read_binary_batch)):
            paths = [folder / f"{name}{suffix}" for name in _BATCHES[split]]
            if not paths[0].is_file():
                continue
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise UserError(f"{missing[0]}: missing: unpack the archive again")
            planes, labels = zip(*(read(path) for path in paths), strict=True)
            return _arrays(np.concatenate(planes), np.concatenate(labels), class_names, str(folder))
    if (root / split).is_dir():
        return read_into_memory(read_folders(root / split, class_names))
    list_folder(root)
    raise UserError(
        f"{root}: holds no CIFAR-10: neither data_batch_1 nor data_batch_1.bin nor a folder {split}/ with a folder for "
        "each class (an archive must be unpacked)"
    )


def read_into_memory(files: ImageFiles) -> ImageArrays:
    """The files' images, decoded.

    Raises:
        UserError: an image cannot be read, or differs in size from the others.
    """
    first = read_image(files.path(0)).shape[:2]
    images = _allocate(len(files), (first[0], first[1]), str(files.root))

    def decode(index: int) -> None:
        _put(images, index, read_image(files.path(index)), str(files.path(index)))

    with ThreadPoolExecutor() as threads:  # decoding releases the interpreter lock
        for _ in threads.map(decode, range(len(files)), chunksize=64):
            pass
    return ImageArrays(images, files.labels, files.class_names)


def _put(images: np.ndarray, index: int, image: np.ndarray, name: str) -> None:
    if image.shape != images.shape[1:]:
        size, others = (f"{shape[0]}x{shape[1]}" for shape in (image.shape, images.shape[1:]))
        raise UserError(
            f"{name}: is {size} (H x W), others are {others}: a set in memory has images of one size; "
            "set data.augment.crop to scale_jitter or random_resized to read files one by one"
        )
    images[index] = image


def _arrays(planes: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, where: str) -> ImageArrays:
    """(N, 3072) colour planes and original labels -> ImageArrays with the labels of `class_names`."""
    images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    class_names = list(class_names) if class_names is not None else list(CIFAR10_CLASSES)
    label_of = np.array([find_class(name, class_names, where) for name in CIFAR10_CLASSES])
    return ImageArrays(images, label_of[labels].astype(np.int64), class_names)


# ---------------------------------------------------------------------------------------------- files


def _read_python_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) uint8 and (N,) labels of a pickled batch."""
    try:
        content = read_pickle(read_bytes(path, "CIFAR-10 batch"))
        # Python 2's keys are texts, Python 3's may be bytes.
        named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        planes, labels = named["data"], np.asarray(named["labels"])
    except (PickleError, KeyError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not a CIFAR-10 python batch ({reason}): unpack the archive again") from None
    if not isinstance(planes, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: not a CIFAR-10 python batch: data is not an array, or labels are not numbers")
    return _checked(planes, labels, path)


def _read_binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3072) uint8 and (N,) labels of a binary batch: for each image one byte of label and the planes."""
    data = np.frombuffer(read_bytes(path, "CIFAR-10 batch"), np.uint8)
    if len(data) == 0 or len(data) % (1 + _PIXELS):
        raise UserError(
            f"{path}: truncated: {len(data)} bytes are not a whole number of images of {1 + _PIXELS} bytes each"
        )
    rows = data.reshape(-1, 1 + _PIXELS)
    return _checked(rows[:, 1:], rows[:, 0].astype(np.int64), path)


def _checked(planes: np.ndarray, labels: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if planes.dtype != np.uint8 or planes.shape != (len(labels), _PIXELS):
        raise UserError(
            f"{path}: holds {planes.dtype} {planes.shape} for {len(labels)} labels, not (N, {_PIXELS}) bytes"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CIFAR10_CLASSES):
        raise UserError(f"{path}: labels {labels.min()}..{labels.max()} are outside CIFAR-10's 0..9")
    return planes, labels


def _read_zip(path: Path, split: str, class_names: Sequence[str] | None) -> ImageArrays:
    """A zip file with <split>/<class>/<image>, at its top or in one folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(_members(archive, split))
            contents = [_content(archive, name, path) for name in names]
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the archive is damaged ({error}): fetch it again") from None
    if not names:
        raise UserError(f"{path}: holds no images in {split}/<class>/")
    folders = sorted({_class_of(name) for name in names})
    class_names = list(class_names) if class_names is not None else folders
    label_of = {folder: find_class(folder, class_names, f"{path}/{split}") for folder in folders}
    images = _allocate(len(names), decode_image(contents[0], f"{path}: {names[0]}").shape[:2], str(path))
    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        _put(images, index, decode_image(content, f"{path}: {name}"), f"{path}: {name}")
    labels = np.array([label_of[_class_of(name)] for name in names], np.int64)
    return ImageArrays(images, labels, class_names)


def _content(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """(N,) uint8: the bytes of a member; images hardly shrink: what grows a hundredfold is made to fill the memory."""
    member = archive.getinfo(name)
    if member.file_size > 100 * member.compress_size + (1 << 20):
        raise UserError(f"{path}: {name} has {member.file_size} bytes, from {member.compress_size}: not an image")
    return np.frombuffer(archive.read(member), np.uint8)


def _allocate(count: int, image_size: tuple[int, int], where: str) -> np.ndarray:
    """(count, H, W, 3) uint8, uninitialised.

    Raises:
        UserError: the set is too large for the memory.
    """
    shape = (count, *image_size, 3)
    if math.prod(shape) > MOST_BYTES:
        size = f"{image_size[1]} x {image_size[0]}"
        raise UserError(
            f"{where}: {count} images of {size} take {math.prod(shape) / 1e9:.1f} GB of memory: "
            "set data.augment.crop to scale_jitter or random_resized to read files one by one"
        )
    return np.empty(shape, np.uint8)


def _members(archive: zipfile.ZipFile, split: str) -> Iterable[str]:
    for name in archive.namelist():
        parts = name.split("/")
        if name.lower().endswith(IMAGE_SUFFIXES) and parts[-3:-2] == [split] and not any(map(is_hidden, parts)):
            yield name


def _class_of(member: str) -> str:
    return member.split("/")[-2]
