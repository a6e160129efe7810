"""Whether an exported file says what PyTorch says, at several sizes and of images without detections."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.files import write_text
from datasets.resize import resize_image
from detection.export import OUTPUTS, ExportGraph, Feed, model_card, save_onnx, save_openvino, save_torch_export, trace
from detection.exported import Answers, Runner, open_exported, stack
from detection.model import Detector

BOX_TOLERANCE, SCORE_TOLERANCE = 1e-2, 1e-4
"""Pixels and probability: float32 in another order of summation stays far below."""


class Differences(NamedTuple):
    """The largest differences over all detections that were compared."""

    detections: int
    """That PyTorch gave."""
    unmatched: int
    """That one of the two gave and the other did not, though their scores are not at a limit."""
    boxes: float
    """Pixels."""
    scores: float

    @property
    def within_tolerance(self) -> bool:
        return not self.unmatched and self.boxes <= BOX_TOLERANCE and self.scores <= SCORE_TOLERANCE


def made_up_image(size: tuple[int, int], seed: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: rectangles of all sizes and colours on a gradient, in which detectors find something."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.linspace(60, 200, width, dtype=np.uint8)[None, :, None]
    for _ in range(30):
        h, w = (rng.uniform(0.05, 0.5, 2) * size).astype(int) + 1
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return image


def check_feeds(metadata: dict[str, Any], photos: Sequence[np.ndarray] = ()) -> list[Feed]:
    """What an exported file is checked with: batches of three sizes, and one without anything in it.

    Args:
        metadata: of `detection.export.describe`.
        photos: (H, W, 3) uint8 RGB, of which the batches are made; without any, made-up images.
    """
    preprocessing, batch = metadata["preprocessing"], metadata["batch"]
    low, high, step = (preprocessing[key] for key in ("min_size", "max_size", "pad_to_multiple"))
    low, high = (max(side, preprocessing["least_side"]) for side in (low, high))
    feeds = []
    # Three different sizes whatever the padding makes of them.
    for k, (height, width) in enumerate([(low, high), (high + step, low), (low + step, low + 2 * step)]):
        images = [made_up_image((height, max(1, width - 9 * n)), 10 * k + n) for n in range(batch)]
        if photos:
            chosen = [photos[(k * batch + n) % len(photos)] for n in range(batch)]
            images = [resize_image(photo, image.shape[:2]) for photo, image in zip(chosen, images, strict=True)]
        feeds.append(stack(images, preprocessing, batch))
    height, width = feeds[0][0].shape[2:]
    feeds.append((np.zeros((batch, 3, height, width), np.uint8), np.zeros((batch, 2), np.int64)))
    return feeds


# ---------------------------------------------------------------------------------------------- comparison


def as_runner(graph: ExportGraph) -> Runner:
    """PyTorch in the form of an exported file."""

    @torch.no_grad()
    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        values = graph(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}

    return run


def check(run: Runner, graph: ExportGraph, feeds: Sequence[Feed]) -> Differences:
    """How far a file's answers to some batches are from PyTorch's.

    Raises:
        UserError: an output has another shape or dtype, or of an empty image something was found.
    """
    ours = as_runner(graph)
    expected, answers = ([each(*feed) for feed in feeds] for each in (ours, run))
    return compare_batches(expected, answers, feeds, graph.inference.test.score_thresh)


def compare_batches(
    expected: Sequence[Answers], answers: Sequence[Answers], feeds: Sequence[Feed], least: float
) -> Differences:
    """PyTorch's and a file's answers to some batches.

    Args:
        expected, answers: of each batch.
        feeds: the batches.
        least: the score threshold.

    Raises:
        UserError: an output has another shape or dtype, or of an empty image something was found.
    """
    total = Differences(0, 0, 0.0, 0.0)
    for ours, theirs, feed in zip(expected, answers, feeds, strict=True):
        _check_form(theirs, ours, feed)
        for image in range(len(feed[0])):
            one = compare(_of_image(ours, image), _of_image(theirs, image), least)
            total = Differences(
                total.detections + one.detections,
                total.unmatched + one.unmatched,
                max(total.boxes, one.boxes),
                max(total.scores, one.scores),
            )
    return total


def _of_image(answers: Answers, image: int) -> Answers:
    return {name: part[image] for name, part in answers.items()}


def _check_form(answers: Answers, expected: Answers, feed: Feed) -> None:
    shape = "x".join(map(str, feed[0].shape))
    for name, value in expected.items():
        got = answers[name]
        if got.shape[:1] + got.shape[2:] != value.shape[:1] + value.shape[2:] or got.dtype != value.dtype:
            raise UserError(
                f"the exported file gives {name} as {got.shape} {got.dtype} for images of {shape}, PyTorch "
                f"{value.shape} {value.dtype}: report this, with the versions of the runtime and of torch"
            )
    empty = feed[1].sum(1) == 0
    if answers["valid"][empty].any():
        raise UserError(f"the exported file finds something in an empty image of {shape}: do not use it")


def compare(expected: Answers, answers: Answers, least: float) -> Differences:
    """One image's two answers, detection by detection; order among equal scores is free.

    Args:
        expected, answers: (D, ...) each.
        least: the score threshold, at which a detection may fall on either side, as at the end of a full list.
    """
    ours, theirs = (
        {name: part[side["valid"]] for name, part in side.items()} for side in (expected, answers)
    )  # fmt: skip
    limits = [least] + [s["scores"].min() for s in (ours, theirs) if len(s["scores"]) == len(expected["valid"])]
    unmatched, box_difference, score_difference = 0, 0.0, 0.0
    free = np.ones(len(theirs["scores"]), bool)
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        distance = np.abs(theirs["boxes"] - box).max(1) + np.abs(theirs["scores"] - score)
        distance[~free | (theirs["labels"] != label)] = np.inf
        best = int(distance.argmin()) if len(distance) else -1
        if best < 0 or distance[best] > 1.0:
            unmatched += min(abs(score - limit) for limit in limits) > SCORE_TOLERANCE
            continue
        free[best] = False
        box_difference = max(box_difference, float(np.abs(theirs["boxes"][best] - box).max()))
        score_difference = max(score_difference, float(abs(theirs["scores"][best] - score)))
    unmatched += sum(min(abs(score - limit) for limit in limits) > SCORE_TOLERANCE for score in theirs["scores"][free])
    return Differences(len(ours["scores"]), int(unmatched), box_difference, score_difference)


# ---------------------------------------------------------------------------------------------- the whole


def export_detector(
    detector: Detector,
    config: DetectionConfig,
    metadata: dict[str, Any],
    kind: str,
    path: Path,
    calibration: Sequence[Feed] | None = None,
    photos: Sequence[np.ndarray] = (),
) -> Differences:
    """Write a detector's file and its model card, if the file says what PyTorch says; returns how far it is away.

    Args:
        detector: on the CPU, in eval mode; it is prepared for inference, in place.
        config: of its checkpoint.
        metadata: of `describe`.
        kind: a key of `detection.export.FORMATS`.
        path: the file.
        calibration: OpenVINO: batches to fit INT8 to; its differences are then returned, whatever they are.
        photos: what the check looks at; without any, made-up images.

    Raises:
        UserError: the file differs from PyTorch (nothing is written), a package is missing, or the config cannot be
            exported.
    """
    graph = ExportGraph(detector, config)
    program = trace(graph, metadata["preprocessing"]["pad_to_multiple"], metadata["batch"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export") as folder:
        made = Path(folder) / path.name
        if kind == "torch_export":
            save_torch_export(program, made, metadata)
        else:
            save_onnx(program, made.with_suffix(".onnx"), metadata)
        if kind == "openvino":
            save_openvino(made.with_suffix(".onnx"), made, metadata, calibration)
            made.with_suffix(".onnx").unlink()
        run, _ = open_exported(made)
        found = check(run, graph, check_feeds(metadata, photos))
        if not (found.within_tolerance or calibration is not None):
            raise UserError(
                f"{path}: not written: it differs from PyTorch: boxes by {found.boxes:.3g} px (limit {BOX_TOLERANCE}), "
                f"scores by {found.scores:.3g} (limit {SCORE_TOLERANCE}), {found.unmatched} of {found.detections} "
                "detections without a counterpart"
            )
        for file in Path(folder).iterdir():
            file.replace(path.with_name(file.name))
    write_text(path.with_name(f"{path.name}.md"), model_card(metadata, path.name, found._asdict()))
    return found
