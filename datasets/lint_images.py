"""What is wrong with the image files of a set, and which of them show the same. Imports no torch.

`lint_images` decodes every image once, `lint_splits` and `lint_near` compare what it found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from configs.errors import UserError
from datasets.complaints import heard
from datasets.images import image_file_size, read_image
from datasets.lint import Problem
from datasets.records import Records

_CHUNK = 64
"""Images that are decoded before it is looked whether a decoder complained."""
_NEAR = 6
"""Bits of 128 in which the hashes of nearly equal pictures differ, at most."""


class Marks(NamedTuple):
    """What tells an image from others."""

    digest: str
    """Its pixels' digest, hexadecimal."""
    look: tuple[int, int] | None
    """A perceptual hash, twice 64 bits; None: there is hardly anything to see."""


def lint_images(records: Records, *, threads: int = 2) -> tuple[list[Problem], dict[str, Marks]]:
    """The problems of the image files, each decoded once; and what tells each readable file from others.

    Returns:
        The problems in the order of the images; path -> marks, for `lint_splits` and `lint_near`.
    """
    paths = [str(path) for path in dict.fromkeys(records.image_paths.tolist())]
    first = {str(path): index for index, path in reversed(list(enumerate(records.image_paths.tolist())))}
    declared = [records.image_size(first[path]) for path in paths]
    problems: list[Problem] = []
    marks: dict[str, Marks] = {}
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), _CHUNK):
            part, sizes = paths[start : start + _CHUNK], declared[start : start + _CHUNK]
            with heard() as complaints:
                looked = list(pool.map(_lint_image, part, sizes))
            for path, (found, of_image) in zip(part, looked, strict=True):
                problems += found
                if of_image is not None:
                    marks[path] = of_image
            if complaints:  # of one of them
                readable = [(path, size) for path, size in zip(part, sizes, strict=True) if path in marks]
                problems += [problem for path, size in readable for problem in _damage(path, size)]
    owner: dict[str, str] = {}
    for path, mark in marks.items():
        if owner.setdefault(mark.digest, path) != path:
            problems.append(Problem("image-repeated", path, value=f"as {owner[mark.digest]}"))
    return problems, marks


def lint_splits(marks: Mapping[str, Mapping[str, Marks]]) -> list[Problem]:
    """Images of the same pixels in two splits, also through links and under other names.

    Args:
        marks: split -> path -> marks, as from `lint_images`.
    """
    owner: dict[str, tuple[str, str]] = {}
    problems = []
    for split, files in marks.items():
        for path, mark in files.items():
            other_split, other = owner.setdefault(mark.digest, (split, path))
            if other_split != split:
                problems.append(Problem("image-in-two-splits", path, split, f"as {other} of {other_split}"))
    return problems


def lint_near(marks: Mapping[str, Mapping[str, Marks]]) -> list[Problem]:
    """Images that look nearly like another one of any split, by a perceptual hash; not those with the same pixels.

    The hash (a difference hash, 2 x 64 bits) says whether each cell of an 8 x 8 grid is brighter than its neighbour to
    the right and below. It stays when an image is resized, recompressed or a little brighter; mirrors and crops are not
    found. Images without structure are left out. The time grows with the square of the number: 10,000 images take
    seconds, 100,000 minutes.
    """
    all_files = [(split, path, mark) for split, files in marks.items() for path, mark in files.items() if mark.look]
    looks = np.array([mark.look for _, _, mark in all_files], np.uint64).reshape(-1, 2)
    problems = []
    for i, (split, path, mark) in enumerate(all_files):
        distance = np.bitwise_count(looks[:i] ^ looks[i]).sum(axis=1)
        near = [j for j in np.flatnonzero(distance <= _NEAR).tolist() if all_files[j][2].digest != mark.digest]
        if near:
            nearest = min(near, key=lambda j: distance[j])
            other_split, other, _ = all_files[nearest]
            of = f" of {other_split}" if other_split != split else ""
            problems.append(Problem("image-near", path, split, f"like {other}{of}: {distance[nearest]} of 128 bits"))
    return problems


# ---------------------------------------------------------------------------------------------- parts


def _damage(path: str, declared: tuple[int, int]) -> list[Problem]:
    """What the decoder says about one file."""
    with heard() as complaints:
        read_image(path, declared)
    return [Problem("image-damaged", path, value=complaints[0][:200])] if complaints else []


def _lint_image(path: str, declared: tuple[int, int]) -> tuple[list[Problem], Marks | None]:
    """The problems of one file, and its marks; None where it cannot be read."""
    try:
        pixels = read_image(path, declared)
        shown = image_file_size(path)
    except UserError as error:
        return [Problem("image-unreadable", path, value=str(error).removeprefix(f"{path}: "))], None
    problems = []
    if pixels.shape[:2] != declared:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}, declared {declared[1]} x {declared[0]}"
        problems.append(Problem("size-differs", path, value=found))
    try:
        problems += _traits(path, "turned" if shown == pixels.shape[:2] else "taken as stored")
    except Exception as error:  # Pillow's plugins raise many kinds where OpenCV is content
        problems.append(Problem("image-damaged", path, value=f"Pillow: {error}"[:200]))
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).hexdigest()
    return problems, Marks(digest, _look(pixels))


def _traits(path: str, turned: str) -> list[Problem]:
    """What is unusual about one file by its header; `turned` says what a note of its rotation led to."""
    problems = []
    with Image.open(path) as image:
        codes = {"L": "image-grey", "1": "image-grey", "LA": "image-grey", "CMYK": "image-cmyk", "P": "image-palette"}
        if image.mode in codes:
            problems.append(Problem(codes[image.mode], path))
        if image.mode.startswith(("I", "F")):
            problems.append(Problem("image-deep", path, value=image.mode))
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            problems.append(Problem("image-animated", path, value=f"{frames} frames"))
        orientation = image.getexif().get(0x0112, 1)
    if orientation in range(2, 9):
        problems.append(Problem("image-turned", path, value=f"orientation {orientation}, {turned}"))
    return problems


def _look(pixels: np.ndarray) -> tuple[int, int] | None:
    """The difference hash of an image (H, W, 3); None where there is hardly anything to see."""
    small = cv2.resize(pixels, (9, 9), interpolation=cv2.INTER_AREA).mean(axis=2)
    if small.std() < 2:
        return None
    right, below = small[:8, 1:] > small[:8, :-1], small[1:, :8] > small[:-1, :8]
    first, second = (int.from_bytes(np.packbits(bits).tobytes(), "big") for bits in (right, below))
    return first, second
