"""torch.compile for the regions of a detector whose shapes are few: body and RPN head for each padded size of the
images, conv5 for a fixed number of RoIs. What lies between them (proposals, sampling, RoIAlign, NMS) stays as it is: a
whole detector would break into dozens of graphs.
"""

from __future__ import annotations

from backbones.compilation import with_fallback
from detection.model import Detector


def compile_regions(detector: Detector, *, graphs: bool = False) -> Detector:
    """The same detector, in place; parameters keep their names. Compilation takes place at the first call of each
    shape; what cannot be compiled runs as it is, and says so.

    Args:
        detector: to train, or (after `optimize_for_inference`) to detect.
        graphs: for inference on CUDA: launch each region as one CUDA graph (latency at batch 1).
    """
    head = detector.roi_heads.box_head
    regions = [(detector.backbone, "forward"), (detector.rpn.head, "forward"), (head, "forward")]
    regions += [(head, name) for name in ("before_pooling", "after_pooling") if hasattr(head, name)]
    for module, name in regions:
        compiled = with_fallback(getattr(module, name), f"{type(module).__name__}.{name}", graphs=graphs)
        setattr(module, name, compiled)
    return detector
