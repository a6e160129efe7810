"""Residual networks and their plain twins as one class over a table (He et al. 2016, Sec. 3.3, 4.1, 4.2).

The rows of the table are in `resnet_spec` and `resnet_cifar`. Parameters bear torchvision's names (conv1, bn1,
layer1.0.conv1, layer1.0.downsample.0, fc), so that its state dicts load.

Stages: conv1 is the stem (convolution, batch norm, ReLU), conv2, conv3, ... are layer1, layer2, ...; the stem's
pooling is the first thing in conv2. Shapes: x (B, 3, H, W) float, normalised; a stage's map is
(B, stage_channels[s], ~H / stage_strides[s], ~W / stage_strides[s]).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.batch_norm import NORMS, conv_bn, conv_bn_relu
from backbones.resnet_spec import ResNetSpec, StageSpec
from backbones.staged import Head, Norm, Stage, Strided, initialise, run_stages
from configs.errors import UserError


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def pad_shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A: every stride-th position of x (B, C, H, W), with zero channels around up to `channels`.

    The paper does not say where the zeros stand. Half before and half after is what the public CIFAR checkpoints were
    trained with; any other place is the same net with its channels renumbered.
    """
    grown = channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, grown // 2, grown - grown // 2))


class Unit(Strided, ABC):
    """Residual unit y = relu(F(x) + shortcut(x)) (He et al. 2016, eqs. 1, 2), or a plain one y = relu(F(x))."""

    expansion: int
    owns_input = False
    """Whether the input's memory may be written to: it is the previous unit's output, and this is inference
    (`backbones.staged.Stage.own_inputs`)."""

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
        """The shortcut's convolution with its batch norm; None without one."""
        if self.downsample is None:
            return None
        conv, norm = self.downsample[0], self.downsample[1]
        assert isinstance(conv, nn.Conv2d)
        return conv, norm

    @abstractmethod
    def _inner(self, x: Tensor) -> Tensor:
        """The input of F's last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))."""
        inner = self._inner(x)
        shortcut: Tensor | None = None if self.plain else x
        projection = self.projection()
        if projection is not None:
            shortcut = conv_bn(*projection, x)
        elif self.pads and not self.plain:
            shortcut = pad_shortcut(x, self.channels, self.stride)
        owned = self.owns_input or projection is not None
        return conv_bn_relu(*self.pairs()[-1], inner, shortcut, overwrite=owned)


class ConvUnit(Unit):
    """Convolutions of one width in a row: 3x3, 3x3 (He et al. 2016, Fig. 5 left), or any others."""

    expansion = 1

    def _add_layers(self, inputs: int, width: int, stride: int, spec: ResNetSpec, norm: Norm) -> None:
        self.depth = len(spec.kernels)
        for number, kernel in enumerate(spec.kernels, start=1):
            self.add_module(f"conv{number}", _conv(inputs, width, kernel, stride))
            self.add_module(f"bn{number}", NORMS[norm](width))
            inputs, stride = width, 1
        self.dropout = nn.Dropout(spec.unit_dropout) if spec.unit_dropout else nn.Identity()

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """`depth` of them."""
        numbers = range(1, self.depth + 1)
        return [(getattr(self, f"conv{number}"), getattr(self, f"bn{number}")) for number in numbers]

    def _inner(self, x: Tensor) -> Tensor:
        for pair in self.pairs()[:-1]:
            x = conv_bn_relu(*pair, x)
        return self.dropout(x)


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
        self.dropout = nn.Dropout(spec.unit_dropout) if spec.unit_dropout else nn.Identity()

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]

    def _inner(self, x: Tensor) -> Tensor:
        return self.dropout(conv_bn_relu(self.conv2, self.bn2, conv_bn_relu(self.conv1, self.bn1, x)))


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
        self.head: Head = None if spec.vector_inputs else "conv"
        self.pools_globally = spec.classifier_pool == "global"
        self.frozen_stages = 0
        stem = spec.stem
        self.conv1 = _conv(spec.vector_inputs or 3, stem.width, stem.kernel, stem.stride)
        self.bn1 = NORMS[norm](stem.width)
        self.maxpool = stem.pooling.build() if stem.pooling else nn.Identity()
        self.stage_channels: dict[str, int] = {"conv1": stem.width}
        self.stage_strides: dict[str, int] = {"conv1": stem.stride}
        channels, stride = stem.width, stem.stride * (stem.pooling.step if stem.pooling else 1)
        for number, stage_spec in enumerate(spec.stages, start=1):
            stage = self._build_stage(channels, stage_spec, norm)
            stage.activation_checkpointing = activation_checkpointing
            self.add_module(f"layer{number}", stage)
            last = stage[-1]
            assert isinstance(last, Unit)
            channels = last.channels
            stride *= stage_spec.stride * (stage_spec.pool.step if stage_spec.pool else 1)
            self.stage_channels[f"conv{number + 1}"] = channels
            self.stage_strides[f"conv{number + 1}"] = stride
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.map_size: tuple[int, int] | None = None
        features = channels
        if spec.classifier_pool != "global":
            self.avgpool = spec.classifier_pool.build()
            self.map_size = spec.last_map()
            features *= math.prod(spec.classifier_pool.output_size(side) for side in self.map_size)
        self.fc = nn.Linear(features, spec.num_classes)
        initialise(self)

    def _build_stage(self, inputs: int, stage: StageSpec, norm: Norm) -> Stage:
        unit = BottleneckUnit if self.spec.unit == "bottleneck" else ConvUnit
        units = [unit(inputs, stage.width, stage.stride, self.spec, norm)]
        units += [unit(units[0].channels, stage.width, 1, self.spec, norm) for _ in range(stage.units - 1)]
        if stage.pool is None:
            return Stage(*units)
        named = ((str(number), each) for number, each in enumerate(units))
        return Stage(OrderedDict([("pool", stage.pool.build()), *named]))  # the units keep their numbers

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of x (B, 3, H, W), any H and W; or of vectors x (B, D).

        A classifier_pool with a fixed window sees maps of other sizes than in training averaged to that size.
        """
        last = next(reversed(self.stage_channels))
        x = self.forward_stages(x, [last])[last]
        if self.map_size is not None and tuple(x.shape[-2:]) != self.map_size:
            x = F.adaptive_avg_pool2d(x, self.map_size)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed.

        Raises:
            UserError: a net of vectors gets vectors or images of another length.
        """
        if self.spec.vector_inputs:
            x = x.flatten(1)[:, :, None, None]
            if x.shape[1] != self.spec.vector_inputs:
                raise UserError(
                    f"this net takes vectors of {self.spec.vector_inputs} numbers (vector_inputs), and an input has "
                    f"{x.shape[1]}: images of one size only, as with --views center and 10crop"
                )
        return run_stages(x, names, self.stage_channels, self._run_stage)

    def _run_stage(self, name: str, x: Tensor) -> Tensor:
        return self._stem(x) if name == "conv1" else self._stage(name)(self.maxpool(x) if name == "conv2" else x)

    def _stem(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_stages):
            return conv_bn_relu(self.conv1, self.bn1, x)

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

    def dilate_stage(self, name: str) -> bool:
        """A stage (conv2 or later) no longer strides: its convolutions are dilated by what it would have strided.

        Of bottlenecks that stride in the 1x1, every such position of the finer map is the coarser map's value: the same
        net, asked at more places. (Dai et al. 2017, Sec. 4.1, for conv5; detectron2 dilates the first unit too.)

        Returns:
            Whether its units stride; if not, nothing changes.
        """
        stage = self._stage(name)
        units = [unit for unit in stage.modules() if isinstance(unit, Unit)]
        stride = units[0].stride
        if stride == 1:
            return False
        for unit in units:
            unit.stride = 1
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d):
                conv.stride = (1, 1)
                if (kernel := conv.kernel_size[0]) > 1:
                    conv.dilation, conv.padding = (stride, stride), (stride * (kernel // 2),) * 2
        names = list(self.stage_strides)
        for later in names[names.index(name) :]:
            self.stage_strides[later] //= stride
        return True

    def pop_classifier(self) -> nn.Linear:
        """Takes the classifier out of the net and returns it."""
        classifier = self.fc
        del self.fc
        return classifier
