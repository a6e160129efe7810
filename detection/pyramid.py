"""The feature pyramid (Lin et al. 2017, Sec. 3): torchvision's parts and parameter names, and a forward pass that keeps
16 bits under autocast and channels_last on every device.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbones.batch_norm import conv_bn


class EverySecondPixel(LastLevelMaxPool):
    """P6: every second pixel of P5 (Lin et al. 2017, Sec. 4.1)."""

    def forward(self, x: list[Tensor], y: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """P2..P5 -> P2..P6, and their names."""
        if not torch.compiler.is_exporting():
            return super().forward(x, y, names)
        # The trace of a pool with a stride of 2 would hold for sizes of one parity only.
        p6 = x[-1]
        for axis in (2, 3):
            p6 = p6.index_select(axis, torch.arange(0, p6.shape[axis], 2, device=p6.device))
        return [*x, p6], [*names, "pool"]


class Pyramid(FeaturePyramidNetwork):
    """Conv2..conv5 -> P2..P6."""

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (B, C_l, H_l, W_l), finest first, -> maps (B, C, H_l, W_l) and P6; named as they came, and `pool`."""
        names, maps = list(x), list(x.values())
        inner = [_convolve(block, level) for block, level in zip(self.inner_blocks, maps, strict=True)]
        for k in reversed(range(len(inner) - 1)):
            inner[k] = inner[k] + _upsample(inner[k + 1], inner[k].shape[-2:])
        results = [_convolve(block, level) for block, level in zip(self.layer_blocks, inner, strict=True)]
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=True))


def _convolve(block: nn.Module, x: Tensor) -> Tensor:
    """A block: a convolution, and its norm where it has one."""
    assert isinstance(block, nn.Sequential)
    conv, *norm = block
    assert isinstance(conv, nn.Conv2d)
    return conv_bn(conv, norm[0] if norm else None, x)


def _upsample(x: Tensor, size: torch.Size) -> Tensor:
    """The nearest pixels, in the dtype of x: autocast would make float32 of them, and of the sum with what is below."""
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
        return F.interpolate(x, size=tuple(size), mode="nearest")
