"""What the paper's full trainings would cost on GPUs: counted work, and assumptions that the output states.

    python tools/benchmarks/full_runs.py --out docs/results/full_runs.json

Of each config one training step is counted on fake tensors: its FLOPs, and the seconds that it takes at least
(`roofline.py`: of each operator the larger of arithmetic and memory traffic). Nothing is computed or measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from backbones.classification import build_classifier
from configs.classification import ClassificationConfig
from configs.common import ScheduleConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.class_lists import CLASS_LISTS
from tools.benchmarks.cases import Case
from tools.benchmarks.counting import count, make_fake
from tools.benchmarks.detectors import fake_work
from tools.benchmarks.report import environment
from tools.benchmarks.roofline import PEAK_BYTES, PEAK_FLOPS, roofline_seconds
from tools.runtime import cli
from tools.runtime.run_folder import write_json

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = ("frcnn_r101_voc", "frcnn_r101_coco")
CLASSIFIERS = ("imagenet_resnet101",)
IMAGES_A_STEP = {"detector": 16, "classifier": 32}
"""On each GPU. The configs' own steps are smaller than 16 GPUs can share; the number of images is theirs."""
SHARE = {"detector": (0.45, 0.27), "classifier": (0.22, 0.10)}
"""Of the roofline that is reached, at best and at worst. Classifiers train their batch norm, whose passes over the maps
the roofline leaves out."""
SCALING = {1: 1.0, 8: 0.95, 16: 0.90}
"""GPUs -> the share of their time that is not spent in waiting for each other."""
ASSUMPTIONS = [
    f"GPUs with {PEAK_FLOPS / 1e12:.0f} TFLOP/s in bf16 and {PEAK_BYTES / 1e12:.1f} TB/s "
    "(an H200; measured by others); "
    "bf16 throughout.",
    f"{SHARE['detector'][0]:.0%} to {SHARE['detector'][1]:.0%} of the roofline is reached by detectors, "
    f"{SHARE['classifier'][0]:.0%} to {SHARE['classifier'][1]:.0%} by classifiers, which train their batch norm too: "
    "an assumption: none of these runs was made.",
    f"Steps of {IMAGES_A_STEP['detector']} images a GPU for detectors and {IMAGES_A_STEP['classifier']} for "
    "classifiers, as many images as the config's schedule has.",
    f"{SCALING[8]:.0%} efficiency on 8 GPUs and {SCALING[16]:.0%} on 16.",
    "Loading keeps up; validations, tests and pretraining of the detectors' backbones are not counted.",
]


def main(args: argparse.Namespace) -> None:
    costs = [cost_of(name, SHARE["detector"], *detector_step(name)) for name in DETECTORS]
    costs += [cost_of(name, SHARE["classifier"], *classifier_step(name)) for name in CLASSIFIERS]
    for each in costs:
        low, high = each["gpu_hours"]
        print(f"{each['config']:<24}{each['images']:>12,} images  {low:.1f} to {high:.1f} GPU-hours")
    print("\n".join(f"- {line}" for line in ASSUMPTIONS))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        described = environment(torch.device("cpu"), [])
        write_json(args.out, {"environment": described, "assumptions": ASSUMPTIONS, "costs": costs})


def cost_of(name: str, shares: tuple[float, float], images: int, tflop: float, seconds: float) -> dict[str, Any]:
    """A config's cost.

    Args:
        name: the config.
        shares: of the roofline that are reached, at best and at worst.
        images: that its training sees.
        tflop: of a training step, for each image.
        seconds: of an image at least, by the roofline.
    """
    hours = [images * seconds / share / 3600 for share in shares]
    on = {str(gpus): [each / gpus / efficiency for each in hours] for gpus, efficiency in SCALING.items()}
    return {
        "config": name,
        "images": images,
        "tflop_per_image": tflop,
        "roofline_ms_per_image": 1000 * seconds,
        "gpu_hours": hours,
        "hours": on,
    }


def detector_step(name: str) -> tuple[int, float, float]:
    """Images of the whole training, TFLOP and seconds an image."""
    config = load_config(ROOT / f"configs/{name}.yaml", (), DetectionConfig)
    classes = config.data.classes
    names = CLASS_LISTS[classes] if isinstance(classes, str) else classes
    side = config.data.min_size
    size = (max(side) if isinstance(side, list) else side, config.data.max_size)
    case = Case(name, config.model.model_dump(mode="json", exclude={"weights"}), size, len(names), config.test)
    batch_size = IMAGES_A_STEP["detector"]
    mode, work = fake_work(case, batch_size, "bf16", training=True)
    return (images_of(name, config.schedule, config.train.batch_size), *counted(mode, work, batch_size))


def classifier_step(name: str) -> tuple[int, float, float]:
    """The same of a classifier with 1,000 classes."""
    config = load_config(ROOT / f"configs/{name}.yaml", (), ClassificationConfig)
    batch_size, side = IMAGES_A_STEP["classifier"], config.data.crop_size
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    net = make_fake(build_classifier(config.model, 1000).train(), mode)
    with mode:
        images = torch.empty(batch_size, 3, side, side)
        labels = torch.zeros(batch_size, dtype=torch.int64)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()

    return (images_of(name, config.schedule, config.train.batch_size), *counted(mode, work, batch_size))


def images_of(name: str, schedule: ScheduleConfig, batch_size: int) -> int:
    """Images that a training sees.

    Raises:
        UserError: the schedule counts epochs, and the data are not here to count.
    """
    if schedule.iterations is None:
        raise UserError(f"{name}: give schedule.iterations: the images of an epoch are not known here")
    return schedule.iterations * batch_size


def counted(mode: FakeTensorMode, work: Callable[[], object], images: int) -> tuple[float, float]:
    """TFLOP and seconds an image of one step, counted."""
    with mode:
        flops = count(work).flops
        assert flops is not None
        return flops / images / 1e12, roofline_seconds(work) / images


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON here too")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
