"""Residual networks and their plain twins as one class over a table (He et al. 2016, Sec. 3.3, 4.1, 4.2).

A net is a row: stem, stages (units, width, stride), kind of unit, shortcut option. The ImageNet nets are the rows
below, the CIFAR nets those of `resnet_cifar`; a net of one's own is another row. Parameters bear torchvision's names
(conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc), so that its state dicts load.

Stages: conv1 is the stem (convolution, batch norm, ReLU), conv2, conv3, ... are layer1, layer2, ...; the stem's
pooling is the first thing in conv2. Shapes: x (B, 3, H, W) float, normalised; a stage's map is
(B, stage_channels[s], ~H / stage_strides[s], ~W / stage_strides[s]).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones import fused
from backbones.batch_norm import NORMS, TRAINED_BATCH_NORMS, conv_bn
from configs.common import PositiveInt, Section

Norm = Literal["batch", "frozen", "sync"]


class StemSpec(Section):
    """The first convolution, conv1 of the paper's Table 1."""

    kernel: PositiveInt = 7
    width: PositiveInt = 64
    stride: PositiveInt = 2
    pool: bool = True
    """A 3x3 max pooling with stride 2 after it."""


class StageSpec(Section):
    """A run of units of one width, the first of which strides."""

    units: PositiveInt
    width: PositiveInt
    """Channels of the 3x3 convolutions; bottleneck units put out 4 times as many."""
    stride: PositiveInt


class ResNetSpec(Section):
    """A row of the table of nets."""

    stem: StemSpec = StemSpec()
    stages: tuple[StageSpec, ...]
    unit: Literal["basic", "bottleneck"]
    """3x3, 3x3; or 1x1, 3x3, 1x1 with a 4 times wider output."""
    shortcut: Literal["A", "B", "C"] = "B"
    """A: identity, new channels zero. B: 1x1 projection where dimensions change. C: projection in every unit."""
    plain: bool = False
    """The same layers without shortcuts."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in the first 1x1 (the paper, MSRA's weights) or in the 3x3 (torchvision's weights)."""
    num_classes: PositiveInt = 1000

    @model_validator(mode="after")
    def _has_stages(self) -> ResNetSpec:
        if not self.stages:
            raise ValueError("give at least one stage")
        return self


def _row(unit: str, *units: int) -> ResNetSpec:
    widths_and_strides = ((64, 1), (128, 2), (256, 2), (512, 2))
    return ResNetSpec(
        unit=unit,
        stages=[
            StageSpec(units=n, width=width, stride=stride)
            for n, (width, stride) in zip(units, widths_and_strides, strict=True)
        ],
    )


RESNETS: dict[str, ResNetSpec] = {
    "resnet18": _row("basic", 2, 2, 2, 2),
    "resnet34": _row("basic", 3, 4, 6, 3),
    "resnet50": _row("bottleneck", 3, 4, 6, 3),
    "resnet101": _row("bottleneck", 3, 4, 23, 3),
    "resnet152": _row("bottleneck", 3, 8, 36, 3),
}
"""He et al. 2016, Table 1."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def pad_shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A: every stride-th position of x (B, C, H, W), with zero channels around up to `channels`.

    The paper does not say where the zeros stand. Half before and half after is what the public CIFAR checkpoints were
    trained with; any other place is the same net with its channels renumbered.
    """
    grown = channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, grown // 2, grown - grown // 2))


class Unit(nn.Module, ABC):
    """Residual unit y = relu(F(x) + shortcut(x)) (He et al. 2016, eqs. 1, 2), or a plain one y = relu(F(x))."""

    expansion: int

    def __init__(self, inputs: int, width: int, stride: int, spec: ResNetSpec, norm: Norm) -> None:
        super().__init__()
        self.channels = width * self.expansion
        self.stride = stride
        self.plain = spec.plain
        self._add_layers(inputs, width, stride, spec, norm)
        changes = stride != 1 or inputs != self.channels
        self.pads = changes and spec.shortcut == "A"
        self.downsample: nn.Sequential | None = None
        if not spec.plain and (spec.shortcut == "C" or (changes and spec.shortcut == "B")):
            self.downsample = nn.Sequential(_conv(inputs, self.channels, 1, stride), NORMS[norm](self.channels))

    @abstractmethod
    def _add_layers(self, inputs: int, width: int, stride: int, spec: ResNetSpec, norm: Norm) -> None:
        """Convolutions and batch norms under torchvision's names."""

    @abstractmethod
    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """The convolutions of F with their batch norms, in order; between them are ReLUs."""

    def projection(self) -> tuple[nn.Conv2d, nn.Module] | None:
        """The shortcut's convolution with its batch norm; None for an identity."""
        return None if self.downsample is None else (self.downsample[0], self.downsample[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))."""
        *inner, last = self.pairs()
        out = x
        for conv, bn in inner:
            out = F.relu(conv_bn(conv, bn, out), inplace=True)
        out = conv_bn(*last, out)
        if not self.plain:
            projection = self.projection()
            if projection is not None:
                x = conv_bn(*projection, x)
            elif self.pads:
                x = pad_shortcut(x, self.channels, self.stride)
            out += x
        return F.relu(out, inplace=True)


class BasicUnit(Unit):
    """3x3, 3x3 (He et al. 2016, Fig. 5 left)."""

    expansion = 1

    def _add_layers(self, inputs: int, width: int, stride: int, spec: ResNetSpec, norm: Norm) -> None:
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = NORMS[norm](width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = NORMS[norm](width)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """3x3, 3x3."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class BottleneckUnit(Unit):
    """1x1, 3x3, 1x1 (He et al. 2016, Fig. 5 right)."""

    expansion = 4

    def _add_layers(self, inputs: int, width: int, stride: int, spec: ResNetSpec, norm: Norm) -> None:
        stride_1x1, stride_3x3 = (stride, 1) if spec.stride_in_1x1 else (1, stride)
        self.conv1 = _conv(inputs, width, 1, stride_1x1)
        self.bn1 = NORMS[norm](width)
        self.conv2 = _conv(width, width, 3, stride_3x3)
        self.bn2 = NORMS[norm](width)
        self.conv3 = _conv(width, self.channels, 1)
        self.bn3 = NORMS[norm](self.channels)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """1x1, 3x3, 1x1."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


UNITS: dict[str, type[Unit]] = {"basic": BasicUnit, "bottleneck": BottleneckUnit}


@contextlib.contextmanager
def _statistics_kept(unit: nn.Module) -> Iterator[None]:
    """Inside, a forward pass in training mode leaves the running statistics as they are."""
    norms = [module for module in unit.modules() if isinstance(module, TRAINED_BATCH_NORMS)]
    kept = [(bn, bn.momentum, bn.num_batches_tracked) for bn in norms]
    for bn in norms:
        bn.momentum = 0.0
        bn.num_batches_tracked = torch.zeros_like(bn.num_batches_tracked)
    try:
        yield
    finally:
        for bn, momentum, tracked in kept:
            bn.momentum = momentum
            bn.num_batches_tracked = tracked


class Stage(nn.Sequential):
    """Units in a row. Once frozen it stays frozen wherever it is moved to: no gradient, batch norm in eval mode."""

    frozen = False
    activation_checkpointing = False
    chain: fused.Chain | None = None
    """The units as one operator, with their constants; kept by `fused.chain_for`."""

    def freeze(self) -> None:
        """No parameter trains from here on, and `train()` leaves batch norm in eval mode."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Stage:
        """As every module's, but a frozen stage stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """The last unit's output."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if not self._checkpoints() and (chain := fused.chain_for(self, x)) is not None:
                return fused.run(chain, x)
            for unit in self:
                x = self._checkpointed(unit, x) if self._checkpoints() else unit(x)
        return x

    def _checkpoints(self) -> bool:
        return self.activation_checkpointing and self.training and torch.is_grad_enabled()

    @staticmethod
    def _checkpointed(unit: nn.Module, x: Tensor) -> Tensor:
        # The backward pass runs the unit a second time: its batch statistics must not be counted twice.
        return checkpoint(
            unit, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(unit))
        )


class ResNet(nn.Module):
    """A residual or plain net of a table row: a classifier, and a backbone with feature taps conv1, conv2, ...

    Args:
        spec: the row.
        norm: batch norm that is trained ("batch"), constant ("frozen"), or trained across processes ("sync").
        dropout: probability before the classifier, in training.
        activation_checkpointing: keep only the units' inputs for the backward pass and compute the rest again: about a
            third more time for a fraction of the memory (1202 layers at batch 128).
    """

    def __init__(
        self,
        spec: ResNetSpec,
        *,
        norm: Norm = "batch",
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.frozen_stages = 0
        stem = spec.stem
        self.conv1 = _conv(3, stem.width, stem.kernel, stem.stride)
        self.bn1 = NORMS[norm](stem.width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem.pool else nn.Identity()
        self.stage_channels: dict[str, int] = {"conv1": stem.width}
        self.stage_strides: dict[str, int] = {"conv1": stem.stride}
        channels, stride = stem.width, stem.stride * (2 if stem.pool else 1)
        for number, stage_spec in enumerate(spec.stages, start=1):
            stage = self._build_stage(channels, stage_spec, norm)
            stage.activation_checkpointing = activation_checkpointing
            self.add_module(f"layer{number}", stage)
            channels, stride = stage[-1].channels, stride * stage_spec.stride
            self.stage_channels[f"conv{number + 1}"] = channels
            self.stage_strides[f"conv{number + 1}"] = stride
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(channels, spec.num_classes)
        initialise(self)

    def _build_stage(self, inputs: int, stage: StageSpec, norm: Norm) -> Stage:
        unit = UNITS[self.spec.unit]
        units = [unit(inputs, stage.width, stage.stride, self.spec, norm)]
        units += [unit(units[0].channels, stage.width, 1, self.spec, norm) for _ in range(stage.units - 1)]
        return Stage(*units)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of x (B, 3, H, W), any H and W: global average pooling before the classifier."""
        last = next(reversed(self.stage_channels))
        x = self.forward_stages(x, [last])[last]
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed."""
        wanted = check_stages(names, self.stage_channels)
        maps: dict[str, Tensor] = {}
        for name in self.stage_channels:
            x = self._stem(x) if name == "conv1" else self._stage(name)(self.maxpool(x) if name == "conv2" else x)
            if name in wanted:
                maps[name] = x
            if len(maps) == len(wanted):
                break
        return maps

    def _stem(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_stages):
            return F.relu(conv_bn(self.conv1, self.bn1, x), inplace=True)

    def _stage(self, name: str) -> Stage:
        stage = getattr(self, f"layer{int(name.removeprefix('conv')) - 1}", None)
        if stage is None:
            raise ValueError(f"{name} was taken out of this net by pop_stage")
        return stage

    def freeze_stages(self, count: int) -> None:
        """conv1..conv{count} train no more: no gradients, batch norm in eval mode, whatever `train()` says."""
        for name in list(self.stage_channels)[:count]:
            if name == "conv1":
                self.frozen_stages = count
                self.conv1.requires_grad_(False)
                self.bn1.requires_grad_(False).eval()
            else:
                self._stage(name).freeze()

    def train(self, mode: bool = True) -> ResNet:
        """As every module's, but frozen stages stay in eval mode."""
        super().train(mode)
        if self.frozen_stages:
            self.bn1.eval()
        return self

    def pop_stage(self, name: str) -> Stage:
        """Takes a stage (conv2 or later) out of the net and returns it: conv5 becomes the C4 head."""
        stage = self._stage(name)
        delattr(self, f"layer{int(name.removeprefix('conv')) - 1}")
        return stage

    def pop_classifier(self) -> nn.Linear:
        """Takes the classifier out of the net and returns it."""
        classifier = self.fc
        del self.fc
        return classifier


def check_stages(names: Iterable[str], known: dict[str, Any]) -> set[str]:
    """The names as a set, all of them keys of `known`."""
    wanted = set(names)
    if not wanted or not wanted.issubset(known):  # torch 2.11 cannot compile `<=` of a set
        raise ValueError(f"stages {sorted(wanted)}: name some of {', '.join(known)}")
    return wanted


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """He initialisation (He et al. 2015, "Delving Deep into Rectifiers"): normal with variance 2 / fan.

    The fan is that of the outputs for convolutions and that of the inputs for fully connected layers; the last layer,
    which no ReLU follows, has the variance 1 / fan. Biases are 0; batch norm starts as the identity.
    """
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is linear[-1] else "relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
