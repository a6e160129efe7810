"""The detections of one image, and how those of a batch on the device become them, with one copy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from configs.errors import UserError
from detection.postprocess import BatchDetections


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The detections of one image, best first."""

    boxes: np.ndarray
    """(N, 4) float32 x1 y1 x2 y2 in pixels of the original image, continuous, from 0."""
    scores: np.ndarray
    """(N,) float32 in [0, 1]."""
    labels: np.ndarray
    """(N,) int64 in 1..K."""
    class_names: Sequence[str] = ()
    """K names: label k is class_names[k - 1]."""
    name: str = ""
    """What results call the image: its path from the folder that was given, or its file's name."""
    path: str | None = None
    """The image's file or address; a video's for its frames; None for images that were given as pixels."""
    image_size: tuple[int, int] | None = None
    """(H, W) of the original image."""
    frame: int | None = None
    """Position in a video, from 0."""
    pixels: np.ndarray | None = None
    """(H, W, 3) uint8 RGB, where the image is not a file that can be read again."""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The classes' names, one for each detection."""
        labels: list[int] = self.labels.tolist()
        return [self.class_names[label - 1] for label in labels]

    def select(self, keep: np.ndarray) -> ImageDetections:
        """The detections that `keep` says, (N,) bool or positions."""
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain values: `{"name", "label", "score", "box": [x1, y1, x2, y2]}` for each detection."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"name": name, "label": label, "score": score, "box": box} for name, label, score, box in rows]

    def to_coco(self, image_id: int | str, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO results: `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}` for each detection.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: class name -> id in the annotation file; None: the labels are the ids.
        """
        boxes = np.concatenate((self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]), axis=1)
        ids = self.labels.tolist() if category_ids is None else [category_ids[name] for name in self.names]
        rows = zip(ids, boxes.tolist(), self.scores.tolist(), strict=True)
        return [{"image_id": image_id, "category_id": one, "bbox": box, "score": score} for one, box, score in rows]

    def to_supervision(self) -> Any:
        """`supervision.Detections`; `class_id` counts from 0, as there, and `data["class_name"]` holds the names.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError:
            raise UserError("to_supervision needs the package supervision: pip install -e .[supervision]") from None
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def image(self) -> np.ndarray:
        """The original image, (H, W, 3) uint8 RGB; a file is read again.

        Raises:
            UserError: the file has gone, or there was none.
        """
        if self.pixels is not None:
            return self.pixels
        if self.path is None:
            raise UserError("these detections do not know their image: they come from no Predictor")
        from datasets.images import read_image

        return read_image(self.path)

    def draw(self, *, names: bool = True, thickness: float = 1.0, scale: float = 1.0) -> np.ndarray:
        """The image with boxes, names and scores, (H, W, 3) uint8 RGB.

        Args:
            names: write names and scores at the boxes.
            thickness: of lines and letters, relative to what suits the picture's size.
            scale: enlarges the picture, for small images.
        """
        from detection.drawing import draw_detections

        return draw_detections(
            self.image(), self.boxes, self.labels, self.scores, self.class_names,
            names=names, thickness=thickness, scale=scale,
        )  # fmt: skip


def to_numpy(detections: BatchDetections) -> list[ImageDetections]:
    """The detections of each image of a batch; the one wait for the device."""
    boxes, scores, labels, valid = detections
    # float32 holds labels exactly up to 2^24.
    packed = torch.cat((boxes, scores[..., None], labels[..., None].float(), valid[..., None].float()), dim=-1)
    images = []
    for rows in packed.cpu().numpy():
        rows = rows[rows[:, 6] > 0]
        images.append(ImageDetections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)))
    return images
