"""What a detector is. The names below are imported at their first use: the evaluators need no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.checkpoint import load_detector
    from detection.model import Detector, build_detector
    from detection.prediction import ImageDetections
    from detection.predictor import Predictor

__all__ = ["Detector", "ImageDetections", "Predictor", "build_detector", "load_detector"]

_MODULES = {
    "Detector": "detection.model",
    "ImageDetections": "detection.prediction",
    "Predictor": "detection.predictor",
    "build_detector": "detection.model",
    "load_detector": "detection.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
