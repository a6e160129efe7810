"""Tests of a classifier: centre crop, 10 crops, fully-convolutional at several scales; averages over nets.

He et al. 2016, Sec. 3.4. Every view gives scores, (B, K) float32 that sum to 1, averaged after the softmax (Krizhevsky
et al. 2012, Sec. 4.1). B images, K classes; images are (B, 3, H, W) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.preprocess import Normalize
from backbones.staged import PooledNet
from backbones.vgg import VGG

VIEWS = ("center", "10crop", "multiscale")


def ten_crops(images: Tensor, side: int) -> Tensor:
    """The four corners and the centre, and the mirror image of each: (10, B, 3, side, side), same dtype.

    Order: top left, top right, bottom left, bottom right, centre; then their mirror images.

    Args:
        images: (B, C, H, W) with H and W at least `side`.
        side: of the crops, pixels.
    """
    height, width = images.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"ten_crops: {height}x{width} (H x W) is smaller than the crop of {side}")
    bottom, right = height - side, width - side
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    five = torch.stack([images[..., y : y + side, x : x + side] for y, x in corners])
    return torch.cat((five, five.flip(-1)))


def dense_logits(net: nn.Module, x: Tensor, crop_size: int) -> Tensor:
    """Logits of the net as a fully convolutional one, averaged over all positions, (B, K).

    The classifier slides over the last feature map with the window that it sees in a training crop, at every position
    (Simonyan & Zisserman 2015, Sec. 3.2: the fully connected layers become convolutions, and the map of class scores is
    averaged). A map smaller than the window is one window.

    Args:
        net: of this project, in eval mode. Of those whose classifier is neither linear on a global mean nor VGG's,
            the logits of the whole image are taken: they fit maps of any size to theirs.
        x: (B, 3, H, W) float, normalised; any H and W.
        crop_size: side of the training crop, pixels.
    """
    if not getattr(net, "pools_globally", True) and not isinstance(net, VGG):
        return net(x)
    if not hasattr(net, "fc"):
        return _dense_vgg(cast(VGG, net), x)
    pooled = cast(PooledNet, net)
    last = next(reversed(pooled.stage_strides))
    features = pooled.forward_stages(x, [last])[last]
    window = -(-crop_size // pooled.stage_strides[last])
    size = tuple(min(window, side) for side in features.shape[-2:])
    # The classifier is linear: the mean of its outputs is its output for the mean of the windows.
    return pooled.fc(F.avg_pool2d(features, size, stride=1).mean((2, 3)))


def _dense_vgg(net: VGG, x: Tensor) -> Tensor:
    """The same of a VGG net, whose first fully connected layer sees the whole map of a crop."""
    last = next(reversed(net.stage_strides))
    first = net.classifier[0]
    assert isinstance(first, nn.Linear)
    features = net.features[-1](net.forward_stages(x, [last])[last])
    side = round((first.in_features / features.shape[1]) ** 0.5)
    if min(features.shape[-2:]) < side:
        features = F.adaptive_avg_pool2d(features, side)
    for layer in net.classifier:
        if isinstance(layer, nn.Linear):
            kernel = side if layer is first else 1
            weight = layer.weight.view(layer.out_features, -1, kernel, kernel)
            features = F.conv2d(features, weight, layer.bias)
        else:
            features = layer(features)
    return features.mean((2, 3))


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)


@torch.no_grad()
def view_scores(net: nn.Module, normalize: Normalize, images: Sequence[Tensor], view: str, crop_size: int) -> Tensor:
    """The scores of one view, (B, K) float32.

    Args:
        net: in eval mode.
        normalize: the input that the net was trained with.
        images: one batch; of multiscale, one for each scale. center: crops; else whole images.
        view: one of `VIEWS`.
        crop_size: side of the crops, pixels.
    """
    if view == "center":
        return _softmax(net(normalize(images[0])))
    if view == "10crop":
        crops = ten_crops(images[0], crop_size)
        return _softmax(net(normalize(crops.flatten(0, 1)))).unflatten(0, crops.shape[:2]).mean(0)
    total = torch.zeros(())
    for scaled in images:
        x = normalize(scaled)
        total = total + _softmax(dense_logits(net, x, crop_size)) + _softmax(dense_logits(net, x.flip(-1), crop_size))
    return total / (2 * len(images))


def mean_scores(
    members: Sequence[tuple[nn.Module, Normalize]], images: Sequence[Tensor], view: str, crop_size: int
) -> Tensor:
    """The mean of the members' scores, (B, K) float32; arguments as for `view_scores`."""
    return torch.stack([view_scores(*member, images, view, crop_size) for member in members]).mean(0)


class ErrorCounter:
    """Counts on the device how often the label is not among the first 1 and the first 5 classes."""

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        """Images, top-1 errors, top-5 errors, sum of the losses: what processes add up."""

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Take in scores (B, K), probabilities, and labels (B,)."""
        wrong = scores.topk(min(5, scores.shape[1]), 1).indices != labels[:, None]
        loss = -scores.gather(1, labels[:, None]).clamp_min(1e-12).log().sum()
        counts = torch.stack((wrong[:, 0].sum(), wrong.all(1).sum()))
        self.sums += torch.cat((counts.new_tensor([len(labels)]).double(), counts.double(), loss.double()[None]))

    def result(self) -> dict[str, float]:
        """{"top1_error", "top5_error": fractions, "loss": mean, "images"}; waits for the device."""
        images, top1, top5, loss = self.sums.tolist()
        count = max(images, 1.0)
        return {"top1_error": top1 / count, "top5_error": top5 / count, "loss": loss / count, "images": int(images)}


@torch.no_grad()
def count_errors(
    members: Sequence[tuple[nn.Module, Normalize]],
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    view: str,
    crop_size: int,
    device: torch.device | str,
) -> ErrorCounter:
    """The errors of the members' averaged scores (an ensemble, He et al. 2016, Sec. 4.1; or a single net).

    Args:
        members: nets in eval mode on `device`, each with its own input.
        batches: (images, labels) on `device`; see `view_scores`.
        view, crop_size: see `view_scores`.
        device: where it runs.
    """
    counter = ErrorCounter(device)
    for images, labels in batches:
        counter.add(mean_scores(members, images, view, crop_size), labels)
    return counter
