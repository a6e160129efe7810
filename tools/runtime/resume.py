"""Whether a checkpoint and a config belong to the same training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from configs.errors import UserError
from configs.moved import with_new_names
from datasets.classification import ImageSet
from datasets.folders import ImageFiles
from datasets.lint import SUMMARY_LIMIT
from datasets.records import Records
from tools.runtime.distributed import say
from tools.runtime.guards import LARGE, bytes_in
from tools.runtime.texts import differing, leaves

MAY_CHANGE = (
    "data.train", "data.val", "data.test", "data.num_workers", "data.cache", "data.on_error", "metrics", "schedule",
    "optim.lr", "test", "train.accumulate", "train.compile", "train.graphs", "train.log_every", "train.validate_every",
    "train.checkpoint_every", "train.keep_last", "train.transfer_classes",
    "train.best_metric", "train.patience", "train.alternating.rpn.schedule", "train.alternating.detector.schedule",
)  # fmt: skip
"""What a resumed run may have otherwise: where data lies, how often something is done, how long it goes on and how
fast. Every change is printed. Anything else would make it another training."""


def refuse_another_training(
    path: Path, stored: Mapping[str, Any], config: BaseModel, stored_classes: list[str], class_names: list[str]
) -> None:
    """Compare a checkpoint's config with the present one, and print what has changed.

    Raises:
        UserError: the key that may not change, or the classes that do not fit.
    """
    stored = with_new_names(stored, type(config), str(path), stored=True)
    old, new = dict(leaves(stored)), dict(leaves(config.model_dump(mode="json")))
    for name in _tables(config):
        _take_as_one(old, name)
        _take_as_one(new, name)
    for name in _in_both(old, new):
        before, now = old.get(name, "a section"), new.get(name, "a section")
        if before == now:
            continue
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise UserError(
                f"{path}: was trained with {name} {before}, the config now says {now}: "
                "set it back to resume, or start a new run with --init-from"
            )
        say(f"resumed with {name} {now} (before: {before})")
    if stored_classes != class_names:
        which = differing(stored_classes, class_names)
        raise UserError(f"{path}: was trained on other classes than the data's ({which})")


def _tables(config: BaseModel, prefix: str = "") -> Iterator[str]:
    """The names of values with keys of the user's own, such as data.rename_classes: each key counts."""
    for name, value in config:
        if isinstance(value, BaseModel):
            yield from _tables(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{name}"


def _take_as_one(values: dict[str, Any], name: str) -> None:
    """Put what lies below a name in its place, as one value."""
    below = {key: values.pop(key) for key in list(values) if key.startswith(f"{name}.")}
    if below:
        values[name] = {key.removeprefix(f"{name}."): value for key, value in below.items()}


def _in_both(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names to compare, in order: leaves of both, and sections that are null in one of them.

    A leaf that only one has is an option of another version of this project, and no change.
    """
    names = [name for name in new if name in old]
    for one, other in ((old, new), (new, old)):
        names += [name for name in one if name not in other and any(key.startswith(f"{name}.") for key in other)]
    return names


def data_state(data: Records | ImageSet) -> dict[str, str]:
    """What tells whether a training set has changed: digests of its annotations, and of its images.

    Of files the sizes in bytes count, and only of sets of up to `LARGE` images: all files would have to be read. Of
    more than `SUMMARY_LIMIT` objects the numbers alone count: the columns of 25 million are a gigabyte, which no
    training has in memory otherwise.
    """
    annotations, images = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    if isinstance(data, Records):
        columns = data.image_ids, data.sizes, data.offsets
        if len(data.labels) <= SUMMARY_LIMIT:
            columns += data.boxes, data.labels, data.iscrowd, data.difficult
        paths = data.image_paths if len(data) <= LARGE else ()
    elif isinstance(data, ImageFiles):
        columns = data.names, data.labels
        paths = [data.path(i) for i in range(len(data))] if type(data) is ImageFiles and len(data) <= LARGE else ()
    else:
        columns, paths = (data.labels,), ()
        images.update(np.ascontiguousarray(data.images).reshape(-1).data)
    for column in columns:
        annotations.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
    images.update(np.array([bytes_in(path) for path in paths], np.int64).data)
    return {"annotations": annotations.hexdigest(), "images": images.hexdigest()}


def say_what_changed(path: Path, stored: object, now: Mapping[str, str]) -> None:
    """Warn where a training set is no longer what it was when a checkpoint was written.

    Args:
        path: the checkpoint.
        stored: its `data_state`; what is not in it (of an older checkpoint) is not compared.
        now: of the present set; empty: not known on this process.
    """
    known = stored if isinstance(stored, Mapping) else {}
    if changed := [name for name in now if known.get(name, now[name]) != now[name]]:
        say(
            f"warning: the {' and the '.join(changed)} of the training set have changed since {path} was written: from "
            "here on this is another training"
        )
