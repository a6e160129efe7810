"""The built-in default set (placeholder until the drawing is in)."""

from __future__ import annotations

from pathlib import Path


def generate(image_set: str, size: int = 0) -> tuple[Path, str]:
    """(root, image set's name) of the generated set."""
    raise NotImplementedError
