"""What runs on each RoI's features: conv5 (C4) or fully connected layers (VGG, FPN, DC5), then the two siblings.

Shapes: B images, R RoIs, C channels, S bins a side, K classes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones import fused
from backbones.batch_norm import NORMS, FrozenBatchNorm2d, conv_bn, conv_bn_relu, folded
from backbones.convolution import convolve
from backbones.resnet import BottleneckUnit
from backbones.staged import Stage, remove_stride
from configs.detection import BoxConfig


class Conv5Head(nn.Module):
    """conv5_x (any net's last stage) and the average pool in the place of VGG's fc layers (He et al. 2016, App. A).

    RoIAlign is linear and the same for all channels, so a 1x1 convolution may as well run before it, on the map, in
    place of behind it, on hundreds of overlapping RoIs. `before_pooling` and `after_pooling` do so with the two 1x1
    convolutions that read conv5's input: a fifth to a quarter of the head's arithmetic saved, equal up to rounding.
    Offsets are added after the pooling, which is not linear in a constant where an RoI leaves the map. Of a stride of 2
    the pooling computes the bins that are read, and no others. Never for RoIPool: a maximum is not linear.
    """

    def __init__(self, conv5: nn.Module, out_channels: int, pool_size: int) -> None:
        """Takes over the module `conv5`; with 7x7 features its stride of 2 becomes 1, so that it ends at 7x7 too."""
        super().__init__()
        self.conv5 = conv5
        self.out_channels = out_channels
        if pool_size <= 7:
            remove_stride(conv5)

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, out_channels)."""
        return _average(self.conv5(features))

    @property
    def strides(self) -> tuple[int, int]:
        """Strides of the two 1x1 convolutions of `before_pooling`, in bins."""
        unit, shortcut, _ = self._first_unit()
        return unit.conv1.stride[0], shortcut.stride[0]

    def can_split(self) -> bool:
        """Whether `before_pooling` and `after_pooling` compute the same as `forward` behind a RoIAlign.

        They do if conv5 begins with two 1x1 convolutions and their batch norms are constant.
        """
        if not isinstance(self.conv5, Stage):  # of a net of one's own
            return False
        unit = self.conv5[0]
        if not isinstance(unit, BottleneckUnit) or unit.plain or unit.downsample is None:
            return False
        constant = all(isinstance(bn, FrozenBatchNorm2d | nn.Identity) for bn in (unit.bn1, unit.downsample[1]))
        return constant and not self.conv5.frozen and not self.conv5.activation_checkpointing

    def _first_unit(self) -> tuple[BottleneckUnit, nn.Conv2d, nn.Module]:
        """conv5's first unit, and its shortcut's convolution and batch norm; where `can_split`."""
        assert isinstance(self.conv5, Stage)
        unit = self.conv5[0]
        assert isinstance(unit, BottleneckUnit)
        projection = unit.projection()
        assert projection is not None
        return unit, *projection

    def before_pooling(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, C, H, W) after the first 1x1 convolution and after the shortcut's, at stride 1, no offsets."""
        unit, conv, bn = self._first_unit()
        pairs = ((unit.conv1, unit.bn1), (conv, bn))
        inner, shortcut = (F.conv2d(feature, _scaled_weight(conv, bn)) for conv, bn in pairs)
        return inner, shortcut

    def after_pooling(self, inner: Tensor, shortcut: Tensor) -> Tensor:
        """The rest of conv5, and the average pool.

        Args:
            inner, shortcut: what was pooled from `before_pooling`'s maps, (R, C1, T1, T1) and (R, C2, T2, T2) with
                every `strides`-th of the S bins; where no gradient is wanted, they are overwritten.
        """
        assert isinstance(self.conv5, Stage)
        if (chain := fused.chain_for(self.conv5, inner, entered=True)) is not None:
            return cast(Tensor, _Mean.apply(fused.run(chain, inner, shortcut)))
        unit, conv, bn = self._first_unit()
        offset = _offset(unit.conv1, unit.bn1, inner)
        if inner.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out = inner.add_(offset).relu_()
        else:  # not in place: a CUDA graph (compilation.py) may not write to its inputs
            out = F.relu(inner + offset, inplace=True)
        out = conv_bn_relu(unit.conv2, unit.bn2, out)
        weight, bias, norm = folded(unit.conv3, unit.bn3, out)
        if norm is None and bias is not None and not torch.is_grad_enabled():
            bias = bias + _offset(conv, bn, bias)[:, 0, 0]
            out = convolve(unit.conv3, out, weight, bias, shortcut, relu=True, overwrite=True)
        else:
            out = conv_bn(unit.conv3, unit.bn3, out)
            out += shortcut
            out += _offset(conv, bn, out)
            out = F.relu(out, inplace=True)
        for following in list(self.conv5)[1:]:
            out = following(out)
        return _average(out)


def _average(x: Tensor) -> Tensor:
    """(R, C): the mean of maps (R, C, S, S)."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # `mean` takes twenty times as long there
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)
    return x.mean(dim=(2, 3))


class _Mean(torch.autograd.Function):
    """`_average` whose gradient is one number for all pixels of a map, not written out: the chain spreads it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean(dim=(2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: any
        pixels = ctx.shape[2] * ctx.shape[3]
        return (gradient / pixels)[:, :, None, None].expand(ctx.shape)


def _scaled_weight(conv: nn.Conv2d, bn: nn.Module) -> Tensor:
    """The convolution's weight with a constant batch norm's scale in it."""
    if isinstance(bn, nn.Identity):
        return conv.weight
    assert isinstance(bn, FrozenBatchNorm2d)
    scale, _ = bn.constants(conv.weight.dtype)
    return conv.weight * scale[:, None, None, None]


def _offset(conv: nn.Conv2d, bn: nn.Module, like: Tensor) -> Tensor:
    """(C, 1, 1): what such a pair adds, in the dtype of `like`."""
    offset = bn.constants(like.dtype)[1] if isinstance(bn, FrozenBatchNorm2d) else conv.bias
    assert offset is not None, "a folded batch norm left a bias"
    return offset[:, None, None]


class FcHead(nn.Module):
    """Fully connected layers fc6, fc7, ... with ReLU and dropout (Fast R-CNN with VGG-16; Lin et al. 2017 without
    dropout), after 3x3 convolutions where there are any (torchvision's V2 detectors: four, and one layer).

    Args:
        channels: C.
        config: pool_size S, and what the layers are.
    """

    def __init__(self, channels: int, config: BoxConfig) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_conv_norm_relu(channels, config.norm) for _ in range(config.num_convs)))
        self.fc_names = [f"fc{number}" for number in range(6, 6 + config.num_fcs)]
        inputs = channels * config.pool_size**2
        for name in self.fc_names:
            self.add_module(name, nn.Linear(inputs, config.fc_width))
            inputs = config.fc_width
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(config.dropout)
        self.out_channels = config.fc_width

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, width)."""
        for block in self.convs:
            conv, *norm = block.children()
            assert isinstance(conv, nn.Conv2d)
            features = conv_bn_relu(conv, norm[0] if norm else None, features)
        hidden = features.flatten(1)
        for layer in self.layers:
            hidden = self.dropout(self.relu(layer(hidden)))
        return hidden

    @property
    def layers(self) -> list[nn.Linear]:
        """The fully connected layers, in order."""
        return [cast(nn.Linear, self.get_submodule(name)) for name in self.fc_names]


def _conv_norm_relu(channels: int, norm: str) -> nn.Sequential:
    """A 3x3 convolution, He-initialised, and its batch norm (none: a bias)."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv) if norm == "none" else nn.Sequential(conv, NORMS[norm](channels))


class BoxPredictor(nn.Module):
    """The sibling layers: K + 1 class logits (0 is background), and 4 deltas for each class or for all.

    Initialised N(0, 0.01) and N(0, 0.001) (Fast R-CNN, Sec. 4). Parameter names and layout are torchvision's.
    """

    def __init__(self, in_features: int, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else 4 * (num_classes + 1))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) -> logits (R, K + 1) and deltas (R, 4 * (K + 1)) or (R, 4), float32."""
        return self.cls_score(features).float(), self.bbox_pred(features).float()
