"""The table of residual networks: a net is a row of stem, stages, kind of unit and shortcut (He et al. 2016, Table 1).

`resnet.ResNet` builds the net of a row. The ImageNet nets are the rows below, the CIFAR nets those of `resnet_cifar`; a
net of one's own is another row, in YAML a table of the same fields.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from configs.common import NonNegativeInt, PositiveInt, Section, Width

Kernel = Annotated[int, Field(gt=0, le=255)]
"""Side of a convolution's window."""


class PoolSpec(Section):
    """A pooling layer."""

    kind: Literal["max", "average"] = "max"
    size: PositiveInt = 2
    """Side of the window, pixels."""
    stride: PositiveInt | None = None
    """null: as `size`."""
    padding: NonNegativeInt = 0

    def build(self) -> nn.MaxPool2d | nn.AvgPool2d:
        """The layer; windows that leave the map are dropped, as everywhere here."""
        kind = nn.MaxPool2d if self.kind == "max" else nn.AvgPool2d
        return kind(self.size, self.step, self.padding)

    @property
    def step(self) -> int:
        """The stride, pixels."""
        return self.stride or self.size

    def output_size(self, side: int) -> int:
        """Side of the map that it leaves of one with `side` pixels; below 1 where the window does not fit."""
        return (side + 2 * self.padding - self.size) // self.step + 1

    @model_validator(mode="after")
    def _padding_fits(self) -> PoolSpec:
        if 2 * self.padding > self.size:
            raise ValueError(f"padding {self.padding} is more than half of the window of {self.size}")
        return self


STEM_POOL = PoolSpec(size=3, stride=2, padding=1)
"""That of the paper's Table 1."""


class StemSpec(Section):
    """The first convolution, conv1 of the paper's Table 1."""

    kernel: Kernel = 7
    width: Width = 64
    stride: PositiveInt = 2
    pool: bool | PoolSpec = True
    """The pooling after it; true: 3x3 maximum with stride 2."""

    @property
    def pooling(self) -> PoolSpec | None:
        """`pool` as a layer's description."""
        return (STEM_POOL if self.pool else None) if isinstance(self.pool, bool) else self.pool


class StageSpec(Section):
    """A run of units of one width, the first of which strides."""

    units: Annotated[int, Field(gt=0, le=1000)]
    width: Width
    """Channels of the convolutions; bottleneck units put out 4 times as many."""
    stride: PositiveInt = 1
    """The first unit's stride, pixels."""
    pool: PoolSpec | None = None
    """A pooling before the first unit."""


class ResNetSpec(Section):
    """A row of the table of nets."""

    stem: StemSpec = StemSpec()
    stages: Annotated[tuple[StageSpec, ...], Field(max_length=100)]
    unit: Literal["basic", "bottleneck"] | Annotated[tuple[Kernel, ...], Field(max_length=100)]
    """The residual function F. basic: 3x3, 3x3; bottleneck: 1x1, 3x3, 1x1 with a 4 times wider output; or the sizes of
    any number of convolutions of the stage's width: [3, 3, 3], [5], ... One layer alone makes y = Wx + x, which is
    linear but for the ReLU behind it: the paper saw no advantage in that (Sec. 3.2)."""
    shortcut: Literal["A", "B", "C"] = "B"
    """A: identity, new channels zero. B: 1x1 projection where dimensions change. C: projection in every unit."""
    plain: bool = False
    """The same layers without shortcuts."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in the first 1x1 (the paper, MSRA's weights) or in the 3x3 (torchvision's weights)."""
    unit_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability of dropout before the last convolution of each F, behind its ReLU (Zagoruyko & Komodakis 2016,
    Sec. 2.4): a remedy for nets that overfit, such as the one of 1202 layers (He et al. 2016, Sec. 4.2)."""
    classifier_pool: Literal["global"] | PoolSpec = "global"
    """Before the classifier: the mean over the whole map, or a pooling with a fixed window, of which every position
    is an input of the classifier."""
    input_size: tuple[PositiveInt, PositiveInt] | None = None
    """(H, W) in training, pixels: what the classifier's width follows from where `classifier_pool` is not global."""
    vector_inputs: PositiveInt | None = None
    """A net of vectors of so many numbers, in place of images (which are flattened into them): all layers are fully
    connected (He et al. 2016, Sec. 3.2), which here means 1x1 convolutions of a 1x1 map."""
    num_classes: PositiveInt = 1000

    @model_validator(mode="after")
    def _parts_fit(self) -> ResNetSpec:
        if not self.stages:
            raise ValueError("give at least one stage")
        kernels = self.kernels
        if not kernels or any(kernel % 2 == 0 for kernel in (*kernels, self.stem.kernel)):
            raise ValueError("unit and stem.kernel: sizes of convolutions are odd, and there is at least one")
        if self.unit_dropout and len(kernels) == 1:
            raise ValueError("unit_dropout is between the convolutions of F, and unit has only one")
        if (self.classifier_pool != "global") != (self.input_size is not None):
            raise ValueError("input_size belongs to a classifier_pool with a fixed window, which needs it")
        if isinstance(self.classifier_pool, PoolSpec):
            sides = self.last_map()
            if min(sides) < 1 or min(map(self.classifier_pool.output_size, sides)) < 1:
                raise ValueError(
                    f"classifier_pool: the window does not fit on the last map, {sides[0]}x{sides[1]} pixels"
                )
        if self.vector_inputs and (self.downsamples or max(*kernels, self.stem.kernel) > 1):
            raise ValueError("vector_inputs: give stem {kernel: 1, stride: 1, pool: false}, unit [1, 1], no strides")
        widths = [self.stem.width, *(stage.width * (4 if self.unit == "bottleneck" else 1) for stage in self.stages)]
        if self.shortcut == "A" and not self.plain and sorted(widths) != widths:
            raise ValueError("shortcut A adds channels and takes none away: give widths that grow, or shortcut B")
        return self

    @property
    def kernels(self) -> tuple[int, ...]:
        """Sizes of F's convolutions."""
        return {"basic": (3, 3), "bottleneck": (1, 3, 1)}[self.unit] if isinstance(self.unit, str) else self.unit

    def last_map(self) -> tuple[int, int]:
        """(H, W) of the last stage's map for images of `input_size`."""
        assert self.input_size is not None, "asked for only where the window is fixed"
        sides = list(self.input_size)
        for layer, pool in ((self.stem, self.stem.pooling), *((stage, stage.pool) for stage in self.stages)):
            if pool is not None and layer is not self.stem:
                sides = [pool.output_size(side) for side in sides]
            sides = [-(-side // layer.stride) for side in sides]
            if pool is not None and layer is self.stem:
                sides = [pool.output_size(side) for side in sides]
        return sides[0], sides[1]

    @property
    def downsamples(self) -> bool:
        """Whether any layer has a stride or pools."""
        strides = [self.stem.stride, *(stage.stride for stage in self.stages)]
        pools = [self.stem.pool, self.classifier_pool != "global", *(stage.pool for stage in self.stages)]
        return any(stride > 1 for stride in strides) or any(pools)


def _row(unit: Literal["basic", "bottleneck"], *units: int) -> ResNetSpec:
    widths_and_strides = ((64, 1), (128, 2), (256, 2), (512, 2))
    return ResNetSpec(
        unit=unit,
        stages=tuple(
            StageSpec(units=n, width=width, stride=stride)
            for n, (width, stride) in zip(units, widths_and_strides, strict=True)
        ),
    )


RESNETS: dict[str, ResNetSpec] = {
    "resnet18": _row("basic", 2, 2, 2, 2),
    "resnet34": _row("basic", 3, 4, 6, 3),
    "resnet50": _row("bottleneck", 3, 4, 6, 3),
    "resnet101": _row("bottleneck", 3, 4, 23, 3),
    "resnet152": _row("bottleneck", 3, 8, 36, 3),
}
"""He et al. 2016, Table 1."""
