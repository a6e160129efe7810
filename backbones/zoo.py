"""Every network by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from backbones.comparators import COMPARATORS
from backbones.googlenet import GoogLeNet
from backbones.resnet import ResNet
from backbones.resnet_cifar import DEPTHS, NAME, cifar_spec
from backbones.resnet_spec import RESNETS, ResNetSpec
from backbones.staged import Norm, SequentialNet
from backbones.vgg import VGG, VGGS
from configs.errors import UserError, did_you_mean

NAMES: tuple[str, ...] = (
    *RESNETS, *VGGS, "googlenet", *(f"cifar_resnet{depth}" for depth in DEPTHS), *COMPARATORS
)  # fmt: skip
"""The named nets; `cifar_resnetN` exists for every N = 6n + 2."""


Net = ResNet | VGG | GoogLeNet | SequentialNet
"""What `build_backbone` builds: a `StagedNet` and a classifier."""


def build_backbone(
    name: str | Mapping[str, Any],
    *,
    norm: Norm = "batch",
    stride_in_1x1: bool | None = None,
    shortcut: str | None = None,
    plain: bool | None = None,
    num_classes: int | None = None,
    dropout: float | None = None,
    unit_dropout: float | None = None,
    activation_checkpointing: bool = False,
) -> Net:
    """A randomly initialised net; those that torchvision has too bear its parameter names.

    Args:
        name: one of `NAMES`; `cifar_resnetN` for any N = 6n + 2; the table of a net of one's own: the fields of
            `resnet_spec.ResNetSpec` (stem, stages, unit, shortcut, ...); or a named comparator with options: {net: nin,
            width: 0.5}, a factor on its widths; {net: googlenet, auxiliary: true}, with its auxiliary classifiers.
        norm: batch norm that is trained, constant, or trained across processes.
        stride_in_1x1: bottlenecks stride in the first 1x1 (MSRA's weights) or in the 3x3 (torchvision's).
        shortcut: A, B or C (He et al. 2016, Sec. 4.1).
        plain: the same layers without shortcuts.
        num_classes: outputs of the classifier.
        dropout: probability before a residual net's classifier; after fc6 and fc7 of VGG; a comparator's own places.
        unit_dropout: probability inside the units of a residual net.
        activation_checkpointing: residual nets: less memory for more time in training.
            What is None stays as in the net's own row: stride in the 3x3, shortcut B and 1000 classes for ImageNet,
            A and 10 for CIFAR; dropout 0 for residual nets, 0.5 for VGG, a comparator's own.

    Raises:
        UserError: no such net, or a value that the table does not take.
    """
    options = {} if isinstance(name, str) or "net" not in name else {key: name[key] for key in name if key != "net"}
    name = name["net"] if not isinstance(name, str) and "net" in name else name
    if isinstance(name, str) and (name in VGGS or name in COMPARATORS or name == "googlenet"):
        # B is what other projects' weights of nets without shortcuts are stored with.
        given = {"shortcut": None if shortcut == "B" else shortcut, "plain": plain, "unit_dropout": unit_dropout,
                 "activation_checkpointing": activation_checkpointing}  # fmt: skip
        wrong = next((key for key, value in given.items() if value), None)
        if wrong is not None:
            raise UserError(f"{name}: {wrong}: {given[wrong]} belongs to residual nets: leave it out")
        counts = {"num_classes": num_classes, "dropout": dropout}
        return _other_net(name, options, {key: value for key, value in counts.items() if value is not None}, norm)
    if options:
        raise UserError(f"{name}: takes no {', '.join(options)}: give the net's whole table in place of its name")
    changes = {
        "stride_in_1x1": stride_in_1x1, "shortcut": shortcut, "plain": plain, "num_classes": num_classes,
        "unit_dropout": unit_dropout,
    }  # fmt: skip
    return ResNet(
        _spec(name, {key: value for key, value in changes.items() if value is not None}),
        norm=norm,
        dropout=dropout or 0.0,
        activation_checkpointing=activation_checkpointing,
    )


def _other_net(
    name: str, options: Mapping[str, Any], values: dict[str, Any], norm: Norm
) -> VGG | GoogLeNet | SequentialNet:
    """A named net that is no row of the table of residual nets."""
    known = ("width",) if name in COMPARATORS else ("auxiliary",) if name == "googlenet" else ()
    wrong = next((key for key in options if key not in known), None)
    if wrong is not None:
        raise UserError(f"{name}: there is no option {wrong}; it takes {', '.join(known) or 'none'}")
    width, auxiliary = options.get("width", 1.0), options.get("auxiliary", False)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.0 < width <= 16.0:
        raise UserError(f"{name}: width: a factor above 0 and at most 16, not {width}")
    if not isinstance(auxiliary, bool):
        raise UserError(f"{name}: auxiliary: true or false, not {auxiliary}")
    if name == "googlenet":
        return GoogLeNet(norm=norm, auxiliary=auxiliary, **values)
    if name in COMPARATORS:
        return COMPARATORS[name](width=width, **values)
    convs, batch_norm = VGGS[name]
    return VGG(convs, batch_norm, norm=norm, **values)


def _spec(name: str | Mapping[str, Any], changes: dict[str, Any]) -> ResNetSpec:
    title = name if isinstance(name, str) else "the net's table"
    try:
        row = _find_row(name).model_dump() if isinstance(name, str) else dict(name)
        return ResNetSpec.model_validate({**row, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "table"
        raise UserError(f"{title}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise UserError(f"{title}: {error}") from None


def _find_row(name: str) -> ResNetSpec:
    if name in RESNETS:
        return RESNETS[name]
    if match := NAME.fullmatch(name):
        return cifar_spec(int(match[1]))
    raise UserError(f"there is no net named {name!r}{did_you_mean(name, NAMES)}; known: {', '.join(NAMES)}")
