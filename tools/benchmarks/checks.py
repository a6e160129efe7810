"""Are two contestants' outputs equal? A ratio of times means nothing otherwise, and is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.ops import box_iou

from configs.errors import UserError
from tools.benchmarks.cases import Case, Inputs, make_inputs
from tools.benchmarks.contestants import Contestant, Detected, random_weights

BOX_TOLERANCE = 0.25
"""Pixels. float32 rounding through 101 layers moves a box of hundreds of pixels by some hundredths."""
SCORE_TOLERANCE = 2e-3
LOSS_TOLERANCE = 1e-3
"""Relative."""
EQUAL_SHARE = 0.99
"""Of the detections: a rounding may turn a decision of NMS at the threshold, and with it one or two boxes."""


def agreement(ours: Detected, theirs: Detected, box_tolerance: float, score_tolerance: float) -> float:
    """The share of all detections, of both sides, that the other side has too."""
    found = total = 0
    for (boxes1, scores1, labels1), (boxes2, scores2, labels2) in zip(ours, theirs, strict=True):
        total += len(scores1) + len(scores2)
        if not len(scores1) or not len(scores2):
            continue
        same = (boxes1[:, None] - boxes2[None]).abs().amax(-1) <= box_tolerance
        same &= ((scores1[:, None] - scores2[None]).abs() <= score_tolerance) & (labels1[:, None] == labels2[None])
        found += int(same.any(0).sum() + same.any(1).sum())
    return found / total if total else 1.0


def resemblance(ours: Detected, theirs: Detected) -> float:
    """The same for outputs of different precision: a box of the same class with an IoU of at least 0.7."""
    found = total = 0
    for (boxes1, _, labels1), (boxes2, _, labels2) in zip(ours, theirs, strict=True):
        total += len(labels1) + len(labels2)
        if len(labels1) and len(labels2):
            same = (box_iou(boxes1, boxes2) >= 0.7) & (labels1[:, None] == labels2[None])
            found += int(same.any(0).sum() + same.any(1).sum())
    return found / total if total else 1.0


def check_detections(name: str, reference: str, ours: Detected, theirs: Detected) -> float:
    """The share of equal detections.

    Raises:
        UserError: they are too few.
    """
    if not sum(len(scores) for _, scores, _ in theirs):
        raise UserError(f"{reference} detects nothing: there is nothing to compare {name} with")
    share = agreement(ours, theirs, BOX_TOLERANCE, SCORE_TOLERANCE)
    if share < EQUAL_SHARE:
        raise UserError(
            f"no ratio: of the detections of {name} and {reference} only {share:.1%} are equal (boxes within "
            f"{BOX_TOLERANCE} pixels, scores within {SCORE_TOLERANCE})"
        )
    return share


def check_training(
    case: Case, contestants: dict[str, Callable[..., Contestant]], reference: str, device: torch.device
) -> float:
    """The largest relative difference of losses from `reference`'s, over two steps: the second one's losses depend on
    the first one's gradients. On the small case, in float32, with every candidate in the losses.

    Raises:
        UserError: it is too large.
    """
    small = case.small()
    weights = random_weights(small)
    inputs = make_inputs(small, 2, device)
    steps = {}
    for name, make in contestants.items():
        contestant = make(small, weights, device, "none", True)
        steps[name] = [_values(contestant.train_step(inputs)) for _ in range(2)]
    worst = 0.0
    for name in contestants:
        for step, (mine, theirs) in enumerate(zip(steps[name], steps[reference], strict=True)):
            if mine.keys() != theirs.keys():
                raise UserError(f"no ratio: {name} has the losses {sorted(mine)}, {reference} {sorted(theirs)}")
            for loss, value in theirs.items():
                difference = abs(mine[loss] - value) / max(abs(value), 1e-3)
                worst = max(worst, difference)
                if not difference <= LOSS_TOLERANCE:
                    raise UserError(
                        f"no ratio: {loss} of step {step + 1} is {mine[loss]:.6g} with {name} and {value:.6g} with "
                        f"{reference}"
                    )
    return worst


def check_inference(
    case: Case, contestants: dict[str, Callable[..., Contestant]], reference: str, device: torch.device
) -> float:
    """The smallest share of equal detections, at the case's own size, in float32.

    Raises:
        UserError: it is too small.
    """
    weights = random_weights(case)
    inputs: Inputs = make_inputs(case, 1, device)
    found = {name: make(case, weights, device, "none", False).detect(inputs) for name, make in contestants.items()}
    return min(
        check_detections(name, reference, found[name], found[reference]) for name in contestants if name != reference
    )


def _values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}
