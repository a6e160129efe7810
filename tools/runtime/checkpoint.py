"""Checkpoints: written whole or not at all, readable without running code from the file.

A checkpoint is a dictionary `{"format": 1, "kind": "detector", "classifier" or "localiser", "config": {...},
"class_names": [...], "preprocessing": {...}, "model": state dict of what evaluates (the EMA where there is one),
"training": {...}}`. `training` is what `--resume` needs: the loop's state, optimiser, the raw weights beside an EMA,
the losses since the last line of the log. best.pt does without it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from backbones.weights import FORMAT, read_weights_file
from configs.errors import UserError
from configs.files import replacing


class NonFiniteWeights(UserError):
    """Weights that would be saved are infinite or no numbers."""


def save_checkpoint(path: Path, content: dict[str, Any], *, keep: int | None = None) -> None:
    """Write `content` so that `path` holds either the old file or the whole new one, also after a power cut.

    Args:
        path: where to.
        content: tensors and plain values in dictionaries and lists.
        keep: so many of the newest files stay: x.pt, and as x_1.pt, x_2.pt, ... what it was before. None: x.pt alone is
            replaced, and no other file touched.

    Raises:
        UserError: the file cannot be written.
        NonFiniteWeights: nothing is written.
    """
    _refuse_non_finite(content["model"], path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        _save(content, file)
        file.flush()
        os.fsync(file.fileno())
        if keep is not None:
            _move_up(Path(path), keep)
    _sync_folder(Path(path).parent)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """torch.save, but where the file cannot be written, its own OSError: torch hides that behind a RuntimeError."""
    failures: list[OSError] = []

    class Watched:
        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failures.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        torch.save(content, Watched())  # pyright: ignore[reportArgumentType]  # write and flush are all that it needs
    except RuntimeError:
        if failures:
            raise failures[0] from None
        raise


def _refuse_non_finite(weights: Mapping[str, Any], path: Path) -> None:
    """Judge the weights that go into the file, on whichever device they are."""
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise NonFiniteWeights(
                f"{path}: is not written, for the weights are not finite ({name}): the earlier file stays. The "
                "training has diverged: lower optim.lr, lengthen schedule.warmup_iterations, or set optim.clip_norm"
            )


def older(path: Path) -> list[Path]:
    """The files that `path` was before, newest first."""
    found = {file.stem.rpartition("_")[2]: file for file in path.parent.glob(f"{path.stem}_*{path.suffix}")}
    numbered = {int(number): file for number, file in found.items() if number.isdecimal()}
    return [numbered[number] for number in sorted(numbered)]


def _move_up(path: Path, keep: int) -> None:
    """Give the file that is about to be replaced its next name, as a further link: `path` is always there."""
    names = [path, *(path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, keep))]
    for source, target in reversed(list(itertools.pairwise(names))):
        if source == path and path.exists():
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a file system without links
                shutil.copyfile(path, target)
        elif source.exists():
            os.replace(source, target)
    for file in older(path)[max(keep - 1, 0) :]:
        file.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: missing, damaged, or no checkpoint.
    """
    content = read_weights_file(path)
    if content.get("format") != FORMAT or "model" not in content:
        raise UserError(f"{path}: not a checkpoint of this project: convert it with tools/convert_weights.py")
    return content


def without_training(content: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint for use, not for `--resume`: no optimiser, no second copy of the weights."""
    kept = {key: content["training"][key] for key in ("iteration", "metrics") if key in content.get("training", {})}
    return {**content, "training": kept}


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last; not every file system allows it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
