"""Every option of ImageNet localisation: what `tools/train_loc.py --cfg` reads (He et al. 2016, App. C).

One schema for both stages: `model.stage: rpn` trains the per-class region proposal network, `model.stage: rcnn` the
R-CNN on its proposals. What the paper leaves open is listed in docs/localisation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.classification import ClassifierConfig
from configs.common import (
    CROP_RANGES,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OnErrorOption,
    OptimConfig,
    PositiveFloat,
    PositiveInt,
    ScheduleConfig,
    Section,
    Seed,
    Side,
    TrainConfig,
    check_crop_ranges,
    check_parts,
)
from configs.detection import AnchorConfig


class LocalisationSourceConfig(Section):
    """Images of one class each, with the boxes of its objects. Relative paths are relative to `--data-root`, else
    `DATA_DIR`, else `data/`.

    imagenet_loc: Annotations/CLS-LOC/{train/<wnid>/,val/}*.xml and Data/CLS-LOC/ likewise; or the folders named below.
        Of split test there are the images alone: `tools/test_loc.py` writes the file that the benchmark's server takes.
    tiny_imagenet: train/<wnid>/<wnid>_boxes.txt beside images/; val/val_annotations.txt beside images/.
    """

    format: Literal["imagenet_loc", "tiny_imagenet"]
    """Layout of the files, as above."""
    root: str
    """Folder of the set."""
    split: Literal["train", "val", "test"]
    """Part of the set."""
    annotations: str | None = None
    """imagenet_loc: the split's folder of XML files, where it is not root/Annotations/CLS-LOC/<split>."""
    images: str | None = None
    """imagenet_loc: the split's folder of images, where it is not root/Data/CLS-LOC/<split>."""
    meta: str | None = None
    """Split test: what says the numbers of the classes in a submission: the development kit's meta.mat, or Kaggle's
    LOC_synset_mapping.txt, which serves Kaggle's submission only. null: root/ILSVRC2012_devkit_t12/data/meta.mat, or
    LOC_synset_mapping.txt beside root."""

    @model_validator(mode="after")
    def _folders_fit(self) -> LocalisationSourceConfig:
        if self.format == "tiny_imagenet" and (self.annotations or self.images):
            raise ValueError("annotations and images belong to format imagenet_loc")
        if self.split == "test" and (self.format == "tiny_imagenet" or self.annotations):
            raise ValueError("split test is that of imagenet_loc, and has no annotations")
        if self.split != "test" and self.meta:
            raise ValueError("meta belongs to split test, which has no labels")
        return self


class LocalisationAugmentConfig(Section):
    """Random views of the training images; boxes are carried along."""

    read_by = {"crop": CROP_RANGES}
    crop: Literal["scale_jitter", "random_resized", "centre"] = "scale_jitter"
    """scale_jitter: shorter side drawn from `scale`, then a random square crop (He et al. 2016, Sec. 3.4).
    random_resized: a random area and aspect ratio. centre: that of the test."""
    scale: tuple[Side, Side] = (256, 480)
    """scale_jitter: the shorter side is uniform in [low, high], pixels."""
    area: tuple[PositiveFloat, PositiveFloat] = (0.35, 1.0)
    """random_resized: share of the image's area."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3.0 / 4.0, 4.0 / 3.0)
    """random_resized: width / height, uniform in its logarithm."""
    min_visible: Fraction = 0.5
    """A crop must hold this share of the area of some object, else another is drawn; objects of which it holds less
    are left out."""
    hflip: Fraction = 0.5
    """Probability of a mirror image."""

    @model_validator(mode="after")
    def _ranges_grow(self) -> LocalisationAugmentConfig:
        check_crop_ranges(self)
        return self


class LocalisationDataConfig(Section):
    """What is learned from, validated on and tested on."""

    train: LocalisationSourceConfig
    """Training set."""
    val: LocalisationSourceConfig | None = None
    """Validation set, which chooses best.pt."""
    test: LocalisationSourceConfig | None = None
    """Test set, on which metrics.json is computed; null: the validation set takes its place."""
    crop_size: Side = 224
    """Side of the training crop, pixels."""
    test_resize: Side = 256
    """Shorter side before the centre crop of `crop_size`, pixels."""
    augment: LocalisationAugmentConfig = LocalisationAugmentConfig()
    """Random views of the training images."""
    num_workers: NonNegativeInt = 4
    """Loader processes for each training process."""
    on_error: OnErrorOption = "stop"

    @model_validator(mode="after")
    def _parts_fit(self) -> LocalisationDataConfig:
        for name, source in (("train", self.train), ("val", self.val)):
            if source is not None and source.split == "test":
                raise ValueError(f"{name}: split test has no boxes: it is for test")
        if self.test_resize < self.crop_size:
            raise ValueError(f"test_resize {self.test_resize} is smaller than the crop of {self.crop_size}")
        if self.augment.crop == "scale_jitter" and self.augment.scale[0] < self.crop_size:
            raise ValueError(f"augment.scale starts at {self.augment.scale[0]}, below the crop of {self.crop_size}")
        return self


class PerClassRpnConfig(Section):
    """The per-class region proposal network."""

    hidden_channels: NonNegativeInt = 0
    """Width of a 3x3 convolution before the siblings, as in Faster R-CNN; 0: none."""
    stage: str | None = None
    """The stage whose map the siblings read, conv2 ... conv5; null: the last (any other: ResNets). A finer map is
    for small images: at 96 pixels conv5 has 3 x 3 cells, conv4 6 x 6."""
    anchors: AnchorConfig = AnchorConfig(sizes=[64, 128, 256], offset=0.5)
    """Reference boxes, in pixels of the crop that is trained on."""
    fg_iou_thresh: Fraction = 0.7
    """Anchors with an IoU of at least this with an object are positive (and each object's best anchors)."""
    bg_iou_thresh: Fraction = 0.3
    """Anchors whose IoU with every object is below this are negative; those in between take no part in the loss."""
    batch_size_per_image: PositiveInt = 8
    """Anchors sampled for the loss, at most half of them positive."""
    shortage: Literal["even", "fill"] = "even"
    """Where there are fewer positives: even: as many negatives (the paper's 1:1). fill: negatives fill the sample
    (Faster R-CNN's rule). With a sample that holds all positives, fill leaves the odds of large and small objects'
    anchors as they are; 1:1 weighs an image's negatives by the number of its positives."""
    score: Literal["anchor", "box"] = "anchor"
    """What the logit of an anchor says: anchor: that the anchor fits an object (the paper's, from the sample above).
    box: that its regressed box does, with an IoU of at least 0.5, which is what is measured; all anchors learn it."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Where the box loss turns from quadratic to linear; 0: plain L1."""
    box_loss_weight: PositiveFloat = 1.0
    """Factor of the box loss."""
    classification_loss_weight: NonNegativeFloat = 0.0
    """Factor of the loss of a softmax classifier on the same map, trained at the same time, which then predicts the
    classes too (residual nets); 0: there is none."""

    @model_validator(mode="after")
    def _one_level(self) -> PerClassRpnConfig:
        if isinstance(self.anchors.sizes[0], list):
            raise ValueError("anchors.sizes is one plain list of sizes: there is one level")
        if self.batch_size_per_image % 2:
            raise ValueError(f"batch_size_per_image is even (1:1), not {self.batch_size_per_image}")
        return self


class PerClassRcnnConfig(Section):
    """The R-CNN on the proposals' warped crops (Girshick et al. 2014)."""

    proposals: str | None = None
    """The checkpoint of stage rpn whose proposals are learned from."""
    warp_size: Side = 224
    """Side of the warped crops, pixels."""
    context: NonNegativeInt = 16
    """Pixels of the warped crop on each side that show what is around the proposal (Girshick et al. 2014: 16)."""
    proposals_per_image: Annotated[int, Field(ge=1, le=4096)] = 200
    """Best proposals of an image in training, from which its sample is drawn (He et al. 2016, App. C: 200)."""
    nms_thresh: Fraction = 0.7
    """Overlap, as IoU, above which the worse-scored of two proposals is dropped, in training."""
    sampling: Literal["image", "roi"] = "image"
    """image: rois_per_image proposals of each image. roi: the RoI-centric way (He et al. 2016, App. C; Girshick 2015,
    Sec. 2.3): a step's RoIs come from as many images, one of each, as if drawn from all proposals of the set; its
    share of positives holds over the step. The paper's step is train.batch_size: 256 then."""
    rois_per_image: PositiveInt = 8
    """Proposals sampled from these for the loss; a step has train.batch_size times as many. sampling: roi has 1."""
    positive_fraction: Fraction = 0.5
    """Share of positives in the sample of an image, at most; sampling: roi: the probability that an image's RoI is a
    positive one, where the image has both kinds."""
    fg_iou_thresh: Fraction = 0.5
    """Proposals with an IoU of at least this are positive, the others negative."""
    bbox_reg_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the regression targets dx, dy, dw, dh."""
    smooth_l1_beta: NonNegativeFloat = 1.0
    """Where the box loss turns from quadratic to linear; 0: plain L1."""
    box_loss_weight: PositiveFloat = 1.0
    """Factor of the box loss."""

    @model_validator(mode="after")
    def _context_fits(self) -> PerClassRcnnConfig:
        if 2 * self.context >= self.warp_size:
            raise ValueError(f"context {self.context} on each side leaves nothing of warp_size {self.warp_size}")
        if self.sampling == "roi" and self.rois_per_image != 1:
            raise ValueError(
                f"sampling: roi takes one RoI of each image: set rois_per_image: 1, not {self.rois_per_image}"
            )
        return self


class LocaliserConfig(ClassifierConfig):
    """The network: a classifier's (`backbone`, `shortcut`, ...), started from its weights, and the siblings."""

    stage: Literal["rpn", "rcnn"] = "rpn"
    """What is trained: the per-class RPN, or the R-CNN on its proposals."""
    norm: Literal["frozen", "batch", "sync"] = "frozen"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Batch norm: a constant scale and offset, trained, or trained across processes."""
    rpn: PerClassRpnConfig = PerClassRpnConfig()
    """The per-class region proposal network."""
    rcnn: PerClassRcnnConfig = PerClassRcnnConfig()
    """The R-CNN."""

    @model_validator(mode="after")
    def _parts_fit(self) -> LocaliserConfig:
        if self.norm == "frozen" and self.weights == "random" and self.backbone not in ("vgg16", "vgg19"):
            raise ValueError("norm: frozen over weights: random ruins the model: give model.weights, or norm: batch")
        if self.stage == "rcnn" and self.rcnn.proposals is None:
            raise ValueError("stage: rcnn needs rcnn.proposals, the checkpoint of stage rpn")
        if str(self.backbone).startswith("vgg") and (self.rpn.classification_loss_weight or self.rpn.stage):
            raise ValueError("rpn.classification_loss_weight and rpn.stage need a residual net")
        return self


class LocalisationTestConfig(Section):
    """How an image is tested."""

    read_by = {"view": {"scales": ("dense",), "hflip": ("dense",)}}
    view: Literal["center", "dense"] = "dense"
    """center: one crop. dense: whole images at each of `scales`, fully convolutional, predictions merged."""
    scales: list[PositiveInt] = [224, 256, 384, 480, 640]
    """Shorter sides, pixels."""
    hflip: bool = True
    """dense: mirror images too."""
    proposals: Annotated[int, Field(ge=1, le=4096)] = 200
    """Best-scored boxes of a class that are merged, or that the R-CNN chooses from (He et al. 2016, App. C: 200)."""
    nms_thresh: Fraction = 0.7
    """Overlap, as IoU, above which the worse-scored of two proposals for the R-CNN is dropped, at test."""
    crops: Annotated[int, Field(ge=1, le=4096)] = 200
    """How many of the proposals that are left go through the R-CNN, best first: they decide the time of the test."""
    merge_iou: Fraction = 0.5
    """Boxes with at least this IoU support each other: the box with the highest sum of scores wins, and is replaced by
    their mean. 1: the single best box."""
    validation_view: Literal["center", "dense"] = "center"
    """The view of the validations during training."""

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """See `Section`; a dense validation reads what a dense test does."""
        return {} if values.get("validation_view") == "dense" else super().unread(values)

    @model_validator(mode="after")
    def _has_scales(self) -> LocalisationTestConfig:
        if not self.scales:
            raise ValueError("scales: give at least one")
        return self


class LocalisationTrainConfig(TrainConfig):
    """The loop."""

    best_metric: Literal["true_class_error", "top1_error", "top5_error"] = "true_class_error"
    """Figure of the validation set whose lowest value chooses best.pt."""


class LocalisationConfig(Section):
    """A localiser and its training: what `tools/train_loc.py --cfg` reads."""

    seed: Seed = 0
    """Decides first weights, order, augmentation and samples."""
    data: LocalisationDataConfig
    """What is learned from, validated on and tested on."""
    model: LocaliserConfig
    """The network."""
    optim: OptimConfig
    """The optimiser."""
    schedule: ScheduleConfig
    """Length and learning rate."""
    train: LocalisationTrainConfig
    """The training loop."""
    test: LocalisationTestConfig = LocalisationTestConfig()
    """How an image is tested."""

    @model_validator(mode="after")
    def _parts_fit(self) -> LocalisationConfig:
        check_parts("batch_size", self.train.batch_size, self.train)
        if self.train.patience is not None and (self.data.val is None or self.train.validate_every is None):
            raise ValueError("train.patience watches the validation error: give data.val and train.validate_every")
        if self.train.best_metric != "true_class_error" and not self.model.rpn.classification_loss_weight:
            raise ValueError(f"train.best_metric {self.train.best_metric} needs model.rpn.classification_loss_weight")
        return self
