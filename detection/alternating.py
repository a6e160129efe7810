"""Four-step alternating training, as the papers trained (Faster R-CNN, Sec. 3.2; He et al. 2016, App. A).

The papers' four steps are called phases here, for a step is one update.

| phase | trains | body starts from | own layers start from | proposals |
|---|---|---|---|---|
| 1 | body, RPN | the pretrained weights | fresh | - |
| 2 | body, detector | the pretrained weights again | fresh; conv5 or fc6 and fc7 pretrained | phase 1's network |
| 3 | RPN | phase 2's, fixed | phase 1's | - |
| 4 | detector | phase 2's, fixed | phase 2's | phase 3's network, which shares the body |

Proposals are computed as they are needed, of the very batch that trains, so augmentation needs no care and nothing is
stored. Phase 1's network is kept beside the detector for as long as phase 2 lasts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.detection import TestConfig
from datasets.batch import Batch
from detection.model import Detector
from detection.postprocess import BatchDetections
from detection.rpn import Proposals
from detection.sampling import Iteration

BODY, RPN, DETECTOR = "backbone", "rpn", "roi_heads"
"""The parts of a detector that train or stay fixed as a whole; all but the body and the RPN belongs to the detector."""


@dataclass(frozen=True)
class Phase:
    """A part of a training, with an optimiser and a schedule of its own."""

    number: int
    """From 1."""
    parts: tuple[str, ...]
    """What trains."""
    description: str
    is_final: bool = False
    """Afterwards the detector is whole."""

    @property
    def detects(self) -> bool:
        """Whether the detector on the RoIs trains, so that there is something to validate."""
        return DETECTOR in self.parts


PHASES = (
    Phase(1, (BODY, RPN), "the RPN and the body, which starts from its first weights"),
    Phase(2, (BODY, DETECTOR), "the detector on phase 1's proposals, and the body from its first weights again"),
    Phase(3, (RPN,), "the RPN's own layers on the body of phase 2, which stays fixed"),
    Phase(4, (DETECTOR,), "the detector's own layers; the shared layers stay fixed", is_final=True),
)


class Proposer(nn.Module):
    """A network that only proposes: a copy of a detector's body and RPN, fixed."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        detector.zero_grad(set_to_none=True)  # gradients would be copied too
        self.normalize = copy.deepcopy(detector.normalize)
        self.backbone = copy.deepcopy(detector.backbone)
        self.rpn = copy.deepcopy(detector.rpn)
        for module in self.modules():  # compiled: a function of the original, which a copy would call too
            vars(module).pop("forward", None)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, batch: Batch, *, training: bool) -> Proposals:
        """The batch's proposals, in training's or the test's number."""
        features = self.backbone(self.normalize(batch.images, batch.image_sizes))
        return self.rpn(features, batch.image_sizes, training=training)[0]


class PhaseModel(nn.Module):
    """The detector as one phase sees it: the phase's losses, and detections on the phase's proposals."""

    def __init__(self, detector: Detector, phase: Phase, proposer: Proposer | None) -> None:
        """
        Args:
            detector: shared with the other phases.
            phase: one of `PHASES`.
            proposer: whose proposals the detector takes; None: its own RPN's.
        """
        super().__init__()
        self.detector = detector
        self.phase = phase
        self.proposer = proposer

    @property
    def class_names(self) -> list[str]:
        return self.detector.class_names

    def train(self, mode: bool = True) -> PhaseModel:
        """As every module's, but what is fixed stays in eval mode: its batch norm must not move."""
        super().train(mode)
        for name, part in self.detector.named_children():
            if part_of(name) not in self.phase.parts:
                part.eval()
        if self.proposer is not None:
            self.proposer.eval()
        return self

    def forward(
        self, batch: Batch, *, seed: int | None = None, iteration: Iteration | None = None
    ) -> dict[str, Tensor] | BatchDetections:
        """Two losses where `seed` and `iteration` are given, detections otherwise; see `Detector.forward`."""
        if iteration is None or seed is None:
            return self.detect(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and BODY in self.phase.parts):
            features = self.detector.features(batch)
        if RPN in self.phase.parts:
            output = self.detector.rpn.predict(features)
            return self.detector.rpn_losses(output, batch, seed=seed, iteration=iteration)
        if self.proposer is not None:
            proposals = self.proposer(batch, training=True)
        else:
            with torch.no_grad():
                proposals, _ = self.detector.rpn(features, batch.image_sizes, training=True)
        return self.detector.roi_losses(features, proposals, batch, seed=seed, iteration=iteration)

    def detect(self, batch: Batch, *, test: TestConfig | None = None) -> BatchDetections:
        """Detections on the phase's proposals; see `Detector.detect`."""
        proposals = None if self.proposer is None else self.proposer(batch, training=False)
        return self.detector.detect(batch, proposals, test=test)


class Alternating:
    """The course of the four phases over one detector: what starts from where, and what is kept for it meanwhile."""

    def __init__(self, detector: Detector) -> None:
        """
        Args:
            detector: with its first weights, or those that `load_state_dict` will go on from.
        """
        self.detector = detector
        self.first_body: dict[str, Tensor] | None = None
        """In phase 1: the body's first weights, which phase 2 starts from; on the CPU."""
        self.proposer: Proposer | None = None
        """In phase 2: phase 1's network."""
        self._trainable = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}

    def begin(self, phase: Phase) -> None:
        """Put the weights in place that a phase starts from; for a phase that is resumed `load_state_dict` does it."""
        body = self.detector.backbone
        if phase.number == 1:
            self.first_body = {name: value.to("cpu", copy=True) for name, value in body.state_dict().items()}
        elif phase.number == 2:
            self.proposer = Proposer(self.detector)
            assert self.first_body is not None, "phase 1 kept it"
            body.load_state_dict(self.first_body)
            self.first_body = None
        else:
            self.proposer = None

    def model(self, phase: Phase) -> PhaseModel:
        """What trains in a phase, in training mode; of the detector's parameters only those train that should."""
        for name, parameter in self.detector.named_parameters():
            parameter.requires_grad_(name in self._trainable and part_of(name) in phase.parts)
        return PhaseModel(self.detector, phase, self.proposer).train()

    def state_dict(self) -> dict[str, Any]:
        """What is kept beside the detector's own weights."""
        return {
            "first_body": self.first_body,
            "proposer": None if self.proposer is None else self.proposer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the phase that the state was saved in."""
        self.first_body = state["first_body"]
        self.proposer = None
        if state["proposer"] is not None:
            self.proposer = Proposer(self.detector)
            self.proposer.load_state_dict(state["proposer"])


def part_of(name: str) -> str:
    """The part that a parameter or a child module of a detector belongs to."""
    first = name.partition(".")[0]
    return first if first in (BODY, RPN) else DETECTOR
