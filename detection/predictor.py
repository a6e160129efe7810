"""Detection in a few lines of Python:

predictor = Predictor("runs/demo/best.pt")
for found in predictor(["a.jpg", "folder/"]):
    print(found.path, found.names, found.scores, found.boxes)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.detection import DetectionConfig
from configs.errors import UserError
from datasets.batch import Batch, Collate
from datasets.padding import padded_size
from datasets.resize import resize_image, resized_size, scaled_sizes
from datasets.target import Sample, Target
from detection.compilation import compile_regions, graph_detections
from detection.ensemble import load_ensemble
from detection.exported import ExportedDetector, is_exported
from detection.inference import Inference
from detection.inputs import ImageInput, image_inputs, is_address, is_video, open_video
from detection.postprocess import BatchDetections
from detection.prediction import ImageDetections, to_numpy

THREADS = 8
"""Images are read and resized so many at a time, while the network works."""
PLANNED = 256
"""So many images are looked at together, so that those of one padded size share batches."""

_NO_OBJECTS = Target(
    np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool)
)

Loaded = tuple[ImageInput, np.ndarray | None, Sample]
"""An input, its pixels where they cannot be read again, and the sample that the network gets."""


class Predictor:
    """A detector, or an ensemble, that takes images as people have them.

    Args:
        weights: a checkpoint's path, a name of the zoo, or several: an ensemble of detectors of the same classes; or
            an exported file (`tools/export.py`), which runs on the CPU, as it is.
        device: auto (CUDA where there is one), cpu, cuda, cuda:1.
        threshold: least score of a detection.
        class_thresholds: class name -> least score, for classes that need another one.
        overrides: `key.path=value` changes of the stored config: `["test.refine_rounds=1", "data.test_min_size=600"]`.
        compile: torch.compile the network: worth it for many images.
        graphs: on CUDA, launch the detections of a batch as one CUDA graph for each padded size and number of images.

    Attributes:
        class_names: K names: label k is class_names[k - 1].
        config: of the (first) checkpoint, with the overrides; None for an exported file, which carries none.
        least_threshold: the lowest that can be asked for: an exported file's own, else 0.

    Raises:
        UserError: the weights cannot be read, the device is not there, a threshold is not in [0, 1] or names no class,
            or an exported file is asked for something that it was not exported with.
    """

    config: DetectionConfig | None = None
    least_threshold: float = 0.0

    def __init__(
        self,
        weights: str | Path | Sequence[str | Path],
        device: str | torch.device = "auto",
        threshold: float = 0.5,
        overrides: Sequence[str] = (),
        *,
        class_thresholds: Mapping[str, float] | None = None,
        compile: bool = False,
        graphs: bool = False,
    ) -> None:
        paths = [weights] if isinstance(weights, str | Path) else list(weights)
        if not paths:
            raise UserError("weights: the list is empty: give at least one checkpoint")
        thresholds = dict(class_thresholds or {})
        for name, value in {"threshold": threshold, **thresholds}.items():
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name}: a threshold of {value} is not between 0 and 1")
        least = min([threshold, *thresholds.values()])
        exported = any(is_exported(path) for path in paths)
        self.device = choose_device("cpu" if exported and str(device) == "auto" else device)
        if exported:
            unusable = {"overrides (--set)": overrides, "compile": compile, "graphs": graphs}
            self._use_exported(paths, least, [name for name, given in unusable.items() if given])
        else:
            self._use_checkpoints(paths, [f"test.score_thresh={least:.12f}", *overrides], compile=compile)
        unknown = sorted(thresholds.keys() - set(self.class_names))
        if unknown:
            known = ", ".join(self.class_names[:20])
            raise UserError(f"a threshold for {unknown[0]!r}, which is not a class of {paths[0]}: {known}")
        by_label = [threshold, *(thresholds.get(name, threshold) for name in self.class_names)]
        self._thresholds = np.array(by_label, np.float32)
        inference = self._inference
        self._detections = graph_detections(inference) if graphs and isinstance(inference, Inference) else inference

    def _use_checkpoints(self, paths: Sequence[str | Path], overrides: Sequence[str], *, compile: bool) -> None:
        detectors, self.config = load_ensemble(paths, overrides=overrides, device=self.device)
        self._data, self._amp = self.config.data, self.config.train.amp == "bf16"
        for detector in detectors:
            detector.optimize_for_inference(torch.bfloat16 if self._amp else torch.float32)
            if compile:
                compile_regions(detector)
        self._inference: Inference | ExportedDetector = Inference(detectors, self.config.test).eval()
        self.class_names = list(detectors[0].class_names)

    def _use_exported(self, paths: Sequence[str | Path], least: float, unusable: Sequence[str]) -> None:
        path = next(path for path in paths if is_exported(path))
        if len(paths) > 1:
            raise UserError(f"{path}: an exported file detects alone: ensembles are of checkpoints")
        if unusable:
            raise UserError(f"{path}: {unusable[0]}: an exported file runs as it was exported: export it with that")
        if self.device.type != "cpu":
            raise UserError(f"{path}: an exported file runs on the CPU here: give the device cpu")
        self.config, self._amp = None, False
        self._inference = detector = ExportedDetector(Path(path))
        self._data, self.class_names = detector.data, list(detector.class_names)
        self.least_threshold = detector.thresholds["score"]
        if least < self.least_threshold:
            raise UserError(
                f"{path}: a threshold of {least:g}: the file gives no score below {self.least_threshold:g}: ask for "
                f"that or more, or export it with --set test.score_thresh={least:g}"
            )

    def __call__(self, images: Any, batch_size: int = 8) -> list[ImageDetections]:
        """The detections of each image, in the order given.

        Args:
            images: a path, a folder (searched with its subfolders), a pattern, an address on the web, an array
                (H, W, 3) uint8 RGB, a PIL image, a tensor (3, H, W) uint8 RGB, or a list of these, mixed.
            batch_size: images that go through the network together; it does not change the results.

        Raises:
            UserError: an input names nothing, or an image cannot be read.
        """
        return list(self.detect(image_inputs(images), batch_size))

    def stream(self, source: Any, batch_size: int = 8) -> Iterator[ImageDetections]:
        """The detections of a video's frames, or of images, one after another; memory does not grow.

        Args:
            source: a video's path or address, a camera's index, or what calling the predictor takes.
            batch_size: images that go through the network together; of a camera one at a time.

        Raises:
            UserError: as for calling the predictor.
        """
        if isinstance(source, int) or (isinstance(source, str | Path) and is_video(str(source))):
            with open_video(source) as video:
                live = isinstance(source, int)
                yield from self.detect(video.inputs(), 1 if live else batch_size, ahead=0 if live else None)
        else:
            yield from self.detect(image_inputs(source), batch_size)

    def detect(
        self,
        inputs: Iterable[ImageInput],
        batch_size: int = 8,
        *,
        ahead: int | None = None,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Iterator[ImageDetections]:
        """The detections of inputs, in their order.

        Args:
            inputs: images are planned in groups, so that those of one padded size share batches; frames are not.
            batch_size: images that go through the network together.
            ahead: images that are read while the network works; None: enough to keep it busy.
            on_unreadable: is told about images that cannot be read, which are left out; None: they raise.

        Raises:
            UserError: an image cannot be read and there is no `on_unreadable`.
        """
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is not at least 1")
        ahead = batch_size + 2 * THREADS if ahead is None else ahead
        done: dict[int, ImageDetections | None] = {}
        position = 0
        with ThreadPoolExecutor(THREADS) as pool:
            planned = self._planned(inputs, pool)
            loaded = _read_ahead(planned, self._load, pool, ahead)
            for indices, results in self._results(_readable(loaded, done, on_unreadable), batch_size):
                done.update(zip(indices, results, strict=True))
                while position in done:
                    found = done.pop(position)
                    position += 1
                    if found is not None:
                        yield found
        for _, found in sorted(done.items()):
            if found is not None:
                yield found

    def _planned(self, inputs: Iterable[ImageInput], pool: ThreadPoolExecutor) -> Iterator[tuple[int, ImageInput]]:
        """Inputs with their positions; but for frames, those of one padded size follow each other."""
        numbered = enumerate(inputs)
        for first in numbered:
            if first[1].frame is not None:
                yield first
                continue
            group = [first, *islice(numbered, PLANNED - 1)]
            sizes = list(pool.map(lambda item: self._planned_size(item[1]), group))
            yield from (group[i] for i in sorted(range(len(group)), key=lambda i: sizes[i]))

    def _planned_size(self, one: ImageInput) -> tuple[int, int]:
        try:
            size = one.size()
        except UserError:  # reading it will say so
            return (0, 0)
        return self._padded(self._sizes(size)[0]) if min(size) > 0 else (0, 0)

    def _sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) at which an image is looked at: the test's own, then those of `test.scales` or `test.tta.scales`."""
        data = self._data
        own = resized_size(image_size, data.test_min_size, data.test_max_size)
        return [own, *scaled_sizes(image_size, data.test_min_size, data.test_max_size, self._inference.scales)]

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        return padded_size(size, self._data.size_divisor)

    def _load(self, index: int, one: ImageInput) -> Loaded:
        """An input's image, decoded and resized as the evaluation does."""
        pixels = one.load()
        original = pixels.shape[:2]
        own, *others = self._sizes(original)
        image = resize_image(pixels, own)
        scaled = tuple(image if size == own else resize_image(pixels, size) for size in others)
        again = one.path is not None and one.frame is None and not is_address(one.path)
        return one, None if again else pixels, Sample(image, _NO_OBJECTS, index, original, self._padded(own), scaled)

    def _results(self, loaded: Iterable[Loaded], batch_size: int) -> Iterator[tuple[list[int], list[ImageDetections]]]:
        """Positions and detections, batch by batch; the device works on one while the one before is read out."""
        collate = Collate(self._data.size_divisor)
        waiting: tuple[list[Loaded], BatchDetections] | None = None
        for group in self._groups(loaded, batch_size):
            working = (group, self._infer(collate([sample for _, _, sample in group])))
            if waiting is not None:
                yield self._read_out(*waiting)
            waiting = working
        if waiting is not None:
            yield self._read_out(*waiting)

    def _groups(self, loaded: Iterable[Loaded], batch_size: int) -> Iterator[list[Loaded]]:
        """Images that follow each other and are padded to equal sizes, at most `batch_size`."""
        group: list[Loaded] = []
        padded: list[tuple[int, int]] = []
        for item in loaded:
            sample = item[2]
            own = [self._padded(image.shape[:2]) for image in (sample.image, *sample.scaled)]
            if group and (len(group) == batch_size or own != padded):
                yield group
                group = []
            group.append(item)
            padded = own
        if group:
            yield group

    def _infer(self, batch: Batch) -> BatchDetections:
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._amp):
            return self._detections(batch.to(self.device))

    def _read_out(self, group: list[Loaded], detections: BatchDetections) -> tuple[list[int], list[ImageDetections]]:
        results = []
        for (one, pixels, sample), found in zip(group, to_numpy(detections), strict=True):
            found = found.select(found.scores >= self._thresholds[found.labels])
            found = replace(found, class_names=self.class_names, image_size=sample.original_size, pixels=pixels)
            results.append(replace(found, name=one.name, path=one.path, frame=one.frame))
        return [sample.index for _, _, sample in group], results


def choose_device(device: str | torch.device) -> torch.device:
    """The device that a name means; auto: CUDA where there is one.

    Raises:
        UserError: CUDA is asked for and is not there, or the name is not a device's.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r}: give auto, cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: this machine has no CUDA device that torch can use: take cpu")
    return chosen


def _read_ahead(
    planned: Iterable[tuple[int, ImageInput]],
    load: Callable[[int, ImageInput], Loaded],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[tuple[int, Loaded | UserError]]:
    """Inputs read by the pool's threads, `ahead` of them before they are needed; errors in place of what has one."""
    futures: deque[tuple[int, Future[Loaded]]] = deque()

    def first() -> tuple[int, Loaded | UserError]:
        index, future = futures.popleft()
        try:
            return index, future.result()
        except UserError as error:
            return index, error

    for index, one in planned:
        futures.append((index, pool.submit(load, index, one)))
        if len(futures) > ahead:
            yield first()
    while futures:
        yield first()


def _readable(
    loaded: Iterable[tuple[int, Loaded | UserError]],
    done: dict[int, ImageDetections | None],
    on_unreadable: Callable[[str], None] | None,
) -> Iterator[Loaded]:
    """What could be read; the positions of the others are noted in `done`."""
    for index, item in loaded:
        if not isinstance(item, UserError):
            yield item
        elif on_unreadable is None:
            raise item
        else:
            on_unreadable(str(item))
            done[index] = None
