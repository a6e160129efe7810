"""Every option of a classifier and its training: what `tools/pretrain.py --cfg` reads.

The optimiser, the schedule and the loop have the options of a detector's (`configs.common`) and a few of their own.
Errors are fractions in [0, 1] everywhere; the paper's tables state per cents.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""torchvision's constants in units of uint8, RGB."""


class ImageSourceConfig(Section):
    """One set of labelled images. Relative paths are relative to `--data-root`, else `DATA_DIR`, else `data/`.

    folders: one folder for each class (ImageNet: by wnid), searched to any depth.
    imagenet_val: the validation images as they come, in one flat folder, with the file that holds their labels.
    imagenet_test: the test images as they come, which have no labels: `tools/test_cls.py` writes the file that the
        benchmark's server takes.
    tiny_imagenet: train/<wnid>/images/ and val/ with val_annotations.txt or one folder for each wnid.
    cifar10: the original python or binary batches, or train/<class>/ and test/<class>/.
    webdataset: tar files of images and labels (`00000017.jpg`, `00000017.cls`), with an index; the root names them all,
        as train-{000000..000127}.tar, and may be a URL (docs/pretraining.md).
    For cifar10 the root may be a zip file of such folders.
    """

    format: Literal["folders", "imagenet_val", "imagenet_test", "tiny_imagenet", "cifar10", "webdataset"]
    """Layout of the files, as above."""
    root: str
    """Folder of the set; cifar10: or a zip file; webdataset: path or URL of the tar files, `{000..127}` counts."""
    split: Literal["train", "val", "test"] | None = None
    """tiny_imagenet: train or val. cifar10: train or test."""
    ground_truth: str | None = None
    """imagenet_val: ILSVRC2012_validation_ground_truth.txt in its development kit (meta.mat, in later ones
    meta_clsloc.mat, beside it says what the numbers mean), LOC_val_solution.csv, or lines of a file name and a wnid."""
    meta: str | None = None
    """imagenet_test: meta.mat of the development kit, which says the numbers of the classes in a submission."""

    @model_validator(mode="after")
    def _has_what_the_format_needs(self) -> ImageSourceConfig:
        splits = {"tiny_imagenet": ("train", "val"), "cifar10": ("train", "test")}.get(self.format)
        if splits and self.split not in splits:
            raise ValueError(f"format {self.format} needs split: {' or '.join(splits)}")
        if splits is None and self.split is not None:
            raise ValueError(f"format {self.format} has no split: name the folder with root")
        if (self.format == "imagenet_val") != (self.ground_truth is not None):
            raise ValueError("ground_truth belongs to format imagenet_val, which needs it")
        if (self.format == "imagenet_test") != (self.meta is not None):
            raise ValueError("meta belongs to format imagenet_test, which needs it")
        return self


class ImageAugmentConfig(Section):
    """Augmentation of the training images."""

    read_by = {"crop": {"pad": ("pad",), **CROP_RANGES}}
    crop: Literal["pad", "scale_jitter", "random_resized", "centre"] = "scale_jitter"
    """pad: the whole set is kept on the device as uint8, padded and cropped there at random (CIFAR, He et al. 2016,
    Sec. 4.2). scale_jitter: shorter side drawn from `scale`, then a random crop (Sec. 3.4). random_resized: a random
    area and aspect ratio (Inception, torchvision). centre: that of the test."""
    pad: NonNegativeInt = 4
    """pad: pixels on each side, of the mean colour (zeros after its subtraction)."""
    scale: tuple[Side, Side] = (256, 480)
    """scale_jitter: the shorter side is uniform in [low, high], pixels."""
    area: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """random_resized: share of the image's area."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3.0 / 4.0, 4.0 / 3.0)
    """random_resized: width / height, uniform in its logarithm."""
    hflip: Fraction = 0.5
    """Probability of a mirror image."""
    lighting: NonNegativeFloat = 0.0
    """Standard deviation of AlexNet's PCA lighting (Krizhevsky et al. 2012, Sec. 4.1: 0.1); 0: off."""
    trivial_augment: bool = False
    """TrivialAugment Wide (Mueller & Hutter 2021)."""
    erasing: Fraction = 0.0
    """Probability of random erasing (Zhong et al. 2020)."""
    mixup: NonNegativeFloat = 0.0
    """Mixup's alpha (Zhang et al. 2018); 0: off. Each image is mixed with the one before it in the step, over all
    processes, all in one proportion. With cutmix as well, each step takes one of the two."""
    cutmix: NonNegativeFloat = 0.0
    """CutMix's alpha (Yun et al. 2019), its partners those of mixup; 0: off."""

    @property
    def mixes(self) -> bool:
        """Whether each image is mixed with another."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _ranges_grow(self) -> ImageAugmentConfig:
        check_crop_ranges(self)
        if self.crop == "pad" and self.trivial_augment:
            raise ValueError("trivial_augment works on images read from files: not with crop: pad")
        return self


class ImageDataConfig(Section):
    """What is learned from, validated on and tested on."""

    read_by = {"mean": {"mean_images": ("pixel", "channel")}}
    train: ImageSourceConfig
    """Training set."""
    val: ImageSourceConfig | None = None
    """Validation set, which chooses best.pt and the plateau's steps."""
    test: ImageSourceConfig | None = None
    """Test set, on which metrics.json is computed; null: the validation set takes its place."""
    hold_out: NonNegativeInt = 0
    """This many training images, always the same ones, become the validation set (CIFAR's 45k/5k split: 5000)."""
    crop_size: Side = 224
    """Side of the training crop, pixels; with crop: pad, of the images."""
    test_crop_size: Side | None = None
    """Side of the centre crop and of the 10 crops; null: crop_size."""
    test_resize: Side | None = 256
    """Shorter side before the crop, pixels; null: images as they are."""
    test_scales: list[Side] = [224, 256, 384, 480, 640]
    """Shorter sides of the multi-scale test (He et al. 2016, Sec. 3.4)."""
    mean: Literal["pixel", "channel"] | tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted, in units of uint8, RGB. pixel: the mean training crop, pixel by pixel (the paper); channel: its
    three channel means. For inputs larger than the crop, a mean per pixel is replaced by its channel means."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    """Divided by, in units of uint8, RGB. The paper divides by nothing: [1, 1, 1]."""
    mean_images: PositiveInt | None = 10000
    """A mean is measured over this many training images, spread over the set; null: all."""
    augment: ImageAugmentConfig = ImageAugmentConfig()
    """Augmentation of the training images."""
    reduced_decode: bool = False
    """JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where the crop stays at least as large: faster, and
    slightly different pixels."""
    num_workers: NonNegativeInt = 4
    """Loader processes for each training process."""
    on_error: OnErrorOption = "stop"

    @property
    def in_memory(self) -> bool:
        """The sets are kept on the device as uint8, their images used at their own size."""
        return self.augment.crop == "pad"

    @property
    def test_crop(self) -> int:
        """Side of the centre crop, pixels."""
        return self.test_crop_size or self.crop_size

    @model_validator(mode="after")
    def _parts_fit(self) -> ImageDataConfig:
        for name, source in (("train", self.train), ("val", self.val)):
            if source is not None and source.format == "imagenet_test":
                raise ValueError(f"{name}: format imagenet_test has no labels: it is for test")
        if self.hold_out and self.val is not None:
            raise ValueError("give either val or hold_out: both name the validation set")
        if self.test_resize is not None and self.test_resize < self.test_crop:
            raise ValueError(f"test_resize {self.test_resize} is smaller than the crop of {self.test_crop}")
        if self.augment.crop == "scale_jitter" and self.augment.scale[0] < self.crop_size:
            raise ValueError(f"augment.scale starts at {self.augment.scale[0]}, below the crop of {self.crop_size}")
        if self.in_memory and (self.reduced_decode or self.on_error != "stop"):
            raise ValueError("reduced_decode and on_error are for images read as the training goes: not with crop: pad")
        if self.mean == "pixel" and self.test_crop != self.crop_size:
            raise ValueError("mean: pixel needs crops of one size in training and test: leave out test_crop_size")
        if not self.test_scales:
            raise ValueError("test_scales: give at least one")
        return self


class ClassifierConfig(Section):
    """The network."""

    backbone: str | dict[str, Any]
    """resnet18..152, vgg16, vgg19 (_bn), googlenet, cifar_resnetN with N = 6n + 2, a comparator (highway19, highway32,
    fitnet19, nin, dsn, maxout, prelu_net_a to _c, linear); or the table of a net of your own: stem, stages, unit,
    shortcut (`backbones.resnet_spec.ResNetSpec`); or a comparator at another width, {net: nin, width: 0.5}."""
    shortcut: Literal["A", "B", "C"] | None = None
    """He et al. 2016, Sec. 4.1; null: the net's own, B for ImageNet, A for CIFAR."""
    plain: bool = False
    """The same layers without shortcuts."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in the first 1x1 (the paper) or in the 3x3 (torchvision). The config of a detector on these
    weights must say the same."""
    norm: Literal["batch", "sync"] = "batch"
    """Batch norm over a process's images, or over those of all processes."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Before the classifier; VGG: after fc6 and fc7; a comparator's own places. null: the net's own, 0, and 0.5 for
    VGG."""
    unit_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Inside the residual units, before the last convolution of each (Zagoruyko & Komodakis 2016). null: the net's own,
    0."""
    activation_checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory for a third more time (1202 layers at a batch of
    128)."""
    weights: str = "random"
    """Where training starts: random, torchvision:IMAGENET1K_V1 (or _V2), or the path of a checkpoint."""


class ClassificationScheduleConfig(ScheduleConfig):
    """Length and learning rate: a pure function of the iteration and of the iterations of the events below."""

    read_by = {
        "policy": {
            "milestones": ("multistep",),
            "gamma": ("multistep", "plateau"),
            "plateau_patience": ("plateau",),
            "plateau_threshold": ("plateau",),
            "plateau_steps": ("plateau",),
        },
        "warmup_iterations": {"warmup_factor": ()},
        "warmup_until_error": {"warmup_until_factor": ()},
    }
    policy: Literal["multistep", "cosine", "constant", "plateau"] = "multistep"  # pyright: ignore[reportIncompatibleVariableOverride]
    """multistep: the rate is multiplied by `gamma` at each milestone. cosine: half a cosine down to 0. constant.
    plateau: the rate is multiplied by `gamma` when the validation error has stopped falling (He et al. 2016,
    Sec. 3.4)."""
    plateau_patience: PositiveInt = 5
    """plateau: the rate falls after this many validations without a new lowest error."""
    plateau_threshold: NonNegativeFloat = 0.001
    """plateau: an error counts as lower when it is lower by at least this fraction (0.001 is a tenth of a per cent)."""
    plateau_steps: PositiveInt = 3
    """plateau: the training ends at the plateau after this many falls of the rate."""
    warmup_until_error: Fraction | None = None
    """The rate is multiplied by `warmup_until_factor` until the training error is below this (ResNet-110: 0.8,
    Sec. 4.2); null: off."""
    warmup_until_factor: Fraction = 0.1
    """Share of the rate during that warmup."""

    @model_validator(mode="after")
    def _one_warmup(self) -> ClassificationScheduleConfig:
        if self.warmup_until_error is not None and self.warmup_iterations:
            raise ValueError("give either warmup_until_error or warmup_iterations")
        return self


class ClassificationTrainConfig(TrainConfig):
    """The loop."""

    read_by = {"recalibrate": {"recalibrate_images": (True,)}}
    compile: bool = False
    """torch.compile; falls back with a warning."""
    graphs: bool = False
    """On CUDA, the forward and backward pass of a step as one CUDA graph: for small nets, whose launches take the host
    longer than the GPU takes to compute (CIFAR). Falls back with a warning."""
    best_metric: Literal["top1_error", "top5_error", "loss"] = "top1_error"
    """Figure of the validation set whose lowest value chooses best.pt."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """This share of each target is spread over all classes (Szegedy et al. 2016)."""
    recalibrate: bool = True
    """At the end batch norm gets the true mean and variance over the training set in place of running averages
    (He et al. 2016, App. A), which a detector then freezes. The metrics are those of the recalibrated net."""
    recalibrate_images: PositiveInt | None = None
    """The statistics are measured over this many training images, spread over the set; null: all."""


class ClassificationConfig(Section):
    """A classifier and its training: what `tools/pretrain.py --cfg` reads."""

    seed: Seed = 0
    """Decides first weights, order and augmentation."""
    data: ImageDataConfig
    """What is learned from, validated on and tested on."""
    model: ClassifierConfig
    """The network."""
    optim: OptimConfig
    """The optimiser."""
    schedule: ClassificationScheduleConfig
    """Length and learning rate."""
    train: ClassificationTrainConfig
    """The training loop."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ClassificationConfig:
        check_parts("batch_size", self.train.batch_size, self.train)
        changing = {
            "train.accumulate": self.train.accumulate > 1,
            "data.augment.mixup": self.data.augment.mixup > 0,
            "data.augment.cutmix": self.data.augment.cutmix > 0,
        }
        for name in (name for name, is_on in changing.items() if is_on and self.train.graphs):
            raise ValueError(f"train.graphs needs steps that are all the same: not with {name}")
        watching = {
            "schedule.policy plateau": self.schedule.policy == "plateau",
            "train.patience": self.train.patience is not None,
        }
        for name in (name for name, is_on in watching.items() if is_on):
            if self.data.val is None and not self.data.hold_out:
                raise ValueError(f"{name} watches the validation error: give data.val or data.hold_out")
            if self.train.validate_every is None:
                raise ValueError(f"{name} needs train.validate_every")
        return self
