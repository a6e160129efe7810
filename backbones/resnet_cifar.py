"""The CIFAR nets as rows of the table of residual nets (He et al. 2016, Sec. 4.2).

A 3x3 convolution of 16 channels, then 2n layers each at widths 16, 32, 64 on 32x32, 16x16, 8x8 maps, global average
pooling and a classifier: 6n + 2 layers. Shortcuts are option A everywhere, so a residual net has exactly the
parameters of its plain twin.
"""

from __future__ import annotations

import re

from backbones.resnet_spec import ResNetSpec, StageSpec, StemSpec

NAME = re.compile(r"cifar_resnet(\d+)")
DEPTHS = (20, 32, 44, 56, 110, 1202)
"""Those of the paper's Table 6; any other 6n + 2 builds as well."""


def cifar_spec(depth: int) -> ResNetSpec:
    """The row of the CIFAR net of `depth` = 6n + 2 layers, residual, 10 classes.

    Raises:
        ValueError: `depth` is not 6n + 2 with n >= 1.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"a CIFAR net has 6n + 2 layers (20, 32, 44, 56, 110, ...), not {depth}")
    return ResNetSpec(
        stem=StemSpec(kernel=3, width=16, stride=1, pool=False),
        stages=tuple(StageSpec(units=n, width=width, stride=stride) for width, stride in ((16, 1), (32, 2), (64, 2))),
        unit="basic",
        shortcut="A",
        num_classes=10,
    )
