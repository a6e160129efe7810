"""What makes a detector faster without changing it: torch.compile by region, and CUDA graphs of whole detections and
whole training steps.

Compiled are the regions of a detector whose shapes are few: body and RPN head for each padded size of the images, conv5
for a fixed number of RoIs. What lies between them (proposals, sampling, RoIAlign, NMS) stays as it is: a whole detector
would break into dozens of graphs. A CUDA graph, in turn, holds all of a detection, or all of the forward and backward
pass of a step, for each padded size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backbones.compilation import GraphedStep, Graphs, with_fallback
from datasets.batch import Batch, map_tensors, tensors_of
from detection.model import Detector
from detection.postprocess import BatchDetections

if TYPE_CHECKING:  # it reads configs, which a machine with torch alone (tools/gpu_check.py) cannot
    from detection.inference import Inference


def compile_regions(detector: Detector) -> Detector:
    """The same detector, in place; parameters keep their names. Compilation takes place at the first call of each
    shape; what cannot be compiled runs as it is, and says so.

    Args:
        detector: to train, or (after `optimize_for_inference`) to detect.
    """
    head = detector.roi_heads.box_head
    regions = [(detector.backbone, "forward"), (detector.rpn.head, "forward"), (head, "forward")]
    regions += [(head, name) for name in ("before_pooling", "after_pooling") if hasattr(head, name)]
    for module, name in regions:
        setattr(module, name, with_fallback(getattr(module, name), f"{type(module).__name__}.{name}"))
    return detector


def graph_detections(model: Detector | Inference) -> Callable[[Batch], BatchDetections]:
    """The model's detections of a batch; on CUDA as one CUDA graph for each padded size and number of images.

    The model's weights stay where they are in memory as long as the function is used; their values may change. What
    cannot be captured runs as it is, and says so (`backbones.compilation.Graphs`).

    Args:
        model: in eval mode, all that is done at test with it.
    """
    graphs = Graphs("detection")

    def detect(batch: Batch) -> BatchDetections:
        # Ground truth takes no part, and comes in its own number of shapes.
        objects = {name: getattr(batch, name) for name in ("boxes", "labels", "valid")}
        none = {name: x.new_empty((len(x), 0, *x.shape[2:])) for name, x in objects.items()}
        batch = replace(batch, **none, index=batch.index.new_empty(0))

        def call(*tensors: Tensor) -> BatchDetections:
            found = model(_with_tensors(batch, tensors))
            assert isinstance(found, BatchDetections)
            return found

        return graphs(call, list(tensors_of(batch)), tuple(part is None for part in batch.scaled))

    return detect


def graphed_gradients(
    graphed: GraphedStep,
    losses: Callable[[Batch, Tensor], Mapping[str, Tensor]],
    batch: Batch,
    iteration: int,
    parts: int = 1,
) -> Mapping[str, Tensor]:
    """The losses of a batch, detached; the gradients of their sum / `parts` are added to those that the parameters
    have. On CUDA that is one CUDA graph for each padded size and padded number of objects.

    Losses, gradients and samples are those without graphs (`detection.sampling.Iteration`). Parameters and buffers stay
    where they are in memory as long as `graphed` is used; their values may change. What cannot be captured runs as it
    is, and says so (`backbones.compilation.Graphs`).

    Args:
        graphed: of the net's parameters.
        losses: name -> () loss, of a batch and a () int64 iteration on its device; in all calls the same.
        batch, iteration: what is learned from, and the number of the step.
        parts: batches that make up a step; in all calls the same.
    """

    def step(number: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        found = losses(_with_tensors(batch, tensors), number)
        total = sum(found.values())
        assert isinstance(total, Tensor), "there are losses"
        (total / parts).backward()
        return {name: loss.detach() for name, loss in found.items()}

    number = torch.full((), iteration, dtype=torch.int64, device=batch.images.device)
    return graphed(step, [number, *tensors_of(batch)])


def _with_tensors(batch: Batch, tensors: Iterable[Tensor]) -> Batch:
    """The batch with other tensors, in the order of `tensors_of`."""
    rest = iter(tensors)
    return map_tensors(batch, lambda _: next(rest))
