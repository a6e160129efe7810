"""What makes a detector faster without changing it: torch.compile by region, and CUDA graphs of whole detections.

Compiled are the regions of a detector whose shapes are few: body and RPN head for each padded size of the images, conv5
for a fixed number of RoIs. What lies between them (proposals, sampling, RoIAlign, NMS) stays as it is: a whole detector
would break into dozens of graphs. A CUDA graph, in turn, holds all of a detection, for each padded size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from backbones.compilation import Graphs, with_fallback
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
            rest = iter(tensors)
            found = model(map_tensors(batch, lambda _: next(rest)))
            assert isinstance(found, BatchDetections)
            return found

        return graphs(call, list(tensors_of(batch)), tuple(part is None for part in batch.scaled))

    return detect
