"""Training of ImageNet localisation: the per-class RPN, or the R-CNN on what a trained RPN proposes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.classification import Classifier
from configs.localisation import LocalisationConfig
from datasets.batch import prefetch
from datasets.localisation_views import LocalisationBatch, train_views
from datasets.records import Records
from detection.localisation import KIND, Candidates, PerClassRcnn, PerClassRpn, propose, suppress
from tools.runtime import distributed
from tools.runtime.localisation import Members, figures, mean_boxes, predict
from tools.runtime.schedule import scaled_schedule
from tools.runtime.task import Task, Validation
from tools.runtime.training import autocast


class LocalisationTask(Task[LocalisationConfig]):
    """A localiser of one of the two stages on images with boxes; `proposer`: for stage rcnn, the trained RPN.

    Both networks are on `device`.
    """

    def __init__(
        self,
        config: LocalisationConfig,
        net: PerClassRpn | PerClassRcnn,
        proposer: PerClassRpn | None,
        train_set: Records,
        val_set: Records | None,
        device: torch.device,
    ) -> None:
        self.recipe, self.net, self.localiser, self.device = config, net.train(), net, device
        self.proposer = proposer
        self.model = distributed.wrap(net, device)
        self.train_set, self.val_set = train_set, val_set
        self.validates = val_set is not None
        self.schedule = scaled_schedule(config.schedule, config.optim, config.train.batch_size, len(train_set))
        self.class_means = mean_boxes(train_set)

    @property
    def members(self) -> Members:
        """What is validated and tested; the RPN predicts the classes where it has learned to."""
        net = self.localiser
        rpn, rcnns = (net, []) if isinstance(net, PerClassRpn) else (self.proposer, [net])
        assert rpn is not None, "stage rcnn has a proposer"
        names, crop_size = self.train_set.class_names, self.recipe.data.crop_size
        return Members([rpn], rcnns, [Classifier(rpn.net, rpn.normalize, names, crop_size)] if rpn.classifies else [])

    def batches(self, start_iteration: int) -> Iterator[LocalisationBatch]:
        train = self.recipe.train
        loader = train_views(
            self.train_set,
            self.recipe.data,
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            seed=self.recipe.seed,
            start_iteration=start_iteration,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            pin_memory=self.device.type == "cuda",
        )
        return prefetch(loader, self.device)

    def losses(self, batch: LocalisationBatch, iteration: int) -> Mapping[str, Tensor]:
        """Those of the RPN, or of the R-CNN on what the RPN proposes for the images' own classes."""
        inputs: list[Tensor | Candidates] = [batch.images, batch.labels, batch.boxes, batch.valid, batch.index]
        with autocast(self.device, self.recipe.train.amp):
            if self.proposer is not None:
                inputs.append(self._proposals(batch))
            return self.model(*inputs, seed=self.recipe.seed, iteration=iteration)

    @torch.no_grad()
    def _proposals(self, batch: LocalisationBatch) -> Candidates:
        assert self.proposer is not None
        rcnn = self.recipe.model.rcnn
        view = torch.zeros_like(batch.frames)  # the crop itself is the image: corner 0, scale 1
        view[:, 2:] = 1.0
        sizes = torch.full_like(batch.original_sizes, self.recipe.data.crop_size)
        views, classes = [(batch.images, view)], batch.labels[:, None]
        found = propose([self.proposer], views, classes, sizes, rcnn.proposals_per_image, mirror=False)
        return suppress(found, rcnn.nms_thresh)

    def validate(self, iteration: int) -> Validation:
        """The errors on the validation set, in the view that the config has for validations."""
        config = self.recipe
        assert self.val_set is not None
        view = config.test.validation_view
        found = predict(self.members, self.val_set, config, self.device, view=view, what="validation")
        metrics = figures(found, self.val_set)
        return Validation(
            metrics=metrics,
            logs={"val": metrics},
            value=metrics[config.train.best_metric],
            lower_is_better=True,
            words=", ".join(f"{name} {100 * metrics[name]:.2f} %" for name in metrics if name.endswith("error")),
        )

    def checkpoint(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "config": self.recipe.model_dump(mode="json"),
            "class_names": self.train_set.class_names,
            "mean_boxes": self.class_means.tolist(),
            "preprocessing": self.localiser.normalize.preprocessing.to_dict(),
        }

    def image_name(self, index: int) -> str:
        return str(self.train_set.image_paths[index])
