"""Are two contestants' outputs equal? A ratio of times means nothing otherwise, and is refused."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torchvision.ops import box_iou

from configs.errors import UserError
from tools.benchmarks.cases import Case, make_inputs
from tools.benchmarks.contestants import Detected, Makers, random_weights

BOX_TOLERANCE = 0.25
"""Pixels. float32 rounding through 101 layers moves a box of hundreds of pixels by some hundredths."""
SCORE_TOLERANCE = 2e-3
LOSS_TOLERANCE = 1e-3
"""Relative."""
LOW_PRECISION_MARGIN = 0.05
"""In bf16 a contestant may be so much further off the reference's float32 than the reference in bf16 is: of the share
of resembling detections, and of a loss, relative. Rounding turns the order of boxes of nearly equal scores, in one case
a few and in another most of them, so no fixed bound would do."""
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
    case: Case, contestants: Makers, reference: str, device: torch.device, amp: str = "none"
) -> dict[str, float]:
    """The largest relative differences of losses from `reference`'s, with every candidate in the losses.

    In float32 two steps on a small image (the second one's losses depend on the first one's gradients), then one at the
    case's own size. With `amp`, too, what precision does to the losses of the small image, measured against the
    reference's in float32: nobody may be further off than the reference itself is.

    Raises:
        UserError: a difference is too large.
    """
    weights = random_weights(case)
    exact = _losses(case.small(), weights, contestants, device, steps=2, images=2)
    full = _losses(case.full(), weights, contestants, device, steps=1, images=1)
    report = {
        "largest_loss_difference": _check_losses(exact, exact[reference], LOSS_TOLERANCE, reference),
        "largest_loss_difference_at_full_size": _check_losses(full, full[reference], LOSS_TOLERANCE, reference),
    }
    if amp != "none":
        low = _losses(case.small(), weights, contestants, device, steps=1, images=2, amp=amp)
        own = _check_losses({reference: low.pop(reference)}, exact[reference], float("inf"), reference)
        whose = f"{reference} in float32 (its own in {amp}: {own:.1%} off)"
        tolerance = own + LOW_PRECISION_MARGIN
        report[f"largest_loss_difference_in_{amp}"] = _check_losses(low, exact[reference], tolerance, whose)
        report[f"largest_loss_difference_of_{reference}_in_{amp}"] = own
    return report


def _losses(
    case: Case, weights: dict[str, torch.Tensor], contestants: Makers, device: torch.device, *, steps: int,
    images: int, amp: str = "none",
) -> dict[str, list[dict[str, float]]]:  # fmt: skip
    """contestant -> the losses of each step."""
    inputs = make_inputs(case, images, device)
    found = {}
    for name, make in contestants.items():
        contestant = make(case, weights, device, amp, True)
        found[name] = [_values(contestant.train_step(inputs)) for _ in range(steps)]
    return found


def _check_losses(
    losses: dict[str, list[dict[str, float]]], expected: list[dict[str, float]], tolerance: float, whose: str
) -> float:
    """The largest relative difference of losses from the expected ones; refuses what is over the tolerance."""
    worst = 0.0
    for name, steps in losses.items():
        for number, (mine, theirs) in enumerate(zip(steps, expected[: len(steps)], strict=True), start=1):
            if mine.keys() != theirs.keys():
                raise UserError(f"no ratio: {name} has the losses {sorted(mine)}, {whose} {sorted(theirs)}")
            for loss, value in theirs.items():
                difference = abs(mine[loss] - value) / max(abs(value), 1e-3)
                worst = max(worst, difference)
                if not difference <= tolerance:
                    mine_is = f"{loss} of step {number} is {mine[loss]:.6g} with {name}"
                    raise UserError(f"no ratio: {mine_is} and {value:.6g} with {whose}")
    return worst


def check_inference(
    case: Case, contestants: Makers, reference: str, device: torch.device, amp: str = "none"
) -> dict[str, float]:
    """The smallest share of equal detections, at the case's own size.

    In float32 all are compared with `reference`. With `amp`, too, all in that precision with the reference's float32:
    rounding turns the order of boxes with nearly equal scores, more or less so by case, so the measure is what the same
    precision does to the reference itself. Nobody may be further off than that.

    Raises:
        UserError: a share is too small.
    """
    weights, inputs = random_weights(case), make_inputs(case, 1, device)

    def detect(names: Iterable[str], amp: str) -> dict[str, Detected]:
        return {name: contestants[name](case, weights, device, amp, False).detect(inputs) for name in names}

    exact = detect(contestants, "none")
    others = [name for name in contestants if name != reference]
    report = {
        "equal_detections": min(check_detections(name, reference, exact[name], exact[reference]) for name in others)
    }
    if amp != "none":
        low = {name: resemblance(found, exact[reference]) for name, found in detect(contestants, amp).items()}
        for name in others:
            if low[name] < low[reference] - LOW_PRECISION_MARGIN:
                raise UserError(
                    f"no ratio: of the detections of {name} in {amp} {low[name]:.1%} resemble those of {reference} in "
                    f"float32, of {reference}'s own in {amp} {low[reference]:.1%}"
                )
        report[f"resembling_detections_in_{amp}"] = min(low[name] for name in others)
        report[f"resembling_detections_of_{reference}_in_{amp}"] = low[reference]
    return report


def _values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}
