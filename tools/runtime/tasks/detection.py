"""Joint training of a detector: all its losses at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.compilation import GRAPHS, GraphedStep
from configs.detection import DetectionConfig
from configs.errors import UserError
from datasets.batch import MIN_OBJECTS, Batch, padded_count, prefetch
from datasets.detection import DetectionDataset
from datasets.detection_loader import epoch_orders, train_loader
from datasets.records import Records
from detection.alternating import PhaseModel
from detection.compilation import graphed_gradients
from detection.drawing import sheet
from detection.evaluation import voc
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import headline
from detection.model import Detector
from detection.sampling import Iteration
from tools.runtime import distributed
from tools.runtime.evaluation import run_detector, score
from tools.runtime.pictures import choose_images, draw_image
from tools.runtime.schedule import scaled_schedule
from tools.runtime.task import Task, Validation
from tools.runtime.training import autocast, refuse_several_processes

THRESHOLDS = 101
"""Points of the curves in TensorBoard."""


class DetectionTask(Task[DetectionConfig]):
    """A detector on a training set, validated on another one where there is one."""

    def __init__(
        self,
        config: DetectionConfig,
        detector: Detector,
        train_set: DetectionDataset,
        val_set: DetectionDataset | None,
        device: torch.device,
        *,
        learner: PhaseModel | None = None,
        start: int = 0,
    ) -> None:
        """
        Args:
            config: the recipe.
            detector: on `device`.
            train_set: with augmentation.
            val_set: without.
            device: where it trains.
            learner: what gives the losses and is validated; None: the detector.
            start: the iteration at which the schedule begins.
        """
        if config.train.graphs:
            refuse_several_processes("train.graphs")
        self.recipe, self.net, self.detector, self.start = config, detector, detector, start
        self.learner: Detector | PhaseModel = detector.train() if learner is None else learner
        self.model = distributed.wrap(self.learner, device)
        self.train_set, self.val_set, self.device = train_set, val_set, device
        self.validates = val_set is not None
        batch_size = config.train.batch_size
        if not batch_size:
            raise UserError("train.batch_size: a task needs a number: `automatic_batch_size` gives it for auto")
        orders = epoch_orders(train_set, config.data, batch_size=batch_size)
        self.schedule = scaled_schedule(config.schedule, config.optim, batch_size, orders.epoch_length)
        self.min_objects, self.graphed = MIN_OBJECTS, None
        if config.train.graphs:
            # All batches as many, so that sizes alone tell graphs apart: matching passes over what is padding.
            self.min_objects = padded_count(int(np.diff(train_set.records.offsets).max(initial=0)), MIN_OBJECTS)
            shapes = config.data.padded_sizes * min(config.train.accumulate, 2)  # a first part, and a further one
            self.graphed = GraphedStep("the training step", self.net.parameters(), remembered=shapes + GRAPHS)

    def batches(self, start_iteration: int) -> Iterator[Batch]:
        config = self.recipe
        loader = train_loader(
            self.train_set,
            config.data,
            batch_size=config.train.batch_size,
            accumulate=config.train.accumulate,
            seed=config.seed,
            start_iteration=start_iteration,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            min_objects=self.min_objects,
            pin_memory=self.device.type == "cuda",
        )
        return prefetch(loader, self.device)

    def losses(self, batch: Batch, iteration: Iteration) -> Mapping[str, Tensor]:
        """The RPN's and the detector's losses."""
        with autocast(self.device, self.recipe.train.amp):
            return self.model(batch, seed=self.recipe.seed, iteration=iteration)

    def gradients(self, batch: Batch, iteration: int, parts: int) -> Mapping[str, Tensor]:
        """See `Task`; with `train.graphs` launched as one CUDA graph."""
        if self.graphed is None:
            return super().gradients(batch, iteration, parts)
        return graphed_gradients(self.graphed, self.losses, batch, iteration, parts)

    def validate(self, iteration: int) -> Validation:
        """The losses and the metrics of the plain test, and a picture."""
        config, val_set = self.recipe, self.val_set
        assert val_set is not None
        outcome = run_detector(self.learner, val_set, config, self.device, what="validation", losses=True)
        metrics = score(val_set.records, outcome.detections, config.metrics)
        protocol, _, name = config.train.best_metric.partition(".")
        value = outcome.losses["loss"] if protocol == "loss" else metrics[protocol][name]
        figures = ", ".join(f"{name} {_words(headline(metrics[name]))}" for name in config.metrics)
        picture, curves = None, {}
        if distributed.is_main():
            curves = _curves(val_set.records, outcome.detections)
            chosen = choose_images(val_set.records, 8)
            picture = sheet([draw_image(val_set.records, outcome.detections, index) for index in chosen])
        by_class = {name: metrics[name]["per_class"] for name in config.metrics if metrics[name]["per_class"]}
        return Validation(
            metrics=metrics,
            logs={
                "val": {**outcome.losses, **{name: _without_classes(metrics[name]) for name in config.metrics}},
                **({"val_classes": by_class} if by_class else {}),
            },
            value=value if self.is_final else None,
            lower_is_better=protocol == "loss",
            words=f"validation loss {outcome.losses['loss']:.4f}, {figures}",
            picture=picture,
            curves=curves,
        )

    def checkpoint(self) -> dict[str, Any]:
        return {
            "kind": "detector",
            "config": self.recipe.model_dump(mode="json"),
            "class_names": list(self.detector.class_names),
            "preprocessing": self.detector.preprocessing.to_dict(),
            "card": dict(self.detector.card),
        }

    def image_name(self, index: int) -> str:
        return str(self.train_set.records.image_ids[index])


def _curves(records: Records, detections: Detections) -> dict[str, np.ndarray]:
    """See `Validation.curves`, by VOC's rule at an overlap of .5."""
    matches = voc.match(align(GroundTruth.from_records(records), detections))
    return voc.counts_over_scores(matches, voc.outcomes(matches), np.linspace(0, 1, THRESHOLDS))


def _words(value: float | None) -> str:
    return "without ground truth" if value is None else f"{value:.4f}"


def _without_classes(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "per_class"}
