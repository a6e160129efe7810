"""Refinement, voting, sizes, views and ensembles together: each identity gives the plain result, on every kind of head.

Random detectors whose scores are spread, on noise.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from backbones.weights import IMAGENET
from configs.detection import ModelConfig, TestConfig
from datasets.batch import Batch, ScaledImages
from detection.context import image_boxes
from detection.inference import Inference
from detection.model import Detector, build_detector
from detection.postprocess import BatchDetections
from detection.roi_features import RoiFeatures
from detection.tta import mirror_batch, mirror_detections
from tools.benchmarks.counting import Counts, count

NAMES = ["a", "b", "c"]
KINDS = ["c4", "vgg", "fpn"]
NMS_THRESH = 0.45
THRESHOLDS = {"nms_thresh": NMS_THRESH, "detections_per_img": 40}
ROIS = 12
"""Of an image."""
SIZES = torch.tensor([[64, 80], [60, 70]])
PADDED = (64, 96)


def model_config(kind: str, **box) -> ModelConfig:
    options = {
        "c4": {"backbone": "resnet50", "anchors": {"sizes": [16, 32]}},
        "vgg": {"backbone": "vgg16", "anchors": {"sizes": [16, 32]}},
        "fpn": {
            "backbone": "resnet18",
            "neck": "fpn",
            "fpn_channels": 32,
            "anchors": {"sizes": [[12], [16], [24], [32], [48]]},
        },
    }[kind]
    rpn = {"hidden_channels": 32, "post_nms_top_n_test": ROIS}
    box = {"pool_size": 4, "fc_width": 48} | box
    return ModelConfig.model_validate({"weights": "unused", **options, "rpn": rpn, "box": box})


@functools.cache
def random_batch(seed: int = 0) -> Batch:
    """Two noise images of unequal size."""
    images = torch.zeros(2, 3, *PADDED, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    for image, (height, width) in zip(images, SIZES.tolist(), strict=True):
        coarse = torch.rand(1, 3, 6, 8, generator=generator) * 255
        image[:, :height, :width] = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return Batch(
        images=images.contiguous(memory_format=torch.channels_last), image_sizes=SIZES, original_sizes=SIZES * 2,
        boxes=torch.zeros(2, 8, 4), labels=torch.zeros(2, 8, dtype=torch.int64),
        valid=torch.zeros(2, 8, dtype=torch.bool), index=torch.arange(2),
    )  # fmt: skip


@functools.cache
@torch.no_grad()
def detector(kind: str, seed: int = 0, context: bool = False) -> Detector:
    """Its logits and deltas are scaled to be of the order of 1, so that many classes and boxes come out."""
    torch.manual_seed(seed)
    thresholds = TestConfig.model_validate(THRESHOLDS)
    config = model_config(kind, global_context=context)
    model = build_detector(config, NAMES, test=thresholds, preprocessing=IMAGENET).eval()
    batch = random_batch()
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.5)
    features = model.features(batch)
    proposals, _ = model.rpn(features, batch.image_sizes, training=False)
    hidden = model.roi_heads.hidden(model.roi_maps(features), proposals.boxes)[proposals.valid]
    whole = model.roi_heads.hidden(model.roi_maps(features), image_boxes(batch.image_sizes)).flatten(0, 1)
    siblings = model.roi_heads.box_predictor
    for layer, size in ((siblings.cls_score, 2.0), (siblings.bbox_pred, 0.5)):
        nn.init.normal_(layer.weight)
        own, of_image = layer.weight[:, : hidden.shape[1]], layer.weight[:, hidden.shape[1] :]
        own *= size / ((hidden - hidden.mean(0)) @ own.T).std()
        layer.bias.copy_(-own @ hidden.mean(0))
        if context:
            of_image *= 0.5 * size / (whole @ of_image.T).abs().max()
    return model


def without_deltas(model: Detector) -> Detector:
    still = copy.deepcopy(model)
    nn.init.zeros_(still.roi_heads.box_predictor.bbox_pred.weight)
    nn.init.zeros_(still.roi_heads.box_predictor.bbox_pred.bias)
    return still


def at_sizes(batch: Batch, *factors: float) -> Batch:
    """The batch with `scaled`: None for 1, else its images enlarged."""

    def part(factor: float) -> ScaledImages | None:
        if factor == 1:
            return None
        images = nn.functional.interpolate(batch.images.float(), scale_factor=factor, mode="bilinear")
        return ScaledImages(images.byte(), (batch.image_sizes * factor).long())

    return replace(batch, scaled=tuple(map(part, factors)))


def rows(detections: BatchDetections, image: int) -> torch.Tensor:
    """(D, 6) of an image; scores and labels weigh enough to tell two detections apart."""
    valid = detections.valid[image]
    columns = (detections.boxes[image], detections.scores[image, :, None] * 100, detections.labels[image, :, None] * 50)
    return torch.cat(columns, dim=1)[valid].double()


def same(found: BatchDetections, expected: BatchDetections, tolerance: float = 0.02) -> None:
    """The same detections up to rounding and order."""
    for image in range(len(expected.valid)):
        ours, theirs = rows(found, image), rows(expected, image)
        assert len(ours) == len(theirs) > 5
        distance = torch.cdist(ours, theirs, p=float("inf"))
        assert distance.amin(0).max() < tolerance
        assert distance.amin(1).max() < tolerance


def differ(found: BatchDetections, expected: BatchDetections) -> None:
    assert any(
        len(rows(found, k)) != len(rows(expected, k))
        or torch.cdist(rows(found, k), rows(expected, k), p=float("inf")).amin(1).max() > 0.5
        for k in range(len(expected.valid))
    )


def infer(test: dict, batch: Batch, *detectors: Detector) -> BatchDetections:
    with torch.no_grad():
        return Inference(detectors, TestConfig.model_validate(THRESHOLDS | test))(batch)


# ---------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_detector_itself(kind, monkeypatch):
    model, batch = detector(kind), random_batch()
    with torch.no_grad():
        expected = model(batch)
    for field, value in zip(infer({}, batch, model), expected, strict=True):
        assert torch.equal(field, value)
    said = object()
    monkeypatch.setattr(model, "detect", lambda _, test: said)
    assert infer({}, batch, model) is said


def test_thresholds_are_the_tests_not_the_detectors():
    """Each of the three by its definition, on the same detector, alone and beside its own copy."""
    model, batch = detector("fpn"), random_batch()
    for members in ([model], [model, model]):
        found = infer({}, batch, *members)
        high = infer({"score_thresh": 0.5}, batch, *members)
        assert 0 < high.valid.sum() < found.valid.sum()
        assert (high.scores[high.valid] > 0.5).all()
        assert high.valid.sum() == (found.scores[found.valid] > 0.5).sum()
        few = infer({"detections_per_img": 3}, batch, *members)
        assert torch.equal(few.scores, found.scores[:, :3])
        assert infer({"nms_thresh": 0.1}, batch, *members).valid.sum() < found.valid.sum()
    with torch.no_grad():
        assert model.detect(batch, test=TestConfig(detections_per_img=3)).scores.shape == (2, 3)
    assert model.test == TestConfig.model_validate(THRESHOLDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [1, 2])
def test_refinement_that_moves_nothing(kind, rounds):
    model, batch = without_deltas(detector(kind)), random_batch()
    expected = infer({}, batch, model)
    same(infer({"refine_rounds": rounds, "refine_nms_thresh": NMS_THRESH}, batch, model), expected)
    differ(infer({"refine_rounds": rounds, "refine_nms_thresh": 0.1}, batch, model), expected)
    differ(infer({"refine_rounds": rounds, "refine_nms_thresh": NMS_THRESH}, batch, detector(kind)),
           infer({}, batch, detector(kind)))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_size_twice(kind):
    model, batch = detector(kind), random_batch()
    expected = infer({}, batch, model)
    own = ScaledImages(batch.images, batch.image_sizes)
    for scaled in ((None, None), (own, own), (None, own, None)):
        test = {"scales": [64] * len(scaled)}
        same(infer(test, replace(batch, scaled=scaled), model), expected)
    differ(infer({"scales": [64, 128]}, at_sizes(batch, 1, 2), model), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_of_one_model_twice(kind):
    model, batch = detector(kind), random_batch()
    expected = infer({}, batch, model)
    same(infer({}, batch, model, copy.deepcopy(model)), expected)
    differ(infer({}, batch, model, detector(kind, seed=1)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_view_of_the_own_size(kind):
    model, batch = detector(kind), random_batch()
    found = infer({"tta": {"scales": [64]}}, replace(batch, scaled=(None,)), model)
    same(found, infer({}, batch, model), tolerance=1e-6)


# ---------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("kind", KINDS)
def test_off_costs_nothing_and_most_of_it_never_waits(kind):
    """Launches and syncs; only ensembles and sizes, whose RoIs are counted on the host, may wait."""
    model, batch = detector(kind), random_batch()

    def counts(test: dict) -> Counts:
        inference = Inference([model], TestConfig.model_validate(THRESHOLDS | test))
        with torch.no_grad():
            return count(lambda: inference(batch))

    with torch.no_grad():
        plain = count(lambda: model(batch))
    off = counts({})
    assert off.operators == plain.operators
    assert off.syncs == plain.syncs == 0
    for test in ({"refine_rounds": 1, "vote_iou": 0.5}, {"tta": {"hflip": True, "merge": "vote"}}):
        more = counts(test)
        assert more.syncs == 0, more.sync_sources
        assert more.launches > plain.launches


# ---------------------------------------------------------------------------------------------- properties


def test_with_its_mirror_an_image_and_its_mirror_give_the_same():
    model, batch = detector("fpn"), at_sizes(random_batch(), 1, 2)
    for test in ({"tta": {"hflip": True}}, {"tta": {"hflip": True, "merge": "vote"}, "scales": [64, 128]}):
        straight = infer(test, batch, model)
        mirrored = infer(test, mirror_batch(batch), model)
        same(mirror_detections(mirrored, batch.original_sizes), straight)
    differ(mirror_detections(infer({}, mirror_batch(batch), model), batch.original_sizes), infer({}, batch, model))


def test_members_may_stand_in_any_order_and_be_of_any_kind():
    members, batch = [detector(kind) for kind in KINDS], random_batch()
    test = {"refine_rounds": 1, "vote_iou": 0.5}
    first, second = infer(test, batch, *members), infer(test, batch, *members[::-1])
    same(first, second)
    differ(first, infer(test, batch, members[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind):
    """The RoIs of each size are gathered over the batch: each image alone gives the same."""
    model, batch = detector(kind, context=True), at_sizes(random_batch(), 1, 1.5, 2)
    test = {"scales": [64, 96, 128], "canonical_size": 50, "refine_rounds": 1, "vote_iou": 0.5}
    together = infer(test, batch, model)
    for k in range(2):
        parts = [None if part is None else ScaledImages(part.images[[k]], part.image_sizes[[k]])
                 for part in batch.scaled]  # fmt: skip
        own = replace(batch, scaled=())
        one = Batch(*(tensor[[k]] for tensor in own.tensors()), scaled=tuple(parts))
        same(infer(test, one, model), BatchDetections(*(field[[k]] for field in together)))


def test_voting_moves_boxes_and_nothing_else():
    model, batch = detector("c4"), random_batch()
    plain, voted = infer({}, batch, model), infer({"vote_iou": 0.5}, batch, model)
    assert torch.equal(plain.labels, voted.labels)
    torch.testing.assert_close(plain.scores, voted.scores)
    assert 0.5 < (plain.boxes - voted.boxes).abs().max() < 100


def test_class_agnostic_boxes_refine_too():
    torch.manual_seed(0)
    model = build_detector(model_config("fpn", class_agnostic=True), NAMES, preprocessing=IMAGENET).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    batch = random_batch()
    same(infer({"refine_rounds": 1, "refine_nms_thresh": NMS_THRESH}, batch, without_deltas(model)),
         infer({}, batch, without_deltas(model)))  # fmt: skip


# ---------------------------------------------------------------------------------------------- global context


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_costs_one_roi_an_image_whatever_the_rounds(kind, monkeypatch):
    batch, seen = random_batch(), []
    pool = RoiFeatures.__call__

    def spy(self, features, rois, step=1):
        seen.append(rois.shape[0] * rois.shape[1])
        return pool(self, features, rois, step)

    monkeypatch.setattr(RoiFeatures, "__call__", spy)

    def pooled(test: dict, context: bool) -> int:
        model = detector(kind, context=context)
        seen.clear()
        infer(test, batch, model)
        maps = 2 if kind == "c4" and model.roi_heads.box_head.can_split() and len(seen) % 2 == 0 else 1
        return sum(seen) // maps

    for test, rounds in (({}, 1), ({"refine_rounds": 2}, 3)):
        assert pooled(test, False) == 2 * ROIS * rounds
        assert pooled(test, True) == 2 * ROIS * rounds + 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_scorers_context_is_the_training_one(kind):
    """The plain way, through `RoiHeads.forward`, and the way of the rounds, which keeps the context, agree."""
    model, batch = without_deltas(detector(kind, context=True)), random_batch()
    same(infer({"refine_rounds": 1, "refine_nms_thresh": NMS_THRESH}, batch, model), infer({}, batch, model))


def test_the_context_trains():
    model = build_detector(model_config("fpn", global_context=True), NAMES, preprocessing=IMAGENET).train()
    batch = random_batch()
    batch = replace(batch, boxes=torch.tensor([10.0, 10, 50, 55]).expand(2, 8, 4), labels=batch.labels + 1,
                    valid=torch.arange(8).expand(2, 8) < 1)  # fmt: skip
    sum(model(batch, seed=0, iteration=0).values()).backward()
    siblings = model.roi_heads.box_predictor
    width = model.roi_heads.box_head.out_channels
    for layer in (siblings.cls_score, siblings.bbox_pred):
        assert layer.weight.shape[1] == 2 * width
        own, context = layer.weight.grad.split(width, dim=1)
        assert own.abs().max() > 0
        assert context.abs().max() > 0
    with torch.no_grad():  # the head learns through the context alone too
        siblings.cls_score.weight[:, :width] = 0
        siblings.bbox_pred.weight[:, :width] = 0
    model.zero_grad()
    sum(model.roi_losses(*_rois(model, batch), batch, seed=0, iteration=0).values()).backward()
    assert model.roi_heads.box_head.fc6.weight.grad.abs().max() > 0


def _rois(model: Detector, batch: Batch):
    features = model.features(batch)
    return features, model.rpn(features, batch.image_sizes, training=True)[0]
