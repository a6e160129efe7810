"""Detectors as files that run without this project: ONNX, `torch.export` and OpenVINO.

A graph takes `images` (B, 3, H, W) uint8 RGB, resized and padded, and `image_sizes` (B, 2) int64, (H, W) without the
padding, and gives `boxes` (B, D, 4) float32 in pixels of those images, `scores` (B, D) float32, `labels` (B, D) int64
and `valid` (B, D) bool, best first. B is fixed; H and W are any multiples of the padding. An empty place of a batch has
the image size (0, 0), and no detections. Normalisation, NMS and thresholds are inside; resizing and padding are not.

Each file carries what it was made of as JSON (`describe`). Whether it says the same as PyTorch is found out by
`detection.export_check`.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.files import write_bytes
from datasets.batch import Batch
from detection.inference import Inference
from detection.model import FPN_STRIDES, Detector

INPUTS = ("images", "image_sizes")
OUTPUTS = ("boxes", "scores", "labels", "valid")
FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "openvino": ".xml"}
"""Format -> how its files' names end."""
METADATA = "detector"
"""The key of the JSON in an ONNX file's metadata, a `torch.export` archive's extra files and OpenVINO's rt_info."""
OPSET = 18
Feed = tuple[np.ndarray, np.ndarray]
"""A batch as the graph takes it: `images` and `image_sizes`."""
LOWEST = -1e30
"""Stands for minus infinity among scores: OpenVINO and ONNX Runtime differ about the infinite."""
MOST_PIXELS = 8192
"""The longest side; some bound is needed."""


class ExportGraph(nn.Module):
    """What is exported: a detector, with everything that `test` in its config asks for, from tensors to tensors.

    Args:
        detector: in eval mode; it is prepared for inference, in place.
        config: of its checkpoint.

    Raises:
        UserError: the config looks at images in several sizes, of which the graph gets one.
    """

    def __init__(self, detector: Detector, config: DetectionConfig) -> None:
        super().__init__()
        if config.test.scales or config.test.tta.scales:
            raise UserError(
                "test.scales and test.tta.scales: an exported graph sees an image in one size: set them to []"
            )
        detector.optimize_for_inference()
        self.inference = Inference([detector], config.test).eval()

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """boxes, scores, labels, valid of the graph (see the module's docstring)."""
        nothing = torch.zeros(len(images), 0, device=images.device)
        batch = Batch(images, image_sizes, image_sizes, nothing[..., None].expand(-1, -1, 4), nothing, nothing, nothing)
        boxes, scores, labels, valid = self.inference(batch)
        # An empty place has sizes of 0, by which boxes were divided.
        return torch.where(valid[..., None], boxes, 0.0), scores, labels, valid


def trace(graph: ExportGraph, multiple: int, batch: int = 1) -> ExportedProgram:
    """The graph as `torch.export` sees it, with operators of PyTorch and torchvision, and our NMS.

    Args:
        graph: on the CPU.
        multiple: H and W are multiples of this.
        batch: B.
    """
    least = least_side(multiple) // multiple
    height, width = (multiple * Dim(name, min=least, max=MOST_PIXELS // multiple) for name in ("rows", "columns"))
    images = torch.zeros(batch, 3, least * multiple, (least + 1) * multiple, dtype=torch.uint8)
    sizes = torch.tensor([images.shape[2:]] * batch)
    shapes = {"images": {2: height, 3: width}, "image_sizes": None}
    with torch.no_grad():
        return torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)


def least_side(multiple: int) -> int:
    """The smallest H and W of a graph: more than P6's stride, or P6 would be one pixel wide, and taken for constant."""
    return max(2, FPN_STRIDES[-1] * 2 // multiple + 1) * multiple


# ---------------------------------------------------------------------------------------------- NMS


def _nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float, max_output: int,
    is_sorted: bool = False,
) -> Tensor:  # fmt: skip
    """`detection::nms` by torchvision's operator: groups are moved apart, in float64, which loses no digit of boxes.

    Boxes that do not take part come last in the order, as a group of their own.
    """
    images = []
    far = boxes.amax((1, 2), keepdim=True).double() + 1.0
    group = torch.where(valid, groups + 1, 0)
    moved = boxes.double() + group[..., None] * far
    ranked = torch.where(valid, scores, LOWEST)
    for image in range(boxes.shape[0]):
        kept = torchvision.ops.nms(moved[image], ranked[image].double(), iou_threshold)
        kept = torch.where(valid[image][kept], kept, -1)
        images.append(torch.cat((kept, kept.new_full((max_output,), -1)))[:max_output])
    return torch.stack(images)


def _onnx_nms() -> Callable[..., Any]:
    """`detection::nms` by ONNX's NonMaxSuppression with each group as a class, and a TopK that fixes the size."""
    op = optional("onnxscript").opset18

    def translation(
        boxes: Any, scores: Any, valid: Any, groups: Any, iou_threshold: float, max_output: int, is_sorted: bool = False
    ) -> Any:
        lowest = op.Constant(value_float=LOWEST)
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        count = op.Add(op.ReduceMax(groups, keepdims=0), one)
        classes = op.Unsqueeze(op.Range(zero, count, one), op.Constant(value_ints=[0, 2]))
        member = op.And(op.Equal(op.Unsqueeze(groups, [1]), classes), op.Unsqueeze(valid, [1]))
        by_class = op.Where(member, op.Unsqueeze(scores, [1]), lowest)
        chosen = op.NonMaxSuppression(
            boxes,
            by_class,
            op.Constant(value_ints=[max_output]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[LOWEST / 2]),
        )
        survivors = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        nothing = op.Expand(lowest, op.Shape(scores))
        ranked = op.ScatterND(nothing, survivors, op.GatherND(scores, survivors))
        padding = op.Constant(value_ints=[0, 0, 0, max_output])
        best, index = op.TopK(op.Pad(ranked, padding, lowest), op.Constant(value_ints=[max_output]))
        return op.Where(op.Greater(best, op.Constant(value_float=LOWEST / 2)), index, op.Constant(value_int=-1))

    return translation


def _onnx_roi_pool() -> Callable[..., Any]:
    """`torchvision::roi_pool`: the translation that comes with onnxscript takes other arguments than the operator."""
    op = optional("onnxscript").opset18

    def translation(feature: Any, rois: Any, scale: float, height: int, width: int) -> Any:
        pooled = op.MaxRoiPool(feature, rois, pooled_shape=(height, width), spatial_scale=scale)
        return pooled, pooled  # the operator also says where each maximum was; nobody asks

    return translation


# ---------------------------------------------------------------------------------------------- files


def describe(
    detector: Detector,
    config: DetectionConfig,
    batch: int,
    card: Mapping[str, str] | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """What a file tells about itself, as plain values: how images are prepared, what its labels mean, its origin.

    Args:
        detector, config: what is exported.
        batch: images that the graph takes at a time.
        card: what is known of the weights (source, licence).
        precision: of the net's layers: float32, or int8.
    """
    data, test = config.data, config.test
    return {
        "class_names": list(detector.class_names),
        "labels": "label k, from 1, is class_names[k - 1]",
        "batch": batch,
        "preprocessing": {
            "channels": "RGB, uint8; normalised inside",
            "resize": "bilinear without antialiasing, sides rounded half up",
            "min_size": data.test_min_size,
            "max_size": data.test_max_size,
            "pad_to_multiple": data.size_divisor,
            "padding": "zeros, right and below",
            "least_side": least_side(data.size_divisor),
            "inside": detector.preprocessing.to_dict(),
        },
        "thresholds": {
            "score": test.score_thresh,
            "nms": test.refine_nms_thresh if test.refine_rounds else test.nms_thresh,
            "detections_per_img": test.detections_per_img,
        },
        "model": {
            "backbone": config.model.backbone if isinstance(config.model.backbone, str) else "described in the config",
            "neck": config.model.neck,
            "pool": config.model.box.pool,
            "precision": precision,
        },
        "card": dict(card or {}),
        "torch": torch.__version__,
    }


def model_card(metadata: Mapping[str, Any], name: str, check: Mapping[str, Any]) -> str:
    """A page in Markdown about a file: what it finds, how it is fed, where it comes from, how it was checked.

    Args:
        metadata: of `describe`.
        name: the file's.
        check: figure -> value, of the comparison with PyTorch.
    """
    classes = ", ".join(map(_cell, metadata["class_names"]))
    thresholds = {f"threshold: {key}": value for key, value in metadata["thresholds"].items()}
    sections = {
        "Origin": metadata["card"],
        "Model": {
            **metadata["model"], **thresholds, "images in a batch": metadata["batch"], "torch": metadata["torch"],
        },
        "Images": {key: value for key, value in metadata["preprocessing"].items() if key != "inside"},
        "Compared with PyTorch": check,
    }  # fmt: skip
    page = [f"# {_cell(name)}", f"An object detector (Faster R-CNN) that finds: {classes}."]
    for title, rows in sections.items():
        page += ["", f"## {title}", "| | |", "|---|---|"]
        page += [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(page) + "\n"


def _cell(value: Any) -> str:
    value = f"{value:.3g}" if isinstance(value, float) else value
    return " ".join(str(value).split()).replace("|", "\\|")


def save_torch_export(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Write a `.pt2` archive; to run it, torchvision must be imported, whose operators it uses."""
    with torch.no_grad():
        program = program.run_decompositions({torch.ops.detection.nms.default: _nms})
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={f"{METADATA}.json": json.dumps(metadata)})
    write_bytes(path, archive.getvalue())


def save_onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    """Write an `.onnx` file of standard operators.

    Raises:
        UserError: onnx and onnxscript are not installed, or the model is larger than the 2 GB of a file.
    """
    onnx = optional("onnx", "onnxscript")
    table: dict[Callable[..., Any], Any] = {
        torch.ops.detection.nms.default: _onnx_nms(),
        torch.ops.torchvision.roi_pool.default: _onnx_roi_pool(),
    }
    exported = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=INPUTS, output_names=OUTPUTS,
        custom_translation_table=table, verbose=False,
    )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    write_bytes(path, model.SerializeToString())


def save_openvino(onnx_file: Path, path: Path, metadata: dict[str, Any], images: Iterable[Feed] | None = None) -> None:
    """Write an OpenVINO model, `.xml` and `.bin`, from the ONNX file.

    Args:
        onnx_file: of `save_onnx`.
        path: ends with .xml.
        metadata: of `describe`.
        images: to calibrate INT8 with, by NNCF; None: the weights stay float32.

    Raises:
        UserError: openvino (with images: nncf) is not installed.
    """
    openvino = optional("openvino")
    model = openvino.convert_model(onnx_file)
    if images is not None:
        nncf = optional("nncf")
        nncf.set_log_level(logging.WARNING)  # else a line for each operation that stays as it is
        feeds = [dict(zip(INPUTS, feed, strict=True)) for feed in images]
        exact = nncf.IgnoredScope(names=_not_of_the_net(model), validate=False)
        model = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds), ignored_scope=exact)
    model.set_rt_info(json.dumps(metadata), METADATA)
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)


def _not_of_the_net(model: Any) -> list[str]:
    """Operations that are no layers, by name: of coordinates and scores 8 bits would leave too little.

    Layers are what is computed of the images as maps (B, C, H, W) all the way, RoIs' maps among them, and what is fully
    connected.
    """
    maps, rest = {INPUTS[0]}, []
    for each in model.get_ordered_ops():
        name, kind = each.get_friendly_name(), each.get_type_name()
        of_maps = any(value.get_node().get_friendly_name() in maps for value in each.input_values())
        if of_maps and each.get_output_size() and len(each.get_output_partial_shape(0)) == 4:
            maps.add(name)
        elif kind not in ("MatMul", "Constant", "Parameter", "Result"):
            rest.append(name)
    return rest


def optional(*names: str) -> Any:
    """The first of some packages that an export needs, and that may not be installed.

    Raises:
        UserError: one of them is not; says how to install it.
    """
    try:
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        missing = error.name or names[0]
        raise UserError(f"this export needs the package {missing}: pip install -e .[export]") from error
    return modules[0]
