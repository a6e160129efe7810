"""A detector over a whole data set: detections from all processes, scores, and the files of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.detection import DetectionConfig, TestConfig
from configs.errors import UserError
from datasets.batch import prefetch
from datasets.detection import DetectionDataset
from datasets.detection_loader import eval_loader
from datasets.records import Records
from detection.compilation import graph_detections
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import Metrics, ProtocolName, evaluate, write_metrics
from detection.evaluation.report import Run, write_report
from detection.evaluation.submissions import write_submission
from detection.evaluation.write import category_ids_of, write_comp4, write_detections_json
from detection.exported import ExportedDetector
from detection.inference import Inference, Tested
from detection.prediction import ImageDetections, to_numpy
from tools.runtime import distributed
from tools.runtime.progress import Progress
from tools.runtime.training import autocast

_LOSS_ITERATION = 0
"""The validation loss samples anchors and RoIs as this iteration does, every time: only the weights change it."""


@dataclass(frozen=True)
class Outcome:
    """What a detector makes of a data set; the same on every process."""

    detections: Detections
    losses: dict[str, float]
    """Means over the images, of each loss and their sum `loss`; empty where they were not asked for."""


def run_detector(
    detectors: Tested | Sequence[Tested] | ExportedDetector,
    dataset: DetectionDataset,
    config: DetectionConfig,
    device: torch.device,
    *,
    what: str,
    test: TestConfig | None = None,
    losses: bool = False,
    graphs: bool = False,
) -> Outcome:
    """Detections for each image of a data set, shared out over the processes.

    Args:
        detectors: one (a `Detector`, or the model of a phase of alternating training), or the members of an ensemble;
            in any mode, they come back in the same. Or an exported file, whose thresholds are its own.
        dataset: unaugmented.
        config: batch size, workers, autocast, seed.
        device: the detector's.
        what: a word for the progress bar.
        test: thresholds, refinement, sizes and the like; None: the plain test, with the thresholds of `config.test`.
        losses: compute the training losses of the (first) detector too, without dropout and with fixed samples.
        graphs: on CUDA, launch a batch as one CUDA graph for each padded size (`detection.compilation`).
    """
    if isinstance(detectors, ExportedDetector):
        members, inference = [], detectors
    else:
        members = list(detectors) if isinstance(detectors, Sequence) else [detectors]
        inference = Inference(members, test or config.test.plain)
    dataset = dataset.with_scales(inference.scales) if inference.scales else dataset
    rank, world_size = distributed.rank(), distributed.world_size()
    batch_size = max(1, config.train.batch_size // (config.train.accumulate * world_size))
    loader = eval_loader(
        dataset, config.data, batch_size=batch_size, rank=rank, world_size=world_size, pin_memory=device.type == "cuda"
    )
    per_image: dict[int, ImageDetections] = {}
    sums = _LossSums()
    were_training = [detector.training for detector in members]
    inference.eval()
    detect = graph_detections(inference) if graphs and isinstance(inference, Inference) else inference
    # no_grad, not inference_mode: what modules cache here (anchors) is used in training later
    with torch.no_grad(), Progress(-(-len(dataset) // world_size), what, unit="image") as progress:
        for batch in prefetch(loader, device):
            with autocast(device, config.train.amp):
                found = detect(batch)
                parts = members[0](batch, seed=config.seed, iteration=_LOSS_ITERATION) if losses else {}
            per_image.update(zip(batch.index.tolist(), to_numpy(found), strict=True))
            sums.add(parts, len(batch.index))
            progress.update(len(batch.index))
    for detector, was_training in zip(members, were_training, strict=True):
        detector.train(was_training)
    return Outcome(merged(per_image, dataset.records, inference.class_names), sums.means())


class _LossSums:
    """Sums of losses over images, on the device; their means over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._images = 0

    def add(self, losses: dict[str, torch.Tensor], images: int) -> None:
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss.double() * images
        self._images += images

    def means(self) -> dict[str, float]:
        shares = distributed.all_gather(({name: value.item() for name, value in self._sums.items()}, self._images))
        names = list(dict.fromkeys(name for sums, _ in shares for name in sums))
        images = sum(count for _, count in shares)
        means = {name: sum(sums.get(name, 0.0) for sums, _ in shares) / images for name in names}
        return {**means, "loss": sum(means.values())} if means else {}


def merged(per_image: dict[int, ImageDetections], records: Records, class_names: list[str]) -> Detections:
    """The detections of a whole set, of those that each process made: position in the set -> an image's."""
    ids = records.image_ids.tolist()
    frame = GroundTruth.from_records(records).frame
    mine = sorted(per_image)
    part = Detections.from_images(
        [ids[index] for index in mine], [per_image[index] for index in mine], class_names, frame=frame
    )
    return Detections.merge(distributed.all_gather(part), ids)


def score(records: Records, detections: Detections, protocols: Sequence[ProtocolName]) -> Metrics:
    """metrics.json of the detections; one process computes it for all.

    Raises:
        UserError: there are no annotations to compare with.
    """
    if not records.annotated:
        raise UserError(f"{records.source}: has no annotations, so nothing can be validated on it")
    return distributed.on_main(lambda: evaluate(GroundTruth.from_records(records), detections, protocols))


def write_results(
    folder: Path,
    records: Records,
    detections: Detections,
    metrics: Metrics | None,
    *,
    report: bool = True,
    curves: Path | None = None,
) -> list[Path]:
    """Write detections.json, for VOC sets comp4 files, and metrics.json or, without annotations, a submission file.

    Args:
        folder: where to.
        records: the data set.
        detections: on it.
        metrics: of `score`; None: the set has no annotations.
        report: write the page report/index.html too.
        curves: a picture of the training's curves for the page.

    Returns:
        The files that a person will look for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = GroundTruth.from_records(records)
    saved = folder / "detections.json"
    write_detections_json(saved, detections, category_ids_of(truth) if truth.frame == "coco" else None)
    comp4 = write_comp4(folder, detections) if truth.frame == "voc" else []
    if metrics is not None:
        write_metrics(folder / "metrics.json", metrics)
        written = [folder / "metrics.json", saved]
        if report:
            run = Run(folder.name, detections, metrics)
            written.append(write_report(folder / "report", truth, [run], curves=curves))
        return written
    source = records.annotation_file
    submission = write_submission(folder, detections, annotation_file=source, detections_json=saved, comp4=comp4)
    return [submission, saved]
