"""Every network by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from backbones.resnet import RESNETS, Norm, ResNet, ResNetSpec
from backbones.resnet_cifar import DEPTHS, NAME, cifar_spec
from backbones.vgg import VGG, VGGS
from configs.errors import UserError, did_you_mean

NAMES: tuple[str, ...] = (*RESNETS, *VGGS, *(f"cifar_resnet{depth}" for depth in DEPTHS))
"""The named nets; `cifar_resnetN` exists for every N = 6n + 2."""


def build_backbone(
    name: str | Mapping[str, Any],
    *,
    norm: Norm = "batch",
    stride_in_1x1: bool | None = None,
    shortcut: str | None = None,
    plain: bool | None = None,
    num_classes: int | None = None,
    dropout: float | None = None,
    activation_checkpointing: bool = False,
) -> ResNet | VGG:
    """A randomly initialised net with torchvision's parameter names.

    Args:
        name: one of `NAMES`, `cifar_resnetN` for any N = 6n + 2, or the table of a net of one's own: the fields of
            `resnet.ResNetSpec` (stem, stages, unit, shortcut, ...).
        norm: batch norm that is trained, constant, or trained across processes.
        stride_in_1x1: bottlenecks stride in the first 1x1 (MSRA's weights) or in the 3x3 (torchvision's).
        shortcut: A, B or C (He et al. 2016, Sec. 4.1).
        plain: the same layers without shortcuts.
        num_classes: outputs of the classifier.
        dropout: probability before a residual net's classifier; after fc6 and fc7 of VGG.
        activation_checkpointing: residual nets: less memory for more time in training.
            What is None stays as in the net's own row: stride in the 3x3, shortcut B and 1000 classes for ImageNet,
            A and 10 for CIFAR; dropout 0 for residual nets, 0.5 for VGG.

    Raises:
        UserError: no such net, or a value that the table does not take.
    """
    if isinstance(name, str) and name in VGGS:
        convs, batch_norm = VGGS[name]
        return VGG(
            convs,
            batch_norm,
            norm=norm,
            num_classes=1000 if num_classes is None else num_classes,
            dropout=0.5 if dropout is None else dropout,
        )
    changes = {"stride_in_1x1": stride_in_1x1, "shortcut": shortcut, "plain": plain, "num_classes": num_classes}
    return ResNet(
        _spec(name, {key: value for key, value in changes.items() if value is not None}),
        norm=norm,
        dropout=dropout or 0.0,
        activation_checkpointing=activation_checkpointing,
    )


def _spec(name: str | Mapping[str, Any], changes: dict[str, Any]) -> ResNetSpec:
    title = name if isinstance(name, str) else "the net's table"
    try:
        row = _find_row(name).model_dump() if isinstance(name, str) else dict(name)
        return ResNetSpec.model_validate({**row, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{title}: {'.'.join(map(str, first['loc'])) or 'table'}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"{title}: {error}") from None


def _find_row(name: str) -> ResNetSpec:
    if name in RESNETS:
        return RESNETS[name]
    if match := NAME.fullmatch(name):
        return cifar_spec(int(match[1]))
    raise UserError(f"there is no net named {name!r}{did_you_mean(name, NAMES)}; known: {', '.join(NAMES)}")
