"""Masked losses over fixed-size samples, normalised by counts over all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from backbones.kernels import kernels_for


def mean_count(valid: Tensor) -> Tensor:
    """The number of true values, averaged over all processes, at least 1; a scalar float32 tensor.

    DistributedDataParallel averages gradients over processes: a sum of losses divided by this average is the sum
    over all processes divided by the count over all processes. Without gradients (validation) the count is this
    process's own: processes may have different numbers of batches, and the others would wait for ever.
    """
    count = valid.sum(dtype=torch.float32)
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1.0)


def objectness_loss(logits: Tensor, positive: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Binary cross-entropy of sampled anchors: logits (B, S) float32, positive and valid (B, S) bool; a scalar."""
    if kernels := kernels_for(logits, "detection.triton_losses"):
        return kernels.loss(kernels.objectness, logits, positive, valid, count)
    losses = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return torch.where(valid, losses, 0.0).sum() / count


def classification_loss(logits: Tensor, labels: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy of sampled RoIs: logits (R, K + 1) float32, labels (R,) int64, valid (R,) bool; a scalar."""
    if kernels := kernels_for(logits, "detection.triton_losses"):
        return kernels.loss(kernels.classification, logits, labels, valid, count)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(valid, losses, 0.0).sum() / count


def box_loss(deltas: Tensor, targets: Tensor, positive: Tensor, count: Tensor, beta: float) -> Tensor:
    """Smooth L1 of the positives: deltas and targets (..., 4) float32, positive (...) bool; a scalar.

    `targets` must be finite everywhere. `beta` is where the loss turns linear; 0 gives plain L1. Divided by the count
    of the whole sample, negatives too (Fast R-CNN's convention, and torchvision's).
    """
    if kernels := kernels_for(deltas, "detection.triton_losses"):
        return kernels.loss(kernels.box, deltas, targets, positive, count, beta)
    losses = F.smooth_l1_loss(deltas, targets, beta=beta, reduction="none").sum(-1)
    return torch.where(positive, losses, 0.0).sum() / count
