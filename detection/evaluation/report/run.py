"""What a report shows one or two of."""

from __future__ import annotations

from dataclasses import dataclass

from detection.evaluation.data import Detections
from detection.evaluation.evaluate import Metrics


@dataclass(frozen=True)
class Run:
    """A detector's result on the set."""

    name: str
    detections: Detections
    metrics: Metrics
    """As from `evaluate`."""
