"""Dividing a set that comes without lists: by a hash of the file name, so that more photos move none. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.errors import UserError, counted
from datasets.records import Records

PARTS = ("train", "val", "test")


def split_parts(keys: Sequence[str], shares: Sequence[float], *, seed: int = 0, source: str = "split") -> np.ndarray:
    """(N,) int64: the part 0..P-1 of each key; equal keys share a part, and no part is empty.

    A key's part depends on itself and the seed alone, so images that are added later move none. Only where a part
    would be empty, it takes the keys next to it.

    Args:
        keys: N names.
        shares: what the P parts hold, about; they are positive and add up to 1.
        seed: another one gives another division.
        source: what messages begin with.

    Raises:
        UserError: there are fewer different keys than parts.
    """
    groups, index = np.unique(np.asarray(keys, np.str_), return_inverse=True)
    if len(groups) < len(shares):
        raise UserError(
            f"{source}: cannot be divided into {len(shares)} parts: it has {counted(len(groups), 'image')} or "
            f"{counted(len(groups), 'group')} of images"
        )
    place = np.array([_hash(group, seed) for group in groups])
    limits = np.cumsum([0.0, *shares])
    part = np.clip(np.searchsorted(limits, place, side="right") - 1, 0, len(shares) - 1)
    for empty in range(len(shares)):
        if not (part == empty).any():
            counts = np.bincount(part, minlength=len(shares))
            spare = counts[part] > 1
            middle = (limits[empty] + limits[empty + 1]) / 2
            part[np.argmin(np.where(spare, np.abs(place - middle), np.inf))] = empty
    return part[index]


def _hash(text: str, seed: int) -> float:
    """A number in [0, 1), even for texts that differ by one letter."""
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8], "big") / 2**64


def group_keys(paths: Sequence[str], pattern: str | None, root: Path | None = None) -> list[str]:
    """What each image's part is drawn for: its name without suffix, or what `pattern` finds in its path below `root`.

    Raises:
        UserError: the pattern is not a regular expression, or fits no image.
    """
    if pattern is None:
        return [Path(path).stem for path in paths]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"split_by: {pattern!r} is not a regular expression: {error}") from None
    keys, fits = [], 0
    for text in paths:
        path = Path(text)
        inside = path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name
        found = expression.search(inside)
        fits += found is not None
        keys.append(path.stem if found is None else found.group(1 if expression.groups else 0) or "")
    if paths and not fits:
        raise UserError(f"split_by: {pattern!r} fits no image's path, for example {Path(paths[0]).name}")
    return keys


def shares_of(split: float | Sequence[float]) -> list[float]:
    """The shares of train, val and, where there are three, test."""
    return [split, 1.0 - split] if isinstance(split, (int, float)) else list(split)


def split_records(
    records: Records,
    part: str,
    split: float | Sequence[float],
    *,
    pattern: str | None = None,
    seed: int = 0,
    root: Path | None = None,
) -> Records:
    """The images of one part.

    Args:
        records: the whole set.
        part: train, val or test.
        split: the share that trains, the rest validates; or the shares of train, val and test.
        pattern: regular expression on the path below `root`; images with equal first groups (without groups: equal
            matches) stay together, as frames of a video should. None: each image by itself.
        seed: another one gives another division.
        root: see `pattern`.
    """
    shares = shares_of(split)
    if PARTS.index(part) >= len(shares):
        raise UserError(f"data.{part}: split {split} leaves nothing to {part}: write three shares, as [0.7, 0.2, 0.1]")
    keys = group_keys(records.image_paths.tolist(), pattern, root)
    parts = split_parts(keys, shares, seed=seed, source=records.source)
    return records.subset(np.flatnonzero(parts == PARTS.index(part)))


def choose_seed(records: Records, split: float | Sequence[float], keys: Sequence[str], tries: int = 50) -> int:
    """The seed whose division is nearest to the shares and has each class in each part where it can."""
    shares = np.array(shares_of(split))
    groups, index = np.unique(np.asarray(keys, np.str_), return_inverse=True)
    if len(groups) < len(shares):
        return 0
    has = np.zeros((len(records), len(records.class_names)), bool)  # which image shows which class
    has[records.image_of_object(), records.labels - 1] = True
    owners = [len(np.unique(index[has[:, k]])) for k in range(has.shape[1])]
    divisible = has[:, np.array(owners, int) >= len(shares)] if len(owners) else has
    totals = np.maximum(has.sum(axis=0), 1)
    best, least = 0, np.inf
    for seed in range(tries):
        part = split_parts(keys, shares.tolist(), seed=seed)
        cost = np.abs(np.bincount(part, minlength=len(shares)) / len(part) - shares).sum()
        for number in range(len(shares)):
            cost += (~divisible[part == number].any(axis=0)).sum()
            cost += np.abs(has[part == number].sum(axis=0) / totals - shares[number]).mean() if has.size else 0
        if cost < least - 1e-12:
            best, least = seed, float(cost)
    return best
