"""Exported files as functions and in a detector's place, and images as they take them."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.detection import DataConfig
from configs.errors import UserError
from datasets.batch import Batch, stack_images
from datasets.padding import padded_size
from datasets.resize import resize_image, resized_size
from detection.export import FORMATS, INPUTS, METADATA, OUTPUTS, Feed, optional
from detection.postprocess import BatchDetections, to_original

Answers = dict[str, np.ndarray]
"""Output name -> array, see `detection.export`."""
Runner = Callable[[np.ndarray, np.ndarray], Answers]
"""From `images` and `image_sizes` to answers."""


def open_exported(path: Path, threads: int | None = None) -> tuple[Runner, dict[str, Any]]:
    """The function that an exported file is, on the CPU, and what the file says of itself.

    Args:
        path: of `tools/export.py`.
        threads: that ONNX Runtime or OpenVINO may use; None: as many as they like. PyTorch uses its own number.

    Raises:
        UserError: the name's end is none of the formats', the runtime is not installed, or the file is damaged or not
            of `tools/export.py`.
    """
    openers: dict[str, Callable[[Path, int | None], tuple[Runner, dict[str, Any]]]] = {
        ".onnx": _open_onnx, ".pt2": _open_torch_export, ".xml": _open_openvino,
    }  # fmt: skip
    if not is_exported(path):
        raise UserError(f"{path}: an exported file ends with {', '.join(openers)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    damaged = f"{path}: cannot be opened: it is damaged or lacks a part (a .xml its .bin beside it): export it again"
    if path.suffix == ".pt2" and not zipfile.is_zipfile(path):  # torch would log a traceback
        raise UserError(damaged)
    try:
        return openers[path.suffix](path, threads)
    except UserError:
        raise
    except Exception as error:  # each runtime has classes of its own
        raise UserError(damaged) from error


def is_exported(path: Path | str) -> bool:
    """Whether a name is that of an exported file."""
    return Path(path).suffix in FORMATS.values()


def _open_onnx(path: Path, threads: int | None) -> tuple[Runner, dict[str, Any]]:
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        feed = dict(zip(INPUTS, (images, image_sizes), strict=True))
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feed), strict=True))

    return run, _metadata(session.get_modelmeta().custom_metadata_map.get(METADATA), path)


def _open_torch_export(path: Path, threads: int | None) -> tuple[Runner, dict[str, Any]]:
    extra = {f"{METADATA}.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch's own, of how it reads the file
        module = torch.export.load(path, extra_files=extra).module()

    @torch.no_grad()
    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        values = module(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}

    return run, _metadata(extra[f"{METADATA}.json"], path)


def _open_openvino(path: Path, threads: int | None) -> tuple[Runner, dict[str, Any]]:
    openvino = optional("openvino")
    model = openvino.Core().read_model(path)
    # Of its own accord OpenVINO takes bfloat16 where the processor has it.
    options = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = openvino.compile_model(model, "CPU", options)

    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        values = compiled(dict(zip(INPUTS, (images, image_sizes), strict=True)))
        return {name: values[name] for name in OUTPUTS}

    known = model.has_rt_info([METADATA])
    return run, _metadata(str(model.get_rt_info([METADATA]).astype(str)) if known else None, path)


def _metadata(text: str | None, path: Path) -> dict[str, Any]:
    if not text:
        raise UserError(f"{path}: says nothing of classes and sizes: it is not a file of tools/export.py")
    return json.loads(text)


def prepare(images: Sequence[np.ndarray], preprocessing: dict[str, Any], batch: int) -> Feed:
    """Images (H, W, 3) uint8 RGB resized and padded as a graph takes them, at most `batch`; further places are empty.

    Args:
        images: some.
        preprocessing: of `detection.export.describe`.
        batch: B of the graph.
    """
    sizes = [resized_size(image.shape[:2], preprocessing["min_size"], preprocessing["max_size"]) for image in images]
    return stack([resize_image(image, size) for image, size in zip(images, sizes, strict=True)], preprocessing, batch)


def stack(images: Sequence[np.ndarray], preprocessing: dict[str, Any], batch: int) -> Feed:
    """The same of images that have their sizes already."""
    sizes = np.zeros((batch, 2), np.int64)
    sizes[: len(images)] = [image.shape[:2] for image in images]
    padded = padded_size(tuple(sizes.max(0)), preprocessing["pad_to_multiple"])
    height, width = (max(side, preprocessing["least_side"]) for side in padded)
    empty = [np.zeros((1, 1, 3), np.uint8)] * (batch - len(images))
    return np.ascontiguousarray(stack_images([*images, *empty], (height, width)).numpy()), sizes


class ExportedDetector(nn.Module):
    """An exported file in the place of a detector over a data set: batches in, detections out.

    Args:
        path: of `tools/export.py`.
        data: a config's section, whose images' sizes must be the file's; None: any will do.

    Attributes:
        data: the sizes that the file was made for, as a config's section.

    Raises:
        UserError: the file cannot be opened, or was made for other sizes.
    """

    scales = ()
    """It sees an image in one size (see `detection.inference.Inference`)."""

    def __init__(self, path: Path, data: DataConfig | None = None) -> None:
        super().__init__()
        self.run, about = open_exported(path)
        self.batch: int = about["batch"]
        self.class_names: list[str] = about["class_names"]
        self.thresholds: dict[str, float] = about["thresholds"]
        sizes = about["preprocessing"]
        self.least: int = sizes["least_side"]
        self.data = DataConfig(
            train=[], test_min_size=sizes["min_size"], test_max_size=sizes["max_size"],
            size_divisor=sizes["pad_to_multiple"],
        )  # fmt: skip
        for key in ("test_min_size", "test_max_size", "size_divisor") if data is not None else ():
            own, wanted = getattr(self.data, key), getattr(data, key)
            if own != wanted:
                raise UserError(
                    f"{path}: was made for {key} {own}, the config's data section says {wanted}: make them equal"
                )

    def forward(self, batch: Batch) -> BatchDetections:
        """Boxes in pixels of the original images, scores and labels, by the file's own thresholds."""
        images, sizes = batch.images.numpy(), batch.image_sizes.numpy()
        count = -(-len(images) // self.batch) * self.batch
        room = [max(side, self.least) for side in images.shape[2:]]
        padded = np.zeros((count, 3, *room), np.uint8)
        padded[: len(images), :, : images.shape[2], : images.shape[3]] = images
        sizes = np.concatenate((sizes, np.zeros((count - len(images), 2), np.int64)))
        answers = [self.run(padded[at : at + self.batch], sizes[at : at + self.batch])
                   for at in range(0, count, self.batch)]  # fmt: skip
        joined = (torch.from_numpy(np.concatenate([each[name] for each in answers])) for name in OUTPUTS)
        found = BatchDetections(*(values[: len(images)] for values in joined))
        return to_original(found, batch.image_sizes, batch.original_sizes)
