"""The nets that He et al. 2016 compare theirs with: Highway, FitNet, NIN, DSN, Maxout (Table 6), PReLU-net (Table 3).

Each is a function from the number of classes, a factor on its widths and a dropout probability to a `SequentialNet`.
None has batch norm. Layers and dropout are those of the authors' own files where there are any; training is not: there
the configs have one budget for all. GoogLeNet is in `googlenet.py`. Shapes: x (B, 3, H, W) float, normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.staged import SequentialNet, initialise


class GlobalAverage(nn.Module):
    """(B, C, H, W) -> (B, C): the mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _conv_relu(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]


# ---------------------------------------------------------------------------------------------- Highway


class Highway(nn.Module):
    """y = H(x) T(x) + x (1 - T(x)): a convolution with ReLU, and a gate (Srivastava et al. 2015, eq. 3).

    The gates' offset starts at -2, so that the layer starts as nearly the identity (Sec. 2.2; the authors' file).
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.gate = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape."""
        return torch.lerp(x, F.relu(self.conv(x)), self.gate(x).sigmoid())


def _highway(
    num_classes: int, widths: Sequence[int], kernels: Sequence[Sequence[int]], last: int, dropout: float
) -> SequentialNet:
    """Groups of a convolution that widens and highway layers, a 1x1 convolution, the mean over the map."""
    stages, inputs = {}, 3
    for number, (width, sizes) in enumerate(zip(widths, kernels, strict=True)):
        before: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
        layers = [*before, nn.Dropout(dropout), *_conv_relu(inputs, width, 3), *(Highway(width, k) for k in sizes)]
        stages[f"conv{number + 1}"] = (layers, width, 2**number)
        inputs = width
    neck = nn.Sequential(*_conv_relu(inputs, last, 1), GlobalAverage(), nn.Dropout(dropout))
    net = SequentialNet(stages, neck, nn.Linear(last, num_classes))
    initialise(net)
    for layer in net.modules():
        if isinstance(layer, Highway) and layer.gate.bias is not None:
            nn.init.xavier_uniform_(layer.gate.weight)
            nn.init.constant_(layer.gate.bias, -2.0)
    return net


def highway19(num_classes: int = 10, width: float = 1.0, dropout: float = 0.2) -> SequentialNet:
    """Highway-19 of 2.3M parameters: FitNet-19 with gates (Srivastava et al. 2015, Table 1; layers of their file)."""
    widths = [_scaled(each, width) for each in (32, 80, 128)]
    return _highway(num_classes, widths, [[3] * 4, [3] * 5, [3] * 5], _scaled(100, width), dropout)


def highway32(num_classes: int = 10, width: float = 1.0, dropout: float = 0.2) -> SequentialNet:
    """Highway-32 of 1.25M parameters: thinner, 3x3 and 1x1 in turn (Srivastava et al. 2015, Sec. 3.3.1).

    The widths are not published; these give the published number of parameters.
    """
    widths = [_scaled(each, width) for each in (28, 64, 96)]
    return _highway(num_classes, widths, [[1, 3, 1, 3, 1, 3, 1, 3, 1]] * 3, _scaled(100, width), dropout)


# ---------------------------------------------------------------------------------------------- Maxout, FitNet


class MaxoutConv(nn.Module):
    """The maximum of `pieces` convolutions, channel by channel (Goodfellow et al. 2013, eq. 2)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces
        self.conv = nn.Conv2d(inputs, outputs * pieces, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        return self.conv(x).unflatten(1, (-1, self.pieces)).amax(2)


class MaxoutLinear(nn.Module):
    """The maximum of `pieces` linear layers, unit by unit."""

    def __init__(self, inputs: int, outputs: int, pieces: int = 5) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


def _initialise_maxout(net: SequentialNet) -> None:
    """Variance 1 / fan-in: of two pieces the maximum then has the second moment of its input.

    The maximum of five pieces and of a whole map is larger, so the classifier behind it starts at a tenth of that.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=math.prod(layer.weight.shape[1:]) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        net.fc.weight.mul_(0.1)


def maxout(num_classes: int = 10, width: float = 1.0, dropout: float = 0.5) -> SequentialNet:
    """The CIFAR-10 net of Goodfellow et al. 2013: three maxout convolutions, one layer of 500 units of 5 pieces.

    Layers of their cifar10.yaml; the dropout of its input is 0.2. Pooling windows that leave the map are cut, as in
    cuda-convnet. The authors give no number of parameters (16.2M here, most of them in the layer of 500 units).
    """
    first, second, third, units = (_scaled(each, width) for each in (96, 192, 192, 500))
    drop = nn.Dropout(dropout)

    def pool(size: int) -> nn.MaxPool2d:
        return nn.MaxPool2d(size, 2, ceil_mode=True)

    stages = {
        "conv1": ([nn.Dropout(min(0.2, dropout)), MaxoutConv(3, first, 8, 4)], first, 1),
        "conv2": ([pool(4), drop, MaxoutConv(first, second, 8, 3)], second, 2),
        "conv3": ([pool(4), drop, MaxoutConv(second, third, 5, 3)], third, 4),
    }
    side = 5  # of the last map behind its pooling, for images of 32x32 pixels
    neck = nn.Sequential(
        pool(2), nn.AdaptiveMaxPool2d(side), nn.Flatten(), drop, MaxoutLinear(third * side**2, units), drop
    )
    net = SequentialNet(stages, neck, nn.Linear(units, num_classes))
    _initialise_maxout(net)
    return net


def fitnet19(num_classes: int = 10, width: float = 1.0, dropout: float = 0.2) -> SequentialNet:
    """FitNet 4 of Romero et al. 2015: 19 layers (those of their cifar10_fitnet19_all.yaml).

    Published are 2.5M parameters; their file has 2.74M, of which the 5 pieces of the layer of 500 units are 0.32M: with
    one piece there would be 2.48M. The net alone: its teacher, hints and soft labels are a way of training it.
    """
    groups = ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
    stages, inputs = {}, 3
    for number, group in enumerate(groups):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
        layers.append(nn.Dropout(dropout))
        for each in group:
            layers.append(MaxoutConv(inputs, _scaled(each, width), 3, 1))
            inputs = _scaled(each, width)
        stages[f"conv{number + 1}"] = (layers, inputs, 2**number)
    units = _scaled(500, width)
    neck = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), MaxoutLinear(inputs, units), nn.Dropout(dropout))
    net = SequentialNet(stages, neck, nn.Linear(units, num_classes))
    _initialise_maxout(net)
    return net


# ---------------------------------------------------------------------------------------------- NIN, DSN


def _nin_blocks(width: float) -> list[tuple[nn.Conv2d, list[nn.Module], int]]:
    """(first convolution, what follows, channels of the map) of the three mlpconv blocks, without pooling."""
    plan = ((5, 192, (160, 96)), (5, 192, (192, 192)), (3, 192, (192,)))
    blocks, inputs = [], 3
    for kernel, first, ones in plan:
        first = _scaled(first, width)
        conv = nn.Conv2d(inputs, first, kernel, padding=kernel // 2)
        rest: list[nn.Module] = [nn.ReLU(inplace=True)]
        inputs = first
        for each in ones:
            rest += _conv_relu(inputs, _scaled(each, width), 1)
            inputs = _scaled(each, width)
        blocks.append((conv, rest, inputs))
    return blocks


def _nin_pool(number: int, dropout: float) -> list[nn.Module]:
    """What is before block `number`: maximum before the second, mean before the third, dropout."""
    if number == 0:
        return []
    pool = nn.MaxPool2d if number == 1 else nn.AvgPool2d
    return [pool(3, 2, ceil_mode=True), nn.Dropout(dropout)]


def nin(num_classes: int = 10, width: float = 1.0, dropout: float = 0.5) -> SequentialNet:
    """Network in network (Lin et al. 2014, Sec. 4.2): three blocks of a convolution and 1x1 convolutions.

    The last 1x1 convolution makes class maps, of which the mean is taken; a linear layer on the mean is the same.
    """
    stages, channels = {}, 3
    for number, (conv, rest, channels) in enumerate(_nin_blocks(width)):
        stages[f"conv{number + 1}"] = ([*_nin_pool(number, dropout), conv, *rest], channels, 2**number)
    net = SequentialNet(stages, GlobalAverage(), nn.Linear(channels, num_classes))
    initialise(net)
    return net


def dsn(num_classes: int = 10, width: float = 1.0, dropout: float = 0.5) -> SequentialNet:
    """Deeply-supervised nets (Lee et al. 2015): NIN with a companion classifier on each block's first convolution.

    The companions train the net and are dropped at test; they read maps of images of 32x32 pixels. Losses are cross
    entropy (theirs: squared hinge, or softmax), a companion's counting 0.3 (GoogLeNet's; theirs decays). Both later
    poolings take the maximum, as in their file. A stage ends at each tap, so there are six.
    """
    stages, companions = {}, {}
    channels = 3
    for number, (conv, rest, outputs) in enumerate(_nin_blocks(width)):
        pool = [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)] if number else []
        tap = f"conv{2 * number + 1}"
        stages[tap] = ([*pool, conv], conv.out_channels, 2**number)
        # Not in place: the companion reads the map too.
        stages[f"conv{2 * number + 2}"] = ([nn.ReLU(), *rest[1:]], outputs, 2**number)
        side = 32 // 2**number
        companions[tap] = nn.Sequential(
            nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(conv.out_channels * side**2, num_classes)
        )
        channels = outputs
    net = SequentialNet(stages, GlobalAverage(), nn.Linear(channels, num_classes), companions)
    initialise(net)
    for companion in companions.values():
        nn.init.xavier_uniform_(companion[2].weight, gain=0.1)
    nn.init.normal_(net.fc.weight, std=channels**-0.5)
    return net


# ---------------------------------------------------------------------------------------------- PReLU-net


class PyramidPool(nn.Module):
    """Spatial pyramid pooling (He et al. 2014): maxima over 7x7, 3x3, 2x2 and 1x1 bins, 63 numbers a channel."""

    LEVELS = (7, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 63 C)."""
        return torch.cat([F.adaptive_max_pool2d(x, side).flatten(1) for side in self.LEVELS], 1)


def prelu_net(num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5, *, model: str = "C") -> SequentialNet:
    """Model A, B or C of He et al. 2015, "Delving Deep into Rectifiers", Table 3, with a PReLU behind each layer.

    He et al. 2016, Tables 3 to 5, quote model C (24.27 % top-1, 7.38 % top-5 error of 10 views; 53.5e9 multiply-adds).
    """
    depth = 5 if model == "A" else 6
    widths = [_scaled(each, width) for each in ((96, 384, 768, 896) if model == "C" else (96, 256, 512, 512))]
    first = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
    stages = {"conv1": ([first, nn.PReLU(widths[0], init=0.25)], widths[0], 2)}
    inputs = widths[0]
    for number, each in enumerate(widths[1:], start=2):
        layers: list[nn.Module] = [nn.MaxPool2d(2)]
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, each, 3, padding=1), nn.PReLU(each, init=0.25)]
            inputs = each
        stages[f"conv{number}"] = (layers, each, 2**number)
    hidden = _scaled(4096, width)
    layers = [PyramidPool()]
    features = inputs * sum(side**2 for side in PyramidPool.LEVELS)
    for _ in range(2):
        layers += [nn.Linear(features, hidden), nn.PReLU(hidden, init=0.25), nn.Dropout(dropout)]
        features = hidden
    net = SequentialNet(stages, nn.Sequential(*layers), nn.Linear(hidden, num_classes))
    net.head = "fc"
    initialise(net)
    return net


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def linear(num_classes: int = 10, width: float = 1.0, dropout: float = 0.0) -> SequentialNet:
    """A linear classifier of the pixels, 32x32: what every net has to beat. `width` changes nothing here."""
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(32), nn.Flatten(), nn.Dropout(dropout))
    net = SequentialNet({"conv1": ([nn.Identity()], 3, 1)}, neck, nn.Linear(3 * 32 * 32, num_classes))
    net.head = None
    initialise(net)
    return net


COMPARATORS: dict[str, Callable[..., SequentialNet]] = {
    "linear": linear,
    "highway19": highway19,
    "highway32": highway32,
    "fitnet19": fitnet19,
    "nin": nin,
    "dsn": dsn,
    "maxout": maxout,
    "prelu_net_a": lambda *args, **options: prelu_net(*args, model="A", **options),
    "prelu_net_b": lambda *args, **options: prelu_net(*args, model="B", **options),
    "prelu_net_c": lambda *args, **options: prelu_net(*args, model="C", **options),
}
"""By name; each takes num_classes, width (a factor on all its widths) and dropout."""
