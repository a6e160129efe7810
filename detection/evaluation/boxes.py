"""The two frames that evaluators count pixels in, and the exact ways between them. Float64 throughout.

| frame | box | where from |
|---|---|---|
| `voc` | xmin ymin xmax ymax, from 1, both ends inclusive: width = xmax - xmin + 1 | PASCAL VOC's files and rule |
| `coco` | x y width height, continuous, from 0 | COCO's files and rule |
| continuous | x1 y1 x2 y2, continuous, from 0 | the rest of this project (docs/architecture.md) |

A box keeps the numbers of its own file; it is converted only where the other frame's rule is applied to it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Frame = Literal["voc", "coco"]


def voc_to_coco(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) VOC boxes as COCO boxes: 1 is taken from xmin and ymin only."""
    corner = boxes[:, :2] - 1.0
    return np.concatenate((corner, boxes[:, 2:] - corner), axis=1)


def coco_to_voc(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) COCO boxes as VOC boxes."""
    return np.concatenate((boxes[:, :2] + 1.0, boxes[:, :2] + boxes[:, 2:]), axis=1)


def voc_to_continuous(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) VOC boxes as x1 y1 x2 y2 from 0."""
    return np.concatenate((boxes[:, :2] - 1.0, boxes[:, 2:]), axis=1)


def continuous_to_voc(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) x1 y1 x2 y2 from 0 as VOC boxes. Undoes `voc_to_continuous` to the last bit for coordinates >= 0.5."""
    return np.concatenate((boxes[:, :2] + 1.0, boxes[:, 2:]), axis=1)


def coco_to_continuous(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) COCO boxes as x1 y1 x2 y2."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def continuous_to_coco(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) x1 y1 x2 y2 as COCO boxes."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
