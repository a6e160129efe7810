"""Checkpoints: written whole or not at all, readable without running code from the file.

A checkpoint is a dictionary `{"format": 1, "kind": "detector" or "classifier", "config": {...}, "class_names": [...],
"preprocessing": {...}, "model": state dict of what evaluates (the EMA where there is one), "training": {...}}`.
`training` is what `--resume` needs: iteration, optimiser, the raw weights beside an EMA, the best metric. best.pt does
without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from backbones.weights import read_weights_file
from configs.errors import UserError
from configs.files import replacing

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` holds either the old file or the whole new one, also after a power cut.

    Args:
        path: where to.
        content: tensors and plain values in dictionaries and lists.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(Path(path).parent)


def load_checkpoint(path: Path, *, kind: str | None = None) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Args:
        path: the file.
        kind: "detector" or "classifier": what it must be.

    Raises:
        UserError: missing, damaged, or no checkpoint of this kind.
    """
    content = read_weights_file(path)
    if content.get("format") != FORMAT or "model" not in content:
        raise UserError(f"{path}: not a checkpoint of this project: convert it with tools/convert_weights.py")
    if kind is not None and content.get("kind") != kind:
        raise UserError(f"{path}: holds a {content.get('kind')}, not a {kind}")
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
