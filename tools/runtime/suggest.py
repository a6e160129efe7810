"""A config that suits a data set and a machine: sizes and anchors from the boxes, epochs from the number of images.

The recipe from random weights is `configs/bccd_r18_fpn.yaml`'s: a ResNet-18 with a small FPN, which learns 292 photos
of blood cells in 16 epochs. Its 4,700 showings of an image of 240x320 are the measure of all other sets.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.detection import SourceConfig
from configs.errors import counted
from datasets.records import Records
from datasets.survey import FEW, resized_extents

SECONDS = 0.2
"""One image of 240x320, forward, backward and update, on two cores (of the 16 minutes of configs/bccd_r18_fpn.yaml)."""
REFERENCE_AREA = 240 * 320
SHOWN = 4500
"""Showings of an image of this area in a whole training."""
FEWEST_EPOCHS, MOST_EPOCHS = 12, 300
STRIDES = (4, 8, 16, 32, 64)
"""Of the maps P2..P6."""


@dataclass(frozen=True)
class Machine:
    """What a training has to work with."""

    cpus: int
    gpu_gib: float | None = None
    """Memory of the GPU; None: there is none."""

    def __str__(self) -> str:
        cores = counted(self.cpus, "CPU core")
        return cores if self.gpu_gib is None else f"a GPU with {self.gpu_gib:.0f} GiB, {cores}"


@dataclass(frozen=True)
class Plan:
    """The numbers of a config."""

    min_size: int
    max_size: int
    anchor_sizes: list[int]
    aspect_ratios: list[float]
    batch_size: int
    num_workers: int
    epochs: int
    warmup_iterations: int
    validate_every: int
    hflip: float
    minutes: float
    """About how long the training takes; 0: not known for such a machine."""


def this_machine() -> Machine:
    """The processors that this process may use, and the first GPU."""
    import torch

    from datasets.loader import usable_cpus

    cpus = usable_cpus()
    if not torch.cuda.is_available():
        return Machine(cpus)
    return Machine(cpus, torch.cuda.get_device_properties(0).total_memory / 2**30)


def make_plan(train: Records, machine: Machine, *, pretrained: bool = False) -> Plan:
    """The numbers that suit a training set and a machine.

    Args:
        train: the training images.
        machine: where they are trained on.
        pretrained: the training starts from a published ResNet-50-FPN, not from random weights.
    """
    gpu = machine.gpu_gib is not None
    min_size, max_size = input_size(train, long_side=(1024 if gpu else 640) if pretrained else (640 if gpu else 320))
    extents, _ = resized_extents(train, min_size, max_size)
    batch = batch_size(len(train), machine)
    if pretrained and not gpu:
        batch = min(batch, 2)
    area = min_size * max_size
    shown = SHOWN * (8 if gpu else max(0.25, min(1.0, REFERENCE_AREA / area)))
    fewest, most = (5, 60) if pretrained else (FEWEST_EPOCHS, MOST_EPOCHS)
    epochs = int(np.clip(round(shown / len(train)), fewest, most))
    steps = max(1, epochs * len(train) // batch)
    seconds = SECONDS * epochs * len(train) * area / REFERENCE_AREA * 2 / min(machine.cpus, 8)
    if pretrained:
        seconds *= 2.5  # more layers, of which the first two stages are frozen
    return Plan(
        min_size=min_size,
        max_size=max_size,
        anchor_sizes=anchor_sizes(extents),
        aspect_ratios=aspect_ratios(extents),
        batch_size=batch,
        num_workers=max(1, min(machine.cpus - 1, 8 if gpu else 4)),
        epochs=epochs,
        warmup_iterations=min(50, max(1, steps // 10)),
        validate_every=max(1, round(epochs / 5)),
        hflip=0.0 if _has_sides(train.class_names) else 0.5,
        minutes=0.0 if gpu else seconds / 60,
    )


def input_size(records: Records, *, long_side: int) -> tuple[int, int]:
    """(min_size, max_size): the typical image's sides after resizing, multiples of 16.

    The longer side is `long_side`, or the image's own where that is less; up to twice as much where the typical
    object of a class would be smaller than 16 pixels, or a tenth of all objects smaller than 10.
    """
    short, long = (float(np.median(side)) for side in (records.sizes.min(axis=1), records.sizes.max(axis=1)))
    scale = min(1.0, long_side / long)
    extents, labels = resized_extents(records, max(1, round(short * scale)), max(1, round(long * scale)))
    if len(extents):
        root = np.sqrt(extents.prod(axis=1))
        medians = [np.median(root[labels == k]) for k in np.unique(labels) if (labels == k).sum() >= FEW]
        smallest = min(medians) if medians else np.median(root)
        scale *= float(np.clip(max(16 / smallest, 10 / np.percentile(root, 10)), 1.0, 2.0))
    min_size = max(32, round(short * scale / 16) * 16)
    aspect = float(np.clip(np.percentile(records.sizes.max(axis=1) / records.sizes.min(axis=1), 90), 1.0, 2.0))
    return min_size, max(min_size, round(min_size * aspect / 16) * 16)


def anchor_sizes(extents: np.ndarray) -> list[int]:
    """Five growing sizes for P2..P6, from the smallest to the largest objects, none below twice its map's stride.

    Args:
        extents: (M, 2) width and height after resizing, pixels.
    """
    if not len(extents):
        return [16, 32, 64, 96, 128]
    low, middle, high = np.percentile(np.sqrt(extents.prod(axis=1)), [5, 50, 95])
    low, high = min(low, middle / 1.5), max(high, middle * 1.5)
    sizes: list[int] = []
    for k, stride in enumerate(STRIDES):
        size = max(round(low * (high / low) ** (k / 4)), 2 * stride)
        sizes.append(max(size, sizes[-1] + 1) if sizes else size)
    return sizes


def aspect_ratios(extents: np.ndarray) -> list[float]:
    """Height / width of the anchors: further ones where a tenth of the objects is longer than 3:1."""
    ratios = extents[:, 1] / extents[:, 0] if len(extents) else np.ones(1)
    low, high = np.percentile(ratios, [10, 90])
    return [*([0.25] if low < 1 / 3 else []), 0.5, 1.0, 2.0, *([4.0] if high > 3 else [])]


def batch_size(images: int, machine: Machine) -> int:
    """Images a step: 8, less for sets of which an epoch would be a few steps, and as a GPU's memory allows."""
    largest = 8
    if machine.gpu_gib is not None:
        largest = 16 if machine.gpu_gib >= 20 else 8 if machine.gpu_gib >= 8 else 4
    few = 1 if images < 4 else 2 if images < 8 else 4
    return few if images < 32 else largest


def _has_sides(names: list[str]) -> bool:
    """Whether a mirror image would show another class: left and right, arrows, letters and figures."""
    words = {word for name in names for word in re.findall(r"[a-z]+|\d+", name.lower())}
    single = sum(len(name) == 1 for name in names)
    return {"left", "right"} <= words or single > len(names) / 2


# ---------------------------------------------------------------------------------------------- the file


_RULE_OF_GIVEN = (
    "# Epochs:   for so many images; 5 to 60. More epochs, better boxes, until the validation says otherwise.",
)
_RULE_OF_SMALL = (
    f"# Epochs:   {SHOWN} showings of an image of 240x320 (fewer of larger ones, 8 times as many on a GPU):",
    f"#           15 to 20 minutes on two cores; {FEWEST_EPOCHS} to {MOST_EPOCHS} epochs. More: better boxes.",
)
"""How the number of epochs was chosen for a published detector, and for a small one."""


def config_text(
    sources: dict[str, list[SourceConfig]],
    class_names: list[str],
    plan: Plan,
    machine: Machine,
    *,
    about: str,
    command: str,
    start: str,
    model: dict[str, Any] | None = None,
) -> str:
    """The YAML of a whole config, with a header that says what it is for and why its numbers are as they are.

    Args:
        sources: of each part.
        class_names: in the order of the labels 1..K.
        plan: the numbers.
        machine: what they were chosen for.
        about: the data set in a line.
        command: how to train.
        start: what the weights start from, in a line.
        model: the model section of a published detector that the training starts from; None: a small one's.
    """
    time = f"about {in_minutes(plan.minutes)}" if plan.minutes else "not measured"
    amp = ", amp: bf16" if machine.gpu_gib is not None else ""
    optim = (
        "optim: {name: sgd, lr: 0.01, reference_batch_size: 16, momentum: 0.9, weight_decay: 0.0001}"
        if model
        else "optim: {name: adamw, lr: 0.0005, reference_batch_size: 8, weight_decay: 0.01}"
    )
    lines = [
        f"# {about}",
        f"# Command:  {command}",
        f"# Hardware: {machine}. Time: {time}.",
        f"# Start:    {start}",
        *(_RULE_OF_GIVEN if model else _RULE_OF_SMALL),
        "seed: 0",
        "data:",
        *(line for part, items in sources.items() for line in (f"  {part}:", *map(_source_line, items))),
        f"  classes: {json.dumps(class_names, ensure_ascii=False)}",
        f"  min_size: {plan.min_size}    # the shorter side after resizing, unless the longer one passes max_size",
        f"  max_size: {plan.max_size}",
        f"  test_min_size: {plan.min_size}",
        f"  test_max_size: {plan.max_size}",
        f"  num_workers: {plan.num_workers}",
        f"  augment: {{hflip: {plan.hflip}, photometric: {{p: 0.5}}}}    # vflip: 0.5 for cells and views from above",
        *(_small_model(plan) if model is None else _given_model(model)),
        optim,
        f"schedule: {{epochs: {plan.epochs}, policy: cosine, warmup_iterations: {plan.warmup_iterations}}}",
        f"train: {{batch_size: {plan.batch_size}, validate_every: {plan.validate_every}{amp}}}",
        "test: {score_thresh: 0.01}    # weak detections count where precision is drawn over recall",
    ]
    return "\n".join(lines) + "\n"


def _small_model(plan: Plan) -> list[str]:
    """The model section of configs/bccd_r18_fpn.yaml with anchors for this set's boxes."""
    anchors = ", ".join(f"[{size}]" for size in plan.anchor_sizes)
    return [
        "model:",
        "  backbone: resnet18",
        "  weights: random",
        "  norm: batch",
        "  frozen_stages: 0",
        "  neck: fpn",
        "  fpn_channels: 128",
        f"  anchors: {{sizes: [{anchors}], aspect_ratios: {plan.aspect_ratios}}}    # from the boxes after resizing",
        "  rpn: {hidden_channels: 128, pre_nms_top_n_train: 1000, post_nms_top_n_train: 500, pre_nms_top_n_test: 500, "
        "post_nms_top_n_test: 300}",
        "  box: {pool_size: 7, sampling_ratio: 2, fc_width: 512, batch_size_per_image: 128, smooth_l1_beta: 0.1111}",
    ]


def _given_model(model: dict[str, Any]) -> list[str]:
    text = yaml.safe_dump({"model": model}, default_flow_style=None, sort_keys=False, width=120)
    return text.splitlines()


def _source_line(source: SourceConfig) -> str:
    """One source as an item of a YAML list; JSON's texts are YAML's too."""
    values = source.model_dump(exclude_defaults=True)
    return f"    - {{{', '.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in values.items())}}}"


def in_minutes(minutes: float) -> str:
    """A duration as a person says it."""
    whole = max(1, round(minutes))
    return "a minute" if whole == 1 else f"{whole} minutes" if whole < 120 else f"{round(minutes / 60)} hours"


def training_command(config: Path, start: str | None) -> str:
    """What to type to train with a config, from a detector of the zoo or from random weights.

    Typed where this script was started, which need not be the checkout.
    """
    own = Path(sys.argv[0])
    script = own.with_name("train_det.py") if own.name == "init_data.py" else Path("tools/train_det.py")
    return f"python {shlex.quote(str(script))} --cfg {shlex.quote(str(config))}" + (
        f" --init-from {start}" if start else ""
    )
