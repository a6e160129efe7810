"""The detection data set: records and image files in, samples out. Imports no torch.

A sample is a pure function of (seed, key); no worker's or process's history enters.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import numpy as np

from configs.detection import AugmentConfig
from datasets.images import image_file_size, read_image, size_words
from datasets.records import Records
from datasets.resize import resize_boxes, resize_image, resized_size, scaled_sizes
from datasets.target import Sample, SampleKey, Target
from datasets.transforms import Geometry, apply_to_boxes, apply_to_image, draw_geometry

logger = logging.getLogger(__name__)


class DetectionDataset:
    """Images with their targets, augmented and resized; what a DataLoader's workers read.

    Args:
        records: the annotations.
        min_sizes: lengths of the shorter side, pixels; of several one is drawn for each sample.
        max_size: cap on the longer side, pixels.
        augment: None: images are only resized, as in evaluation.
        seed: of the draws.

    Attributes:
        scales: further lengths of the shorter side, set by `with_scales`; each sample brings its image along at these
            sizes, resized from the decoded file.
    """

    def __init__(
        self,
        records: Records,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.records = records
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.augment = augment
        self.seed = seed
        self.scales: tuple[int, ...] = ()
        self._reported: set[str] = set()
        self._file_sizes: dict[int, tuple[int, int]] = {}

    @property
    def class_names(self) -> list[str]:
        """K names: label k is class_names[k - 1]."""
        return self.records.class_names

    def __len__(self) -> int:
        return len(self.records)

    def output_size(self, epoch: int, index: int, repeat: int = 0, min_size: int | None = None) -> tuple[int, int]:
        """(H, W) of the sample with this key, as far as the declared image size is right; reads no image."""
        key = SampleKey(epoch, index, repeat=repeat, min_size=min_size)
        return self._geometry(key, self.records.image_size(index)).size

    def with_scales(self, scales: Sequence[int]) -> DetectionDataset:
        """A copy for evaluation at several sizes (see `scales`); the cap on the longer side changes in proportion."""
        if self.augment is not None:
            raise ValueError("only images that are not augmented can be had at several sizes")
        scaled = copy.copy(self)
        scaled.scales = tuple(scales)
        return scaled

    def evaluation_size(self, index: int) -> tuple[int, int]:
        """(H, W) of image `index` when it is only resized, by the true size in the file's header."""
        return resized_size(self._file_size(index), self.min_sizes[0], self.max_size)

    def scaled_evaluation_sizes(self, index: int) -> list[tuple[int, int]]:
        """(H, W) of image `index` at each of `scales`."""
        return self._scaled_sizes(self._file_size(index)) if self.scales else []

    def _scaled_sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        return scaled_sizes(image_size, self.min_sizes[0], self.max_size, self.scales)

    def _file_size(self, index: int) -> tuple[int, int]:
        if index not in self._file_sizes:  # a loader is made for each validation
            path = str(self.records.image_paths[index])
            self._file_sizes[index] = image_file_size(path, self.records.image_size(index))
        return self._file_sizes[index]

    def __getitem__(self, key: SampleKey) -> Sample:
        """The sample of a key.

        Raises:
            UserError: the image is missing or corrupt; names the file.
        """
        path = str(self.records.image_paths[key.index])
        declared = self.records.image_size(key.index)
        image = read_image(path, declared)
        original_size = _size_of(image)
        if original_size != declared:
            self._report(
                "size",
                f"{path}: the image is {size_words(original_size)}, its annotation declares {size_words(declared)}: "
                "the image's own size is used",
            )
        target = self.records.target(key.index, original_size)
        geometry = self._geometry(key, original_size)
        decoded = image
        image = apply_to_image(image, geometry, self.augment.photometric if self.augment else None)
        boxes = apply_to_boxes(target.boxes, geometry, original_size)
        image, boxes = self._fit(image, boxes, key, path)
        scaled = tuple(
            image if size == _size_of(image) else resize_image(decoded, size)
            for size in self._scaled_sizes(original_size)
        )
        return Sample(image, _with_boxes(target, boxes), key.index, original_size, key.padded_size, scaled)

    def _geometry(self, key: SampleKey, image_size: tuple[int, int]) -> Geometry:
        min_sizes = self.min_sizes if key.min_size is None else (key.min_size,)
        if self.augment is None and len(min_sizes) == 1:  # nothing to draw
            height, width = image_size
            size = resized_size(image_size, min_sizes[0], self.max_size)
            return Geometry(False, False, (0, 0, 0, 0), (0, 0, width, height), size, None)
        boxes = np.zeros((0, 4))
        if self.augment is not None and self.augment.crop > 0:
            boxes = self.records.target(key.index, image_size).boxes
        rng = np.random.default_rng([self.seed, key.epoch, key.index, key.repeat])
        return draw_geometry(rng, image_size, boxes, min_sizes=min_sizes, max_size=self.max_size, augment=self.augment)

    def _fit(self, image: np.ndarray, boxes: np.ndarray, key: SampleKey, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Shrink an image that is larger than the padded size, which was planned from a wrong declared size."""
        size = _size_of(image)
        if key.padded_size is None or (size[0] <= key.padded_size[0] and size[1] <= key.padded_size[1]):
            return image, boxes
        self._report(
            "fit",
            f"{path}: resized to fit into the batch's {size_words(key.padded_size)}: its declared size is wrong, or it "
            "takes the place of an image that cannot be read",
        )
        scale = min(key.padded_size[0] / size[0], key.padded_size[1] / size[1])
        new = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
        return resize_image(image, new), resize_boxes(boxes, size, new)

    def _report(self, kind: str, message: str) -> None:
        """Log the first message of a kind (in each process)."""
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning("%s (reported once)", message)


def _size_of(image: np.ndarray) -> tuple[int, int]:
    """(H, W) of an image (H, W, 3)."""
    return image.shape[0], image.shape[1]


def _with_boxes(target: Target, boxes: np.ndarray) -> Target:
    """The target with new boxes; objects that shrank to nothing are left out."""
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
    return Target(boxes[keep], target.labels[keep], target.area[keep], target.iscrowd[keep], target.difficult[keep])
