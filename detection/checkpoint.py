"""Reading of detector checkpoints (the writing belongs to the training script).

A checkpoint is a dict: format 1, kind "detector", config, class_names, preprocessing, model (the weights that
evaluate: the moving average where there is one), card (what is known of published weights in it: source, licence), and,
for resuming, training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from backbones.fetch import is_name
from backbones.weights import FORMAT, Preprocessing, check_fields, first_line, read_weights_file
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import parse_config
from detection.model import Detector, build_detector
from detection.zoo import read_by_name


def read_detector_file(path: Path | str) -> dict:
    """The checkpoint's dict, checked to be a detector's.

    Args:
        path: a file, or a name of the zoo (`detection.zoo`), which is downloaded where it is not kept yet.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    checkpoint = read_by_name(path) if is_name(path) else read_weights_file(path)
    kind = checkpoint.get("kind") if isinstance(checkpoint, dict) else None
    if kind != "detector":
        what = f"a {kind} checkpoint" if isinstance(kind, str) else "not one of this project's checkpoints"
        other = "" if isinstance(kind, str) else "; tools/convert_weights.py converts other projects' detectors"
        raise UserError(
            f"{path} is {what}, not a detector: give last.pt or best.pt of a run of tools/train_det.py{other}"
        )
    if type(checkpoint.get("format")) is not int or checkpoint["format"] != FORMAT:
        raise UserError(
            f"{path} has format {checkpoint.get('format')}; this version reads format {FORMAT}: update the project"
        )
    check_fields(checkpoint, path)
    if not checkpoint.get("class_names"):
        raise UserError(f"{path}: the checkpoint lacks class_names")
    return checkpoint


def load_detector(
    path: Path | str, *, overrides: Sequence[str] = (), device: torch.device | str = "cpu"
) -> tuple[Detector, DetectionConfig]:
    """The detector of a checkpoint, in eval mode on `device`, and its config.

    Args:
        path: a file of `tools/train_det.py` or `tools/convert_weights.py`, or a name of the zoo.
        overrides: `key.path=value` changes of the stored config (thresholds, sizes).
        device: where the detector goes.

    Raises:
        UserError: the file is not a detector, or its weights do not fit its (overridden) config.
    """
    checkpoint = read_detector_file(path)
    name = f"{path} (stored config)"
    config = parse_config(checkpoint["config"], list(overrides), DetectionConfig, name, stored=True)
    preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])
    class_names = list(checkpoint["class_names"])
    try:
        detector = build_detector(config.model, class_names, test=config.test, preprocessing=preprocessing)
    except (TypeError, OverflowError, MemoryError, RuntimeError) as error:  # widths and kernels beyond all memory
        raise UserError(f"{name}: describes a net that cannot be built: {first_line(error)[:200]}") from error
    load_strictly(detector, checkpoint["model"], path)
    detector.card = dict(checkpoint.get("card", {}))
    return detector.to(device).eval(), config


def load_strictly(detector: nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    """Loads all of `state` into all of the detector.

    Raises:
        UserError: names the first parameter that is missing, unknown or of another shape.
    """
    own = detector.state_dict()
    for name in own:
        if name not in state:
            raise UserError(f"{path}: {name} is missing: the weights are of another model than the config's")
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
            raise UserError(f"{path}: {name} has another shape ({shapes}): classes, anchors or widths differ")
    unknown = next((name for name in state if name not in own), None)
    if unknown is not None:
        raise UserError(f"{path}: {unknown} is not a part of the config's model: the weights are of another one")
    detector.load_state_dict(state)


def load_matching(detector: nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> list[str]:
    """Loads what fits, for fine-tuning on other classes; returns the names that keep their fresh values.

    Args:
        detector: the model, or one of its stages.
        state: the weights to start from.
        path: where they come from, for messages.

    Raises:
        UserError: the body does not fit: nothing but the class layers may differ.
    """
    own = detector.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    fresh = [name for name in own if name not in fitting]
    wrong = [name for name in fresh if name.startswith(("backbone.", "roi_heads.box_head."))]
    if wrong:
        raise UserError(
            f"{path}: has no {wrong[0]} of the model's shape: the weights to start from are of another backbone, neck "
            "or head than the config's: make the config's model section theirs (a run's is in the config.yaml beside "
            "its weights)"
        )
    detector.load_state_dict(fitting, strict=False)
    return fresh
