"""Every option of a detector and its training: what `tools/train_det.py --cfg` reads.

Names follow torchvision's where the option means the same thing there (`min_size`, `box.fg_iou_thresh`,
`rpn.pre_nms_top_n_train`, ...). The optimiser, the schedule and the loop are in `configs.common`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from configs.common import (
    Fraction,
    Images,
    NonNegativeFloat,
    NonNegativeInt,
    OnErrorOption,
    OptimConfig,
    PositiveFloat,
    PositiveInt,
    Repeats,
    ScheduleConfig,
    Section,
    Seed,
    Side,
    TrainConfig,
    Width,
    check_backbone,
    check_parts,
)

# ---------------------------------------------------------------------------------------------- data

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


LISTED_FORMATS = ("coco", "via", "csv", "cvat", "createml", "label_studio", "datumaro", "vott")
"""Formats with one annotation file for all images."""

FOLDER_FORMATS = ("voc", "yolo", "labelme", "supervisely", "kitti")
"""Formats with an annotation file for each image."""


class SourceConfig(Section):
    """One annotated set of images. Relative paths are relative to `--data-root`, else `DATA_DIR`, else `data/`."""

    read_by = {
        "format": {
            "root": (*FOLDER_FORMATS, "imagenet_det"),
            "image_set": ("voc", "yolo", "cvat", "imagenet_det", "generated"),
            "annotations": LISTED_FORMATS,
            "size": ("generated",),
            "zero_based": ("voc",),
        }
    }
    format: Literal[
        "voc", "coco", "yolo", "labelme", "via", "csv", "supervisely", "cvat", "createml", "label_studio", "datumaro",
        "vott", "kitti", "imagenet_det", "generated",
    ]  # fmt: skip
    """Layout of the files; docs/own_data.md tells which tool writes which. generated: the built-in set, drawn on the
    spot, for which nothing is downloaded."""
    root: str | None = None
    """Folder. voc: holds Annotations/, ImageSets/Main/, JPEGImages/, or, without image_set, XML files and images at any
    depth. yolo: holds images/ and labels/, or, without image_set, label files and images at any depth. labelme,
    supervisely, kitti: images and annotation files at any depth. imagenet_det: holds Annotations/DET/, Data/DET/ and
    ImageSets/DET/."""
    image_set: str | None = None
    """voc: ImageSets/Main/NAME.txt; null: all images below root. yolo: images/NAME and labels/NAME, or NAME/images and
    NAME/labels; null: all images below root. cvat: the images of this subset of the project; null: all of the file.
    imagenet_det: train, val, val1, val2, test or another ImageSets/DET/NAME.txt. generated: train, val or test."""
    images: str | None = None
    """With one annotation file for all images (coco, via, ...): folder of the images. voc, yolo without image_set,
    labelme, supervisely, kitti: the folder below root whose images are the set (folder/*: only those directly in it);
    null: all below root."""
    unlisted: bool = False
    """voc: the images of JPEGImages/ that no list in ImageSets/Main names."""
    image_list: str | None = None
    """voc, yolo without image_set, labelme, supervisely, kitti: text file that names the set's images, one a line."""
    annotations: str | None = None
    """The file that annotates all images. coco, label_studio, datumaro: JSON. via: CSV or JSON. csv: table with
    filename, class, xmin, ymin, xmax, ymax. cvat: XML for images. createml, vott: JSON, or a folder of such files."""
    split: Share | list[Share] | None = None
    """A set without parts of its own: this share of its images trains and the rest validates, or the shares of train,
    val and test: the list in which the source appears takes its part. By a hash of the file name: images that are
    added later move none."""
    split_by: str | None = None
    """Regular expression on an image's path below its folder: images with equal first groups (without groups: equal
    matches) stay in one part, as frames of one video should: "(.*)_frame" or "clip[0-9]+"."""
    split_seed: Seed = 0
    """Another number gives another division."""
    unlabelled: Literal["empty", "skip", "error"] | None = None
    """Images without annotation: empty ones, left out, or a mistake. null: a mistake for voc, labelme, supervisely and
    kitti; an empty image for yolo; not looked for in a set whose file lists its images (coco, via, csv, cvat, ...)."""
    size: NonNegativeInt = 0
    """generated: number of images of this set (0: the generator's default)."""
    zero_based: bool = False
    """voc: the XML counts pixels from 0 (the official files count from 1)."""
    images_per_class: PositiveInt | None = None
    """imagenet_det, image_set train: at most this many positive images of each class (R-CNN: 1000); null: all."""

    @model_validator(mode="after")
    def _has_what_the_format_needs(self) -> SourceConfig:
        needed = {
            **dict.fromkeys(LISTED_FORMATS, ("images", "annotations")),
            "imagenet_det": ("root", "image_set"),
            "generated": ("image_set",),
        }.get(self.format, ("root",))
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"format {self.format} needs {' and '.join(missing)}")
        if self.images_per_class is not None and (self.format, self.image_set) != ("imagenet_det", "train"):
            raise ValueError("images_per_class is for format imagenet_det, image_set train")
        return self

    @model_validator(mode="after")
    def _options_fit_the_format(self) -> SourceConfig:
        listed = self.format in LISTED_FORMATS
        by_folder = self.format in FOLDER_FORMATS
        if self.images is not None and not (listed or (by_folder and self.image_set is None)):
            raise ValueError(f"images is for {', '.join(LISTED_FORMATS)}, or for a folder without image_set")
        if self.image_list is not None and not (by_folder and self.image_set is None and self.images is None):
            raise ValueError(
                "image_list is for voc, yolo, labelme, supervisely and kitti, without image_set and images"
            )
        if self.unlisted and (self.format != "voc" or self.image_set or self.images or self.image_list):
            raise ValueError("unlisted is for voc, without image_set, images and image_list")
        if self.unlabelled is not None and not (listed or by_folder):
            raise ValueError(f"unlabelled is not for format {self.format}")
        return self

    @model_validator(mode="after")
    def _shares_add_up(self) -> SourceConfig:
        if isinstance(self.split, list):
            if len(self.split) not in (2, 3) or abs(sum(self.split) - 1) > 1e-6:
                raise ValueError(f"split {self.split}: give two or three shares (train, val, test) that add up to 1")
        elif self.split is None and (self.split_by is not None or self.split_seed):
            raise ValueError("split_by and split_seed need split, for example split: 0.8")
        return self


class PhotometricConfig(Section):
    """Colour jitter; each value is the half-width of the range drawn from, as in torchvision's ColorJitter."""

    read_by = {"p": dict.fromkeys(("brightness", "contrast", "saturation", "hue"), ())}
    p: Fraction = 0.0
    """Probability that an image is jittered at all."""
    brightness: Fraction = 0.2
    """Factor from [1 - value, 1 + value]."""
    contrast: Fraction = 0.2
    """Factor from [1 - value, 1 + value]."""
    saturation: Fraction = 0.2
    """Factor from [1 - value, 1 + value]."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Shift from [-value, value], as a share of the colour circle."""


class AugmentConfig(Section):
    """Augmentation of the training images; boxes are carried along."""

    hflip: Fraction = 0.5
    """Probability of a mirror image (Faster R-CNN, Sec. 3.3: the only augmentation of the paper)."""
    vflip: Fraction = 0.0
    """Probability of an upside-down image (microscopy, aerial views)."""
    crop: Fraction = 0.0
    """Probability of a random crop that keeps every object's box (albumentations' BBoxSafeRandomCrop)."""
    expand: Fraction = 0.0
    """Probability of zooming out onto a mean-coloured canvas, at most 2 times the size, as in SSD."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Colour jitter."""


class DataConfig(Section):
    """What is learned from, validated on and tested on."""

    train: list[SourceConfig]
    """Training set: one source, or several that are joined."""
    val: list[SourceConfig] = []
    """Validation set, which chooses best.pt; []: none."""
    test: list[SourceConfig] = []
    """Test set, on which metrics.json is computed at the end; []: the validation set takes its place."""
    classes: list[str] | str = "auto"
    """Names in the order of the labels 1..K; or voc, coco, imagenet_det; or auto: those of the training annotations,
    sorted."""
    keep_classes: list[str] | None = None
    """Train and test on these only: objects of other classes are dropped. Default: all of `classes`."""
    rename_classes: dict[str, str] = {}
    """Annotated name -> name in `classes`; several may go to one."""
    train_difficult: bool = False
    """Objects marked difficult take part in training. The evaluators always follow their own protocol."""
    train_empty: bool = True
    """Images without objects take part in training (as negatives)."""
    repeat_threshold: NonNegativeFloat = 0.0
    """Repeat-factor sampling (LVIS, Gupta et al. 2019): images of classes that fewer than this fraction of the images
    hold are seen more often. 0: off."""
    min_size: Side | list[Side] = 600
    """Shorter side in training, pixels; from a list one is drawn (scale jitter), see `scale_per`."""
    scale_per: Literal["image", "step"] = "image"
    """One of the sizes in `min_size` is drawn for each image (detectron2), or for each step, over all processes: images
    of one scale need far less padding (docs/performance.md)."""
    max_size: Side = 1000
    """Cap on the longer side in training, pixels."""
    test_min_size: Side = 600
    """Shorter side in validation, test and prediction, pixels."""
    test_max_size: Side = 1000
    """Cap on the longer side in validation, test and prediction, pixels."""
    size_divisor: Side = 32
    """Images are zero-padded at the right and the bottom up to a multiple of this."""
    padded_sizes: NonNegativeInt = 0
    """Training batches are padded to about so many sizes, chosen over the first 500 steps so that few pixels are added:
    each new size is tuned by cuDNN, and compiled for. 0: each batch has its own."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training images."""
    aspect_groups: Repeats = 6
    """Training batches hold images of similar aspect ratio, out of this many groups, to save padding; 0: mixed."""
    num_workers: NonNegativeInt = 4
    """Loader processes for each training process."""
    cache: bool = True
    """Annotations of large sets, once read, are kept under `~/.cache/residual-detection` (or
    `$RESIDUAL_DETECTION_HOME`) until one of the files changes; all processes share them in memory."""
    on_error: OnErrorOption = "stop"

    @field_validator("min_size")
    @classmethod
    def _not_an_empty_list(cls, value: int | list[int]) -> int | list[int]:
        if value == []:
            raise ValueError("give at least one size")
        return value


# ---------------------------------------------------------------------------------------------- model


class AnchorConfig(Section):
    """Reference boxes of the RPN (Faster R-CNN, Sec. 3.1.1)."""

    sizes: list[PositiveInt] | list[list[PositiveInt]] = [128, 256, 512]
    """Square roots of the areas in pixels, all on one level (C4, VGG); one list for each of P2..P6 (FPN)."""
    aspect_ratios: list[PositiveFloat] = [0.5, 1.0, 2.0]
    """Height / width."""
    rounded: bool = False
    """Corners rounded to whole pixels, as torchvision does."""
    offset: Fraction = 0.0
    """Where in a cell the anchors are centred, in strides: 0 its origin (torchvision, detectron2), 0.5 its middle."""
    fitted_strides: bool = False
    """The distance between anchors is the padded image's size divided by the map's, rounded down, as torchvision has it
    (less than 64 on P6 where P5 has an odd size); false: the level's stride."""

    @model_validator(mode="after")
    def _equally_many_everywhere(self) -> AnchorConfig:
        levels = [sizes for sizes in self.sizes if isinstance(sizes, list)] or [self.sizes]
        if not self.aspect_ratios or not all(levels):
            raise ValueError("give at least one size (on each level) and one of aspect_ratios")
        if len({len(sizes) for sizes in levels}) > 1:
            raise ValueError(f"sizes {self.sizes}: give each level equally many: the RPN's head is one for all levels")
        return self


HeadNorm = Literal["none", "frozen", "batch", "sync"]
"""Batch norm of the detector's own layers: none, a constant scale and offset, trained, or trained across processes."""


class RpnConfig(Section):
    """Region proposal network (Faster R-CNN, Sec. 3.1). Defaults: the papers'."""

    hidden_channels: Width | None = 512
    """Width of the 3x3 convolution; null: the width of the feature map."""
    num_convs: Annotated[Repeats, Field(ge=1)] = 1
    """3x3 convolutions before the siblings (torchvision's V2 detectors: 2)."""
    fg_iou_thresh: Fraction = 0.7
    """Anchors with an IoU of at least this with an object are positive (and each object's best anchors)."""
    bg_iou_thresh: Fraction = 0.3
    """Anchors whose IoU with every object is below this are negative; those in between take no part in the loss."""
    batch_size_per_image: PositiveInt = 256
    """Anchors sampled for the loss (Faster R-CNN, Sec. 3.1.3)."""
    positive_fraction: Fraction = 0.5
    """Share of positives in the sample, at most."""
    cross_boundary: Literal["keep", "drop"] = "keep"
    """Anchors that cross the image's border: in training kept or dropped (Faster R-CNN, Sec. 3.3, drops)."""
    pre_nms_top_n_train: PositiveInt = 12000
    """Best-scored anchors of a level that go into NMS, in training."""
    post_nms_top_n_train: PositiveInt = 2000
    """Proposals an image, over all levels, in training."""
    pre_nms_top_n_test: PositiveInt = 6000
    """Best-scored anchors of a level that go into NMS, at test."""
    post_nms_top_n_test: PositiveInt = 300
    """Proposals an image, over all levels, at test."""
    nms_thresh: Fraction = 0.7
    """Overlap, as IoU, above which the worse-scored of two proposals of a level is dropped."""
    min_size: NonNegativeFloat = 1e-3
    """Proposals narrower or lower than this are dropped, pixels of the resized image."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Where the box loss turns from quadratic to linear; 0: plain L1."""
    box_loss_weight: PositiveFloat = 1.0
    """Factor of the RPN's box loss."""


class BoxConfig(Section):
    """The detector on the RoIs (Fast R-CNN). Defaults: the reproductions' consensus."""

    read_by = {"pool": {"pool_inclusive": ("roi_pool",)}}  # RoIAlign's may stay: the two are compared by one --set
    pool: Literal["roi_align", "roi_pool"] = "roi_align"
    """roi_align: bilinear samples (He et al. 2017). roi_pool: maxima of rounded bins, as the papers had it."""
    pool_inclusive: bool = False
    """roi_pool: an RoI ends with the pixel left of and above its right and lower edge, as in Caffe, where coordinates
    name pixels that belong to it. false: with the pixel behind them, about one time in eight a row or column more."""
    pool_size: Annotated[int, Field(gt=0, le=32)] = 14
    """Bins on each side. C4: 14 (conv5 keeps its stride 2) or 7 (conv5 runs at stride 1). VGG, FPN: 7."""
    sampling_ratio: Repeats = 0
    """RoIAlign's samples on each side of a bin; 0: as many as the bin has feature pixels."""
    aligned: bool = True
    """RoIAlign's half-pixel correction."""
    fg_iou_thresh: Fraction = 0.5
    """RoIs with an IoU of at least this with an object are positive."""
    bg_iou_range: tuple[Fraction, Fraction] = (0.0, 0.5)
    """RoIs with an IoU in [low, high) are background. The papers: (0.1, 0.5) on VOC."""
    batch_size_per_image: PositiveInt = 128
    """RoIs sampled for the loss."""
    positive_fraction: Fraction = 0.25
    """Share of positives in the sample, at most."""
    add_ground_truth: bool = True
    """The ground-truth boxes join the proposals in training."""
    bbox_reg_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0)
    """Factors of the regression targets dx, dy, dw, dh."""
    class_agnostic: bool = False
    """One box shared by all classes in place of one for each class."""
    smooth_l1_beta: NonNegativeFloat = 1.0
    """Where the box loss turns from quadratic to linear; 0: plain L1."""
    box_loss_weight: PositiveFloat = 1.0
    """Factor of the box loss."""
    num_convs: Repeats = 0
    """FPN and DC5: 3x3 convolutions before the fully connected layers (torchvision's V2 detectors: 4)."""
    norm: HeadNorm = "none"
    """Batch norm behind each of these convolutions."""
    num_fcs: Annotated[Repeats, Field(ge=1)] = 2
    """FPN and DC5: fully connected layers (torchvision's V2 detectors: 1)."""
    fc_width: Width = 1024
    """FPN, DC5 and VGG: outputs of each fully connected layer (VGG with ImageNet weights: 4096)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """FPN, DC5 and VGG: after each fully connected layer, in training."""
    global_context: bool = False
    """The whole image's feature joins each RoI's before the two siblings (He et al. 2016, App. B)."""
    unused_outputs: NonNegativeInt = 0
    """Outputs behind the classes' own that take part in the softmax and are never reported (torchvision's COCO
    detectors have 10 of them, for ids without a class)."""

    @model_validator(mode="after")
    def _options_fit(self) -> BoxConfig:
        low, high = self.bg_iou_range
        if low >= high:
            raise ValueError(f"bg_iou_range [{low}, {high}]: no RoI would be background: the first is the lower one")
        return self


WITHOUT_BATCH_NORM = (
    "vgg16", "vgg19", "highway19", "highway32", "fitnet19", "nin", "dsn", "maxout", "prelu_net_a", "prelu_net_b",
    "prelu_net_c",
)  # fmt: skip


class ModelConfig(Section):
    """Backbone, neck, RPN and detector."""

    read_by = {"neck": {"fpn_norm": ("fpn",)}}
    backbone: Annotated[str | dict[str, Any] | None, AfterValidator(check_backbone)] = None
    """A net of `backbones/`: resnet18..152, vgg16, vgg19 (_bn), googlenet, ...; or the table of a net of one's own (as
    in classification); null: that of the checkpoint `weights`. The last stage runs on each RoI, the map before it is
    shared; VGG and PReLU-net share all stages."""
    weights: str
    """random; torchvision:IMAGENET1K_V1 (or _V2); or the path of a checkpoint of tools/pretrain.py or of
    tools/convert_weights.py."""
    neck: Literal["none", "fpn"] = "none"
    """none: one map of stride 16 (conv4 of a ResNet, conv5_3 of VGG). fpn: P2..P6 (Lin et al. 2017)."""
    dilated_conv5: bool = False
    """ResNets and plain nets without neck: the map is conv5's (of other nets their last stage's), at stride 16 with
    dilation 2, and RoIs go through fully connected layers (DC5; Dai et al. 2017, Sec. 4.1); false: conv4's, and conv5
    runs on the RoIs (C4)."""
    norm: Literal["frozen", "batch", "sync"] = "frozen"
    """Batch norm: a constant scale and offset (He et al. 2016, App. A), trained, or trained across processes."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2
    """conv1..convN keep their weights."""
    stride_in_1x1: bool | None = None
    """Bottlenecks stride in the first 1x1 (MSRA, the paper) or in the 3x3 (torchvision). null: as the checkpoint
    `weights` says, else in the 3x3."""
    shortcut: Literal["A", "B", "C"] | None = None
    """He et al. 2016, Sec. 4.1. null: as the checkpoint says, else the net's own."""
    plain: bool | None = None
    """The same layers without shortcuts. null: as the checkpoint says, else false."""
    fpn_channels: Width = 256
    """fpn: channels of each level."""
    fpn_norm: HeadNorm = "none"
    """Batch norm behind each of the pyramid's convolutions (torchvision's V2 detectors have it)."""
    anchors: AnchorConfig = AnchorConfig()
    """Reference boxes of the RPN."""
    rpn: RpnConfig = RpnConfig()
    """Region proposal network."""
    box: BoxConfig = BoxConfig()
    """The detector on the RoIs."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        nested = bool(self.anchors.sizes) and isinstance(self.anchors.sizes[0], list)
        if self.neck == "fpn":
            if str(self.backbone).startswith("vgg"):
                raise ValueError("neck: fpn needs a net with maps of strides 4, 8, 16 and 32: not VGG")
            if not nested or len(self.anchors.sizes) != 5:
                raise ValueError("neck: fpn needs anchors.sizes with one list for each of the 5 levels P2..P6")
            if self.box.pool == "roi_pool":
                raise ValueError("neck: fpn needs box.pool: roi_align")
        elif nested:
            raise ValueError("anchors.sizes is one plain list where neck is none: there is one level")
        if self.dilated_conv5 and (self.neck == "fpn" or str(self.backbone).startswith("vgg")):
            raise ValueError("dilated_conv5 needs a ResNet backbone and neck: none")
        if (self.box.num_convs or self.box.num_fcs != 2) and self.neck == "none" and not self.dilated_conv5:
            raise ValueError("box.num_convs and box.num_fcs are for neck: fpn and for dilated_conv5: true")
        if self.box.dropout and self.neck == "none" and not self.dilated_conv5 and "resnet" in str(self.backbone):
            raise ValueError("box.dropout is for fully connected layers: neck: fpn, dilated_conv5: true, and VGG")
        if self.box.norm != "none" and not self.box.num_convs:
            raise ValueError("box.norm needs box.num_convs: it is the batch norm behind those convolutions")
        if self.backbone is None and self.weights == "random":
            raise ValueError("backbone: name a net, or give weights: the checkpoint of one")
        name = self.backbone.get("net") if isinstance(self.backbone, dict) else self.backbone
        if self.norm == "frozen" and self.weights == "random" and name not in WITHOUT_BATCH_NORM:
            raise ValueError(
                "norm: frozen over weights: random ruins the model, for its batch norm would never see a statistic: "
                "give model.weights, or set model.norm: batch"
            )
        if self.weights == "random" and self.frozen_stages:
            raise ValueError(
                "frozen_stages > 0 with weights: random would freeze random weights: set model.frozen_stages: 0"
            )
        return self


# ---------------------------------------------------------------------------------------------- training


class PhaseConfig(Section):
    """What two of the four phases of alternating training do otherwise; null: as in the rest of the config."""

    batch_size: Images | None = None
    """Takes the place of train.batch_size."""
    lr: PositiveFloat | None = None
    """Takes the place of optim.lr; scaled in the same way."""
    reference_batch_size: PositiveInt | None = None
    """Takes the place of optim.reference_batch_size."""
    schedule: ScheduleConfig | None = None
    """Takes the place of `schedule` in each of the two phases."""


class AlternatingConfig(Section):
    """Four-step alternating training, as the papers trained (Faster R-CNN, Sec. 3.2): the RPN; the detector on its
    proposals, both from the pretrained weights; then each one's own layers on the second one's body."""

    rpn: PhaseConfig = PhaseConfig()
    """Phases 1 and 3, which train the RPN."""
    detector: PhaseConfig = PhaseConfig()
    """Phases 2 and 4, which train the detector on the RoIs."""


BatchSize = Annotated[
    int,
    Field(ge=0, le=1_000_000),
    BeforeValidator(lambda value: 0 if value == "auto" else value),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1_000_000}, {"enum": ["auto"], "type": "string"}]}
    ),
]
"""A number of images; 0 is `auto`, for which a training puts a number before it begins."""


class DetectionTrainConfig(TrainConfig):
    """The loop."""

    batch_size: BatchSize
    """Images in each step, over all processes and accumulated parts. auto: as many (1, 2, 4, ... in each part) as fit
    into the GPU's memory, tried before the first step; on a CPU optim.reference_batch_size."""
    compile: bool = False
    """torch.compile for the regions of fixed shape; falls back with a warning."""
    graphs: bool = False
    """On CUDA, the forward and backward pass of a step as one CUDA graph for each of `data.padded_sizes`, which must be
    given, so that the host's time no longer bounds small batches. Losses and samples stay the same. Takes up to twice
    the memory, falls back with a warning; for one process, and not with batch_size auto."""
    best_metric: Literal["voc07.mAP", "voc12.mAP", "coco.AP", "coco.AP50", "imagenet_det.mAP", "loss"] = "voc12.mAP"
    """Figure of the validation set that chooses best.pt."""
    transfer_classes: bool = False
    """--init-from: classes that the weights know under the same name (COCO's tv is VOC's tvmonitor) start from those
    rows of the class layers. false: all class layers start afresh where the lists of classes differ."""
    alternating: AlternatingConfig | None = None
    """Train in four phases, each as long as `schedule` says, in place of joint training ({}: all as in the rest)."""

    @model_validator(mode="after")
    def _phases_have_fixed_lengths(self) -> DetectionTrainConfig:
        if self.alternating is not None and self.patience is not None:
            raise ValueError("patience is for joint training: the phases of alternating training run to their ends")
        return self


# ---------------------------------------------------------------------------------------------- test


class TtaConfig(Section):
    """Test-time augmentation: the whole detector on several views of an image, their detections merged."""

    hflip: bool = False
    """Each view's mirror image too."""
    scales: list[Side] = []
    """Shorter sides of the views, pixels; []: data.test_min_size alone. Caps on the longer side are in proportion."""
    merge: Literal["nms", "vote"] = "nms"
    """NMS over the views' detections, or NMS and voting (IoU vote_iou, 0.5 where that is null)."""

    @model_validator(mode="after")
    def _no_view_twice(self) -> TtaConfig:
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales}: a size appears twice: the second view would add nothing")
        if self.merge == "vote" and not (self.hflip or self.scales):
            raise ValueError("merge: vote has nothing to merge: give hflip: true or scales")
        return self


class TestConfig(Section):
    """The thresholds of every detection, and what a test does beyond the plain one (He et al. 2016, App. B) in
    `test_det.py`, `predict.py` and at the end of `train_det.py`, whose validations are plain. No retraining needed."""

    __test__: ClassVar[bool] = False
    """pytest must not take the class for a test."""
    read_by = {"refine_rounds": {"refine_nms_thresh": ()}, "scales": {"canonical_size": ()}}
    score_thresh: Fraction = 0.05
    """Detections have a higher score than this. The papers' VOC results: 0.001."""
    nms_thresh: Fraction = 0.5
    """Overlap, as IoU, above which the worse-scored of two detections of a class is dropped. The papers: 0.3."""
    detections_per_img: PositiveInt = 100
    """Detections an image at most, the best-scored ones (COCO's limit)."""
    refine_rounds: Repeats = 0
    """Box refinement: how many times the regressed boxes are pooled and scored again. The paper: 1."""
    refine_nms_thresh: Fraction = 0.3
    """Takes the place of nms_thresh where refine_rounds > 0: the union of the rounds holds more duplicates."""
    vote_iou: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Box voting among boxes that overlap by at least this; null: off. The paper, with refinement: 0.5."""
    scales: list[Side] = []
    """Multi-scale detector: shorter sides of its feature maps, pixels; the proposals stay at data.test_min_size, caps
    on the longer side are in proportion. []: off. The paper: [200, 400, 600, 800, 1000]."""
    canonical_size: PositiveInt = 224
    """An RoI is pooled at the two of `scales` at which it is nearest to this size, pixels. 224 is the paper's, with 600
    pixels in training; a detector trained on smaller images or objects wants the size its objects usually had there."""
    tta: TtaConfig = TtaConfig()
    """Test-time augmentation."""

    @property
    def plain(self) -> TestConfig:
        """The thresholds alone, without refinement, voting, further sizes and test-time augmentation."""
        return TestConfig(
            score_thresh=self.score_thresh, nms_thresh=self.nms_thresh, detections_per_img=self.detections_per_img
        )

    @model_validator(mode="after")
    def _ways_fit(self) -> TestConfig:
        if len(self.scales) == 1:
            raise ValueError(
                f"scales {self.scales}: the multi-scale detector compares pairs of scales: give two or more (for one "
                "other size: data.test_min_size)"
            )
        if self.scales and self.tta.scales:
            raise ValueError(
                "scales and tta.scales exclude each other: one maximum of features over sizes, or one merging of "
                "detections over sizes (tta.hflip goes with both)"
            )
        return self


class DetectionConfig(Section):
    """A detector and its training: what `tools/train_det.py --cfg` reads."""

    seed: Seed = 0
    """Decides first weights, order, augmentation and samples."""
    data: DataConfig
    """What is learned from, validated on and tested on."""
    model: ModelConfig
    """Backbone, neck, RPN and detector."""
    optim: OptimConfig
    """The optimiser."""
    schedule: ScheduleConfig
    """Length and learning rate."""
    train: DetectionTrainConfig
    """The training loop."""
    test: TestConfig = TestConfig()
    """Thresholds of the detections, and what a test does beyond the plain one."""
    metrics: list[Literal["voc07", "voc12", "coco", "imagenet_det"]] = ["voc07", "voc12", "coco"]
    """Evaluation protocols that are computed."""

    @model_validator(mode="after")
    def _graphs_are_few(self) -> DetectionConfig:
        if self.train.graphs and not self.data.padded_sizes:
            raise ValueError("train.graphs keeps a graph for each padded size: say how many in data.padded_sizes (32)")
        if self.train.graphs and not self.train.batch_size:
            raise ValueError("train.graphs needs memory that train.batch_size auto does not reckon with: give a number")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> DetectionConfig:
        check_parts("batch_size", self.train.batch_size, self.train)
        if self.train.alternating is not None:
            for name in ("rpn", "detector"):
                size = getattr(self.train.alternating, name).batch_size or self.train.batch_size
                check_parts(f"alternating.{name}.batch_size", size, self.train)
        return self
