"""The detector against torchvision's own FasterRCNN with the same weights, and what a batch may and may not change."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from configs.detection import ModelConfig
from datasets.batch import Batch
from detection.model import Detector, build_detector

NAMES = ["a", "b", "c", "d"]
ALL = 10**6
"""A sample size that takes every candidate, so that two random generators cannot differ."""


def model_config(**changes) -> ModelConfig:
    """torchvision's FasterRCNN in the words of this project's config."""
    rpn = {
        "hidden_channels": None,
        "pre_nms_top_n_train": 300,
        "post_nms_top_n_train": 150,
        "pre_nms_top_n_test": 300,
        "post_nms_top_n_test": 150,
        "smooth_l1_beta": 1 / 9,
        "batch_size_per_image": ALL,
    }
    box = {
        "pool_size": 7,
        "sampling_ratio": 2,
        "aligned": False,
        "smooth_l1_beta": 1 / 9,
        "batch_size_per_image": ALL,
        "positive_fraction": 0.9,
    }
    options = {
        "backbone": "resnet50",
        "weights": "unused",
        "neck": "fpn",
        "norm": "frozen",
        "frozen_stages": 2,
        "anchors": {"sizes": [[32], [64], [128], [256], [512]], "rounded": True},
        "rpn": rpn | changes.pop("rpn", {}),
        "box": box | changes.pop("box", {}),
    }
    return ModelConfig.model_validate(options | changes)


def small_config(**changes) -> ModelConfig:
    """A ResNet-18-C4 with few RoIs, where no peer has to be matched."""
    options = {
        "backbone": "resnet18",
        "neck": "none",
        "anchors": {"sizes": [32, 64, 128]},
        "rpn": {"batch_size_per_image": 64, "hidden_channels": 64, "post_nms_top_n_test": 30},
        "box": {"pool_size": 7, "batch_size_per_image": 16},
    }
    return model_config(**options | changes)


def random_batch(sizes: list[tuple[int, int]], counts: list[int], padded: tuple[int, int], seed: int = 0) -> Batch:
    """A batch of noise images of the given (H, W) with the given numbers of objects."""
    generator = torch.Generator().manual_seed(seed)
    num, most = len(sizes), max(8, *counts)
    images = torch.zeros(num, 3, *padded, dtype=torch.uint8)
    boxes, labels = torch.zeros(num, most, 4), torch.zeros(num, most, dtype=torch.int64)
    for k, ((height, width), count) in enumerate(zip(sizes, counts, strict=True)):
        images[k, :, :height, :width] = torch.randint(0, 256, (3, height, width), generator=generator)
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 70.0, height - 70.0])
        boxes[k, :count] = torch.cat((corner, corner + 20 + torch.rand(count, 2, generator=generator) * 50), dim=1)
        labels[k, :count] = torch.randint(1, len(NAMES) + 1, (count,), generator=generator)
    valid = torch.arange(most) < torch.tensor(counts)[:, None]
    image_sizes = torch.tensor(sizes)
    return Batch(
        images=images.to(memory_format=torch.channels_last),
        image_sizes=image_sizes,
        original_sizes=image_sizes * 2,
        boxes=boxes,
        labels=labels,
        valid=valid,
        index=torch.arange(num) + 40,
    )


def take(batch: Batch, index: list[int]) -> Batch:
    """Some images of a batch, in the given order, at the same padded shape."""
    return Batch(*(tensor[index] for tensor in batch.tensors()))


def close_rows(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same rows (N, D) up to rounding and order: two scores that differ by a rounding may change places."""
    assert len(ours) == len(theirs)
    distance = torch.cdist(ours.double(), theirs.double(), p=float("inf"))
    assert distance.amin(0).max() < 5e-3
    assert distance.amin(1).max() < 5e-3


SIZES, COUNTS, PADDED = [(192, 256), (160, 200), (256, 170)], [1, 0, 25], (256, 256)


@functools.cache
def torchvision_model() -> nn.Module:
    """A random torchvision detector whose batch norms have seen statistics and whose scores are spread."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(NAMES) + 1,
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=150,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_positive_fraction=0.9,
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            norm.momentum = None
    model.backbone.train()
    with torch.no_grad():
        for _ in range(2):
            model.backbone(torch.randn(2, 3, 128, 128))
        for layer, std in ((model.rpn.head.cls_logits, 0.2), (model.rpn.head.bbox_pred, 0.02)):
            nn.init.normal_(layer.weight, std=std)
        for block in model.backbone.fpn.layer_blocks:  # features of the order of 1, as in a trained net
            block[0].weight.mul_(0.01)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.02)
    return model.eval()


def our_model(**changes) -> Detector:
    """Ours with torchvision's weights, by torchvision's names."""
    detector = build_detector(model_config(**changes), NAMES, preprocessing=default_preprocessing())
    missing, unexpected = detector.load_state_dict(torchvision_model().state_dict(), strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    return detector.eval()


def default_preprocessing():
    from backbones.weights import IMAGENET

    return IMAGENET


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to rounding, relative to the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max().clamp(min=1e-6)))


@torch.no_grad()
def test_features_logits_proposals_and_detections_equal_torchvisions():
    theirs, ours = torchvision_model(), our_model()
    batch = random_batch(SIZES, COUNTS, PADDED)
    images = ImageList(ours.normalize(batch.images, batch.image_sizes), SIZES)
    expected = theirs.backbone(images.tensors)
    features = ours.features(batch)
    for ours_map, theirs_map in zip(features, expected.values(), strict=True):
        close(ours_map, theirs_map)

    logits, deltas = theirs.rpn.head(list(expected.values()))
    proposals, output = ours.rpn(features, batch.image_sizes, training=False)
    parts = zip(output.logits.split(output.sizes, 1), output.deltas.split(output.sizes, 1), strict=True)
    for level, (our_logits, our_deltas) in enumerate(parts):
        close(our_logits, logits[level].permute(0, 2, 3, 1).flatten(1))
        close(our_deltas, deltas[level].permute(0, 2, 3, 1).reshape(3, -1, 4))
    expected_proposals, _ = theirs.rpn(images, expected)
    for image in range(3):
        close_rows(proposals.boxes[image][proposals.valid[image]], expected_proposals[image])

    expected_detections, _ = theirs.roi_heads(expected, expected_proposals, SIZES)
    detections = ours(batch)
    for image, expected_one in enumerate(expected_detections):
        valid = detections.valid[image]
        assert int(valid.sum()) > 10
        # The original images are twice the size. Scores and labels weigh enough to tell two detections apart.
        ours_rows = (
            detections.boxes[image] / 2,
            detections.scores[image, :, None] * 10,
            detections.labels[image, :, None],
        )
        theirs_rows = (expected_one["boxes"], expected_one["scores"][:, None] * 10, expected_one["labels"][:, None])
        close_rows(torch.cat(ours_rows, 1)[valid], torch.cat(theirs_rows, 1))


def torchvision_losses(model: nn.Module, batch: Batch, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """torchvision's training losses, image by image, with batch norm as at test."""
    model.train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    targets = [
        {"boxes": batch.boxes[k][batch.valid[k]], "labels": batch.labels[k][batch.valid[k]]} for k in range(len(images))
    ]
    sizes = [tuple(size) for size in batch.image_sizes.tolist()]
    features = model.backbone(images)
    proposals, rpn_losses = model.rpn(ImageList(images, sizes), features, targets)
    _, box_losses = model.roi_heads(features, proposals, sizes, targets)
    model.eval()
    return rpn_losses | box_losses


def test_losses_and_gradients_equal_torchvisions_image_by_image():
    """One object, none, and many; unequal sizes."""
    theirs, ours = torchvision_model(), our_model()
    batch = random_batch(SIZES, COUNTS, PADDED, seed=1)
    losses = ours.train()(batch, seed=0, iteration=0)
    expected = torchvision_losses(theirs, batch, ours.normalize(batch.images, batch.image_sizes))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value.item() > 0
        close(losses[name], value)
    sum(losses.values()).backward()
    theirs.zero_grad()
    sum(expected.values()).backward()
    gradients = dict(theirs.named_parameters())
    trained = [(name, p) for name, p in ours.named_parameters() if p.requires_grad]
    assert len(trained) > 60
    for name, parameter in trained:
        # By norm: single entries lose digits where rounding moves an activation over a ReLU's edge.
        expected_gradient = gradients[name].grad
        difference = (parameter.grad - expected_gradient).norm() / expected_gradient.norm()
        assert difference < 1e-2, name


@pytest.mark.parametrize("neck", ["none", "fpn"])
def test_the_batch_does_not_change_an_images_samples_losses_or_detections(neck):
    """At the same padded shape: each image alone, and the batch in another order."""
    fpn = {"neck": "fpn", "fpn_channels": 64, "anchors": {"sizes": [[32], [64], [128], [256], [512]]}}
    config = small_config(**(fpn if neck == "fpn" else {}))
    torch.manual_seed(0)
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing())
    nn.init.normal_(detector.rpn.head.cls_logits.weight, std=0.5)
    batch = random_batch(SIZES, [3, 5, 8], PADDED)
    detector.eval()
    with torch.no_grad():
        together = detector(batch)
        shuffled = detector(take(batch, [2, 0, 1]))
        for field, value in zip(shuffled, together, strict=True):
            torch.testing.assert_close(field, value[[2, 0, 1]], rtol=1e-4, atol=1e-3)
        alone = [detector(take(batch, [k]), seed=3, iteration=5) for k in range(3)]
        losses = detector(batch, seed=3, iteration=5)
        reordered = detector(take(batch, [1, 2, 0]), seed=3, iteration=5)
    for name, value in losses.items():
        close(reordered[name], value)
        # Each image has the same number of samples here, so the batch's loss is the mean of the images'.
        close(value, torch.stack([one[name] for one in alone]).mean())


def test_every_part_that_trains_has_a_gradient_and_nothing_else():
    config = small_config()
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing()).train()
    sum(detector(random_batch(SIZES, COUNTS, PADDED), seed=0, iteration=0).values()).backward()
    for name, parameter in detector.named_parameters():
        frozen = name.startswith(("backbone.body.conv1", "backbone.body.layer1"))
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is not None) != frozen, name


def test_gradients_flow_with_no_object_at_all():
    config = small_config()
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing()).train()
    losses = detector(random_batch(SIZES[:2], [0, 0], PADDED), seed=0, iteration=0)
    assert losses["loss_box_reg"].item() == losses["loss_rpn_box_reg"].item() == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("pool", ["roi_pool", "roi_align"])
def test_vgg_and_class_agnostic_boxes(pool, agnostic):
    config = model_config(
        backbone="vgg16_bn",
        neck="none",
        anchors={"sizes": [32, 64]},
        box={"pool": pool, "fc_width": 32, "class_agnostic": agnostic, "batch_size_per_image": 16},
    )
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing()).train()
    batch = random_batch([(96, 128)], [3], (96, 128))
    sum(detector(batch, seed=0, iteration=0).values()).backward()
    assert detector.roi_heads.box_predictor.bbox_pred.out_features == (4 if agnostic else 20)
    detections = detector.eval()(batch)
    assert detections.boxes.shape == (1, 100, 4)
    assert (detections.scores[detections.valid] > 0.05).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"dilated_conv5": True, "box": {"pool_size": 7, "fc_width": 32, "batch_size_per_image": 16}},
        {
            "neck": "fpn",
            "fpn_norm": "batch",
            "anchors": {"sizes": [[32], [64], [128], [256], [512]], "fitted_strides": True},
            "rpn": {"num_convs": 2, "batch_size_per_image": 64},
            "box": {
                "pool_size": 7, "fc_width": 32, "num_fcs": 1, "num_convs": 2, "norm": "batch", "unused_outputs": 3,
                "batch_size_per_image": 16,
            },
        },
    ],
    ids=["dc5", "fpn v2"],
)  # fmt: skip
def test_the_zoos_other_forms_train(changes):
    config = small_config(**changes)
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing()).train()
    batch = random_batch(SIZES, COUNTS, PADDED)
    sum(detector(batch, seed=0, iteration=0).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in detector.parameters())
    assert detector.backbone.strides == ([16] if config.dilated_conv5 else [4, 8, 16, 32, 64])
    with torch.no_grad():
        found = detector.eval()(batch)
    assert (found.labels <= len(NAMES)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dilated_conv5": True, "backbone": "vgg16"}, "dilated_conv5 needs a ResNet"),
        ({"box": {"num_convs": 2}}, "box.num_convs and box.num_fcs are for neck: fpn"),
        ({"dilated_conv5": True, "box": {"norm": "batch"}}, "box.norm needs box.num_convs"),
    ],
)
def test_forms_that_contradict_themselves(changes, words):
    with pytest.raises(ValueError, match=words):
        small_config(**changes)


def test_bf16_autocast_keeps_geometry_in_float32():
    config = small_config()
    detector = build_detector(config, NAMES, preprocessing=default_preprocessing()).eval()
    batch = random_batch(SIZES, COUNTS, PADDED)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = detector.features(batch)
        proposals, output = detector.rpn(features, batch.image_sizes, training=False)
        losses = detector(batch, seed=0, iteration=0)
    assert features[0].dtype == torch.bfloat16
    assert {output.anchors.dtype, proposals.boxes.dtype, output.deltas.dtype} == {torch.float32}
    assert all(loss.dtype == torch.float32 for loss in losses.values())
