"""The networks of localisation from a config or a checkpoint (the writing belongs to the training script)."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar, overload

import torch

from backbones.classification import build_classifier
from backbones.fetch import fetch, is_name
from backbones.pretrained import load_backbone_weights
from backbones.weights import FORMAT, Preprocessing, check_fields, read_weights_file
from configs.errors import UserError
from configs.loading import parse_config
from configs.localisation import LocalisationConfig, LocaliserConfig
from detection.checkpoint import load_strictly
from detection.localisation.rcnn import PerClassRcnn
from detection.localisation.rpn import PerClassRpn

KIND = "localiser"
"""What a checkpoint says that it holds."""


def build_localiser(
    model: LocaliserConfig,
    num_classes: int,
    *,
    data_root: Path | None = None,
    preprocessing: Preprocessing | None = None,
) -> PerClassRpn | PerClassRcnn:
    """The network of a config's stage.

    Args:
        model: the network, and the classifier's weights that it starts from.
        num_classes: K.
        data_root: where relative paths of weights start.
        preprocessing: given where a checkpoint's weights will replace all; those of `model.weights` are not read then.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    net = build_classifier(model, num_classes)
    if preprocessing is None:
        preprocessing = load_backbone_weights(
            net, model.backbone, model.weights, stride_in_1x1=model.stride_in_1x1, data_root=data_root
        )
    if model.stage == "rpn":
        return PerClassRpn(net, model.rpn, num_classes, preprocessing)
    return PerClassRcnn(net, model.rcnn, num_classes, preprocessing)


Stage = Literal["rpn", "rcnn"]
Net = TypeVar("Net", bound=PerClassRpn | PerClassRcnn, covariant=True)


class Localiser(NamedTuple, Generic[Net]):
    """A trained network and what its checkpoint says."""

    net: Net
    config: LocalisationConfig
    class_names: list[str]
    mean_boxes: list[list[float]]
    """Each class's mean box as shares of width and height: the trivial prediction of the training set."""


@overload
def load_localiser(
    path: Path | str, stage: Literal["rpn"], *, device: torch.device | str = "cpu"
) -> Localiser[PerClassRpn]: ...
@overload
def load_localiser(
    path: Path | str, stage: Literal["rcnn"], *, device: torch.device | str = "cpu"
) -> Localiser[PerClassRcnn]: ...
@overload
def load_localiser(path: Path | str, stage: Stage, *, device: torch.device | str = "cpu") -> Localiser: ...
def load_localiser(path: Path | str, stage: Stage, *, device: torch.device | str = "cpu") -> Localiser:
    """The network of a checkpoint of tools/train_loc.py, in eval mode.

    Args:
        path: the file, or a name of `backbones.fetch`.
        stage: rpn or rcnn: which one it must be.
        device: where it goes.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    content = read_weights_file(fetch(path) if is_name(path) else path)
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        kind = content.get("kind")
        what = f"a {kind}'s checkpoint" if kind else "none of this project's checkpoints"
        raise UserError(f"{path}: {what}: give last.pt or best.pt of a run of tools/train_loc.py")
    check_fields(content, path)
    if missing := [key for key in ("class_names", "mean_boxes") if key not in content]:
        raise UserError(f"{path}: the checkpoint lacks {missing[0]}")
    config = parse_config(content["config"], [], LocalisationConfig, f"{path} (stored config)", stored=True)
    if config.model.stage != stage:
        raise UserError(f"{path}: of stage {config.model.stage}, where stage {stage} is needed")
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    net = build_localiser(config.model, len(content["class_names"]), preprocessing=preprocessing)
    load_strictly(net, content["model"], path)
    return Localiser(net.to(device).eval(), config, list(content["class_names"]), content["mean_boxes"])
