"""The mode `infer` with `--exported`: exported files beside PyTorch, from uint8 images to detections as arrays.

All get the same resized and padded images, on the CPU, and include normalisation, NMS and thresholds. The reference,
`ours`, is this project's detector prepared for inference, as `Predictor` runs it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from backbones.weights import IMAGENET
from configs.detection import DetectionConfig, ModelConfig
from configs.errors import UserError
from datasets.images import read_image
from datasets.listing import list_images
from detection.checkpoint import load_detector
from detection.export import FORMATS, ExportGraph, Feed, describe, save_onnx, save_openvino, save_torch_export, trace
from detection.export_check import as_runner, compare_batches, made_up_image
from detection.exported import Answers, Runner, open_exported, prepare
from detection.model import Detector, build_detector
from tools.benchmarks.cases import Case, spread_weights
from tools.benchmarks.checks import resemblance
from tools.benchmarks.contestants import class_names
from tools.benchmarks.timing import compare

MOST_IMAGES = 8
"""Of a folder, for the timing."""
INT8 = "openvino_int8"
KINDS = (*FORMATS, INT8)
"""What can be made on the spot, in the place of a file."""


def run_exported(args: argparse.Namespace, case: Case, device: torch.device) -> dict[str, Any]:
    """`exported_mode` by the options of benchmark.py.

    Raises:
        UserError: they do not fit together.
    """
    if args.mode != "infer" or device.type != "cpu" or args.batch_size > 1 or args.amp != "none":
        raise UserError("--exported goes with infer on the CPU, one image at a time and without --amp")
    return exported_mode(
        args.exported, weights=args.weights, case=case, images=args.images, threads=args.threads,
        repetitions=args.repetitions, warmup=args.warmup,
    )  # fmt: skip


def exported_mode(
    names: Sequence[str],
    *,
    weights: Path | str | None,
    case: Case,
    images: Path | None,
    threads: int,
    repetitions: int,
    warmup: int,
) -> dict[str, Any]:
    """Seconds an image of exported files and of PyTorch, side by side, after a comparison of what they find.

    Args:
        names: files of `tools/export.py`, of a batch of one, made of `weights`; or `KINDS`, which are made here.
        weights: a detector's checkpoint; None: the case with random weights.
        case: the detector and its image size, without `weights`.
        images: a folder of photos to detect in; None: made-up pictures.
        threads: of each runtime.
        repetitions, warmup: how often.

    Raises:
        UserError: a file without 8-bit numbers differs from PyTorch, or one cannot be used.
    """
    files = [name for name in names if name not in KINDS]
    if files and weights is None:
        raise UserError(
            f"--exported {files[0]}: give the --weights that it was made of; without are {', '.join(KINDS)}"
        )
    detector, config = load_detector(weights) if weights else random_detector(case)
    metadata = describe(detector, config, 1)
    feeds = make_feeds(images, metadata["preprocessing"])
    graph = ExportGraph(detector, config)
    with tempfile.TemporaryDirectory(prefix="exported-") as folder:
        made = make_files([name for name in names if name in KINDS], graph, metadata, feeds, Path(folder))
        runners: dict[str, Runner] = {"ours": as_runner(graph)}
        report: dict[str, Any] = {"images": len(feeds), "differences": {}}
        expected = [runners["ours"](*feed) for feed in feeds]
        for name in names:
            path = made.get(name) or Path(name)
            key = name if name in made else path.name
            runners[key] = open_file(path, metadata, threads)
            report["differences"][key] = compare_outputs(path, runners[key], expected, feeds, config.test.score_thresh)
        works: dict[str, Callable[[], object]] = {name: turns(run, feeds) for name, run in runners.items()}
        report["seconds"] = compare(
            works, reference="ours", repetitions=repetitions, warmup=warmup, device=torch.device("cpu"),
            calls=len(feeds),
        )  # fmt: skip
    return report


def random_detector(case: Case) -> tuple[Detector, DetectionConfig]:
    """A case's detector with random weights, and a config that says so."""
    low, high = min(case.image_size), max(case.image_size)
    config = DetectionConfig.model_validate({
        "data": {"train": [], "test_min_size": low, "test_max_size": high},
        "model": case.section(),
        "test": case.test.model_dump(),
        "optim": {"lr": 0.001, "reference_batch_size": 1},
        "schedule": {"iterations": 1},
        "train": {"batch_size": 1},
    })  # fmt: skip
    model = ModelConfig.model_validate(case.section())
    detector = build_detector(model, class_names(case), test=case.test, preprocessing=IMAGENET).eval()
    spread_weights(detector)
    return detector, config


def make_feeds(images: Path | None, preprocessing: dict[str, Any]) -> list[Feed]:
    """Photos as graphs take them, one at a time; without a folder a made-up picture of the longest sides."""
    if images is None:
        return [prepare([made_up_image((preprocessing["min_size"], preprocessing["max_size"]), 0)], preprocessing, 1)]
    if not images.is_dir() or not (files := list_images(images)[:MOST_IMAGES]):
        raise UserError(f"--images {images}: there is no folder with images of this name")
    return [prepare([read_image(file)], preprocessing, 1) for file in files]


def make_files(
    kinds: Sequence[str], graph: ExportGraph, metadata: dict[str, Any], feeds: Sequence[Feed], folder: Path
) -> dict[str, Path]:
    """Kind -> a file of it, all of one trace; INT8 is fitted to `feeds`."""
    if not kinds:
        return {}
    warnings.filterwarnings("ignore", module="torch|torchvision|copyreg")  # about their own insides
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = trace(graph, metadata["preprocessing"]["pad_to_multiple"])
    onnx = folder / "onnx.onnx"
    if set(kinds) - {"torch_export"}:
        save_onnx(program, onnx, metadata)
    files = {"onnx": onnx}
    for kind in kinds:
        if kind == "torch_export":
            files[kind] = folder / "torch_export.pt2"
            save_torch_export(program, files[kind], metadata)
        elif kind != "onnx":
            files[kind] = folder / f"{kind}.xml"
            save_openvino(onnx, files[kind], metadata, feeds if kind == INT8 else None)
    return files


def open_file(path: Path, metadata: dict[str, Any], threads: int) -> Runner:
    """The function that a file is.

    Raises:
        UserError: it takes several images, or images of another size than the checkpoint's.
    """
    run, about = open_exported(path, threads)
    for key in ("batch", "preprocessing", "class_names"):
        if about[key] != metadata[key]:
            raise UserError(
                f"{path}: its {key} is not that of the weights and a batch of 1: export it again: python "
                "tools/export.py --weights ... (the same as here)"
            )
    return run


def compare_outputs(
    path: Path, run: Runner, expected: Sequence[Answers], feeds: Sequence[Feed], least: float
) -> dict[str, float]:
    """How far a file is from PyTorch on the images that are timed; `least` is the score threshold.

    Raises:
        UserError: it differs by more than rounding, and holds no 8-bit numbers, which would explain it.
    """
    answers = [run(*feed) for feed in feeds]
    found = compare_batches(expected, answers, feeds, least)
    if not found.detections:
        raise UserError(f"ours detects nothing: there is nothing to compare {path} with: give other --images")
    if not (found.within_tolerance or is_int8(path)):
        raise UserError(
            f"no ratio: {path} differs from PyTorch: boxes by {found.boxes:.3g} px, scores by {found.scores:.3g}, "
            f"{found.unmatched} of {found.detections} detections without a counterpart"
        )
    alike = resemblance([detected(each) for each in answers], [detected(each) for each in expected])
    return {**found._asdict(), "resembling_detections": alike}


def is_int8(path: Path) -> bool:
    """Whether OpenVINO computes with 8-bit numbers in a file."""
    return path.suffix == ".xml" and b'type="FakeQuantize"' in path.read_bytes()


def detected(answers: Answers) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What was found in the only image of a batch, as contestants give it."""
    keep = answers["valid"][0]
    boxes, scores, labels = (torch.from_numpy(answers[name][0][keep]) for name in ("boxes", "scores", "labels"))
    return boxes, scores, labels


def turns(run: Runner, feeds: Sequence[Feed]) -> Callable[[], Answers]:
    """A piece of work that takes the images in turn."""
    order = itertools.cycle(feeds)
    return lambda: run(*next(order))
