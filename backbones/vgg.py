"""VGG-16 and VGG-19, with and without batch norm (Simonyan & Zisserman 2015, Table 1, D and E).

Parameters bear torchvision's names (features.N, classifier.N). Stages: conv1..conv5 are the groups of 3x3
convolutions of one width; a group's map is that after its last ReLU, and the 2x2 max pooling that follows belongs to
the next stage, so conv5 is conv5_3's output without pool5, stride 16. Shapes: x (B, 3, H, W) float, normalised.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.batch_norm import BATCH_NORMS, NORMS, conv_bn_relu
from backbones.staged import FreezesLayers, Head, Norm, initialise, run_stages

WIDTHS = (64, 128, 256, 512, 512)
VGGS: dict[str, tuple[tuple[int, ...], bool]] = {
    "vgg16": ((2, 2, 3, 3, 3), False),
    "vgg16_bn": ((2, 2, 3, 3, 3), True),
    "vgg19": ((2, 2, 4, 4, 4), False),
    "vgg19_bn": ((2, 2, 4, 4, 4), True),
}
"""Convolutions in each stage, and whether batch norm follows each."""


class VGG(FreezesLayers):
    """A VGG net: a classifier, and a backbone with feature taps conv1..conv5.

    Args:
        convs: number of 3x3 convolutions in each of the five stages.
        batch_norm: whether batch norm follows each convolution.
        norm: which one (see `batch_norm.NORMS`).
        num_classes: outputs K.
        dropout: probability after fc6 and fc7, in training.
    """

    head: Head = "fc"
    pools_globally = False

    def __init__(
        self,
        convs: tuple[int, ...],
        batch_norm: bool,
        *,
        norm: Norm = "batch",
        num_classes: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.stage_channels: dict[str, int] = {}
        self.stage_strides: dict[str, int] = {}
        self._ranges: dict[str, range] = {}
        layers: list[nn.Module] = []
        inputs = 3
        for number, (count, width) in enumerate(zip(convs, WIDTHS, strict=True), start=1):
            start = len(layers)
            if number > 1:
                layers.append(nn.MaxPool2d(2, stride=2))
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers += [NORMS[norm](width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            name = f"conv{number}"
            self._ranges[name] = range(start, len(layers))
            self.stage_channels[name], self.stage_strides[name] = width, 2 ** (number - 1)
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2, stride=2))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K); maps of other sizes than 7x7 are averaged to 7x7 bins before fc6."""
        x = self.features[-1](self.forward_stages(x, ["conv5"])["conv5"])
        return self.classifier(F.adaptive_avg_pool2d(x, 7).flatten(1))

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed."""
        return run_stages(x, names, self.stage_channels, self._run_stage)

    def _run_stage(self, name: str, x: Tensor) -> Tensor:
        frozen = list(self._ranges).index(name) < self.frozen_stages
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            for index in self._ranges[name]:
                layer = self.features[index]
                if isinstance(layer, nn.Conv2d):
                    after = self.features[index + 1]
                    x = conv_bn_relu(layer, after if isinstance(after, BATCH_NORMS) else None, x)
                elif not isinstance(layer, (*BATCH_NORMS, nn.ReLU)):  # a ReLU follows each convolution
                    x = layer(x)
        return x

    def _frozen_layers(self) -> list[nn.Module]:
        frozen = list(self._ranges.values())[: self.frozen_stages]
        return [self.features[index] for layers in frozen for index in layers]

    def pop_stage(self, name: str) -> nn.Module:
        """Raises ValueError: a detector on VGG shares all five stages."""
        raise ValueError(f"{name} cannot be taken out of a VGG net: its head is pop_classifier()")

    def pop_classifier(self) -> nn.Sequential:
        """Takes fc6, fc7 and the classifier out of the net and returns them (layers 0, 3 and 6)."""
        classifier = self.classifier
        del self.classifier
        return classifier
