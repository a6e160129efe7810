"""Exported files as functions, and images as they take them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import UserError
from datasets.batch import stack_images
from datasets.resize import resize_image, resized_size
from datasets.samplers import padded_size
from detection.export import INPUTS, METADATA, OUTPUTS, Feed, optional

Answers = dict[str, np.ndarray]
"""Output name -> array, see `detection.export`."""
Runner = Callable[[np.ndarray, np.ndarray], Answers]
"""From `images` and `image_sizes` to answers."""


def open_exported(path: Path) -> tuple[Runner, dict[str, Any]]:
    """The function that an exported file is, on the CPU, and what the file says of itself.

    Raises:
        UserError: the name's end is none of the formats', the runtime is not installed, or the file is not of
            `tools/export.py`.
    """
    openers = {".onnx": _open_onnx, ".pt2": _open_torch_export, ".xml": _open_openvino}
    if path.suffix not in openers:
        raise UserError(f"{path}: an exported file ends with {', '.join(openers)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return openers[path.suffix](path)


def _open_onnx(path: Path) -> tuple[Runner, dict[str, Any]]:
    runtime = optional("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        feed = dict(zip(INPUTS, (images, image_sizes), strict=True))
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feed), strict=True))

    return run, _metadata(session.get_modelmeta().custom_metadata_map.get(METADATA), path)


def _open_torch_export(path: Path) -> tuple[Runner, dict[str, Any]]:
    extra = {f"{METADATA}.json": ""}
    module = torch.export.load(path, extra_files=extra).module()

    @torch.no_grad()
    def run(images: np.ndarray, image_sizes: np.ndarray) -> Answers:
        values = module(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}

    return run, _metadata(extra[f"{METADATA}.json"], path)


def _open_openvino(path: Path) -> tuple[Runner, dict[str, Any]]:
    openvino = optional("openvino")
    model = openvino.Core().read_model(path)
    # Of its own accord OpenVINO takes bfloat16 where the processor has it.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

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
