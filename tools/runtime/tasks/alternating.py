"""One of the four phases of alternating training (`detection.alternating`), each with an optimiser and a schedule."""

from __future__ import annotations

from typing import Any

import torch

from configs.detection import DetectionConfig
from datasets.detection import DetectionDataset
from detection.alternating import Alternating, Phase
from tools.runtime.tasks.detection import DetectionTask


class PhaseTask(DetectionTask):
    """A phase over a detector. The detector of phase 2 is validated but never the best: it is not for use alone."""

    def __init__(
        self,
        config: DetectionConfig,
        alternating: Alternating,
        phase: Phase,
        train_set: DetectionDataset,
        val_set: DetectionDataset | None,
        device: torch.device,
        *,
        start: int,
    ) -> None:
        """
        Args:
            config: the whole recipe; the phase's own part is taken from it.
            alternating: the course of the phases; the weights that the phase starts from are in place.
            phase: one of `detection.alternating.PHASES`.
            train_set: with augmentation.
            val_set: without.
            device: where it trains.
            start: updates done in earlier phases.
        """
        learner = alternating.model(phase)
        of_phase = config_of_phase(config, phase)
        super().__init__(of_phase, alternating.detector, train_set, val_set, device, learner=learner, start=start)
        self.whole, self.alternating = config, alternating
        self.validates = self.validates and phase.detects
        self.is_final = phase.is_final

    def checkpoint(self) -> dict[str, Any]:
        """A detector's, with what is kept beside it."""
        kept = {"alternating": self.alternating.state_dict()}
        return {**super().checkpoint(), "config": self.whole.model_dump(mode="json"), "training": kept}


def config_of_phase(config: DetectionConfig, phase: Phase) -> DetectionConfig:
    """The config as it holds in a phase: with the batch size, rate and schedule that the phase itself names."""
    if config.train.alternating is None:
        return config
    own = config.train.alternating.detector if phase.detects else config.train.alternating.rpn
    optim = {"lr": own.lr, "reference_batch_size": own.reference_batch_size}
    return config.model_copy(
        update={
            "optim": config.optim.model_copy(update={name: value for name, value in optim.items() if value}),
            "train": config.train.model_copy(update={"batch_size": own.batch_size or config.train.batch_size}),
            "schedule": own.schedule or config.schedule,
        }
    )
