"""Non-maximum suppression of a whole batch as one operator with an output of fixed size.

torchvision's `nms` returns as many indices as survive: on a GPU that is a wait of the host for the device. This one
returns a fixed number, padded with -1, and on CUDA is a Triton kernel that nothing waits for (without Triton, and on
the CPU, torchvision's `nms` does the work inside).
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from backbones.kernels import kernels_for


@torch.library.custom_op("detection::nms", mutates_args=())
def nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float, max_output: int,
    is_sorted: bool = False,
) -> Tensor:  # fmt: skip
    """Indices (B, max_output) int64 of the boxes that survive, by descending score; -1 after the last.

    A box falls if a box of higher score, of its image and group, that survives overlaps it by more than
    `iou_threshold`. Only the order of the first `max_output` survivors is computed.

    Args:
        boxes: (B, N, 4) float32.
        scores: (B, N) float32.
        valid: (B, N) bool; others do not take part.
        groups: (B, N) int64: classes or levels that do not suppress each other.
        iou_threshold: in [0, 1].
        max_output: at most so many survivors an image.
        is_sorted: the scores descend already; saves the sort on CUDA.
    """
    if kernels := kernels_for(boxes, "detection.triton_kernels"):
        return kernels.nms(boxes, scores, valid, groups, iou_threshold, max_output, is_sorted)
    output = torch.full((len(boxes), max_output), -1, dtype=torch.int64, device=boxes.device)
    for image in range(len(boxes)):
        candidates = valid[image].nonzero().squeeze(1)
        order = candidates[scores[image, candidates].argsort(descending=True, stable=True)]
        kept = _first_survivors(boxes[image, order], groups[image, order], iou_threshold, max_output)
        output[image, : len(kept)] = order[kept]
    return output


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float, max_output: int,
      is_sorted: bool = False) -> Tensor:  # fmt: skip
    return boxes.new_empty((boxes.shape[0], max_output), dtype=torch.int64)


def _first_survivors(boxes: Tensor, groups: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Positions (at most max_output,) of the survivors among boxes (N, 4) that are sorted by descending score.

    Whether a box survives depends only on boxes before it, so a beginning that holds enough survivors is enough.
    """
    part = min(len(boxes), 3 * max_output)
    while True:
        kept = _survivors(boxes[:part], groups[:part], iou_threshold)
        if len(kept) >= max_output or part == len(boxes):
            return kept[:max_output]
        part = len(boxes)


def _survivors(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Ascending positions of all survivors; each group on its own, at exact coordinates (no offsets are added)."""
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32, device=boxes.device)
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        kept.append(members[torchvision.ops.nms(boxes[members], ranks[members], iou_threshold)])
    return torch.cat(kept).sort().values if kept else torch.empty(0, dtype=torch.int64, device=boxes.device)
