"""Which proposals train and what they should answer, by hand; the losses of both kinds of box regression."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from configs.detection import BoxConfig
from detection import roi_heads as module
from detection import rpn
from detection.heads import BoxPredictor, Conv5Head
from detection.roi_features import RoiFeatures
from detection.roi_heads import RoiHeads, TrainingRois
from detection.rpn import Proposals
from tests.detection.test_heads import c4_heads
from tests.detection.test_roi_align import random_rois

OBJECTS = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 60.0, 80.0], [0.0, 0.0, 0.0, 0.0]]])
LABELS = torch.tensor([[2, 3, 0]])
VALID = torch.tensor([[True, True, False]])


def heads(**options) -> RoiHeads:
    config = BoxConfig(**{"pool_size": 1, "sampling_ratio": 1, "batch_size_per_image": 64} | options)
    predictor = BoxPredictor(1, 3, class_agnostic=config.class_agnostic)
    return RoiHeads(config, RoiFeatures(config, [1]), nn.Flatten(), predictor)


def select(roi_heads: RoiHeads, rows: list[list[float]], valid: list[bool] | None = None, **changes) -> TrainingRois:
    boxes = torch.tensor([rows])
    good = torch.ones(1, len(rows), dtype=torch.bool) if valid is None else torch.tensor([valid])
    truth = {"boxes": OBJECTS, "labels": LABELS, "valid": VALID} | {
        key: changes.pop(key) for key in ("boxes", "labels", "valid_objects") if key in changes
    }
    truth["valid"] = truth.pop("valid_objects", truth["valid"])
    draw = {"image_index": torch.tensor([5]), "seed": 0, "iteration": 0} | changes
    return roi_heads.select(Proposals(boxes, torch.zeros(1, len(rows)), good), **truth, **draw)


def answers(rois: TrainingRois) -> dict[tuple[float, ...], tuple[int, list[float]]]:
    """Box -> label and deltas of the valid ones."""
    valid = rois.valid[0]
    return {
        tuple(box): (label, [round(x, 4) for x in deltas])
        for box, label, deltas in zip(
            rois.boxes[0][valid].tolist(), rois.labels[0][valid].tolist(), rois.targets[0][valid].tolist(), strict=True
        )
    }


def test_labels_and_targets_by_hand():
    """An RoI 10 x 16 over the first object: overlap 100 / 160, dy = (5 - 8) / 16 * 10, dh = ln(10 / 16) * 5."""
    near, exact, far = [0.0, 0.0, 10.0, 16.0], [40.0, 40.0, 60.0, 80.0], [70.0, 0.0, 90.0, 20.0]
    found = answers(select(heads(add_ground_truth=False, positive_fraction=1.0), [near, exact, far]))
    assert found == {
        tuple(near): (2, [0, round(-3 / 16 * 10, 4), 0, round(math.log(10 / 16) * 5, 4)]),
        tuple(exact): (3, [0, 0, 0, 0]),
        tuple(far): (0, [0, 0, 0, 0]),
    }


def test_the_weights_of_the_targets_are_the_configs():
    roi_heads = heads(add_ground_truth=False, bbox_reg_weights=(1.0, 2.0, 3.0, 4.0))
    found = answers(
        select(roi_heads, [[1.0, 0.0, 11.0, 16.0], [70.0, 0.0, 90.0, 20.0], *[[70.0, 0.0, 90.0, 21.0]] * 3])
    )
    label, deltas = found[1.0, 0.0, 11.0, 16.0]
    assert label == 2
    assert deltas == [-0.1, round(-3 / 16 * 2, 4), 0, round(math.log(10 / 16) * 4, 4)]


def test_ground_truth_joins_where_asked_and_padding_never():
    far = [70.0, 0.0, 90.0, 20.0]
    found = select(heads(positive_fraction=1.0), [far])
    assert set(answers(found)) == {tuple(far), (0, 0, 10, 10), (40, 40, 60, 80)}
    assert set(answers(select(heads(positive_fraction=1.0, add_ground_truth=False), [far]))) == {tuple(far)}


def test_thresholds_include_their_lower_ends():
    """Overlaps of exactly 0.5 and 0.25 with the object 10 x 10."""
    half, quarter = [0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.0, 40.0]
    options = {"add_ground_truth": False, "positive_fraction": 1.0}
    found = answers(select(heads(**options, bg_iou_range=(0.25, 0.5)), [half, quarter]))
    assert {box: label for box, (label, _) in found.items()} == {tuple(half): 2, tuple(quarter): 0}
    found = answers(select(heads(**options, fg_iou_thresh=0.51, bg_iou_range=(0.26, 0.5)), [half, quarter]))
    assert found == {}  # neither positive nor background


def test_an_image_without_objects_is_all_background_whatever_the_lower_bound():
    none = torch.zeros(1, 3, dtype=torch.bool)
    roi_heads = heads(bg_iou_range=(0.1, 0.5))
    found = select(roi_heads, [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 30.0]], valid_objects=none)
    assert sorted(answers(found)) == [(0, 0, 10, 10), (5, 5, 9, 30)]
    assert found.labels.sum() == 0
    assert not found.positive.any()


def test_proposals_that_are_not_valid_or_have_no_extent_stay_out():
    rows = [[0.0, 0.0, 10.0, 10.0], [70.0, 0.0, 90.0, 20.0], [30.0, 30.0, 30.0, 50.0]]
    found = select(heads(add_ground_truth=False), rows, [False, True, True])
    assert list(answers(found)) == [(70, 0, 90, 20)]
    assert torch.isfinite(found.targets).all()
    assert ((found.boxes[..., 2:] - found.boxes[..., :2]) > 0).all()
    assert (found.labels[~found.valid] == 0).all()


def test_positives_are_a_share_at_most():
    """Eight copies of an object and eight of nothing in a sample of eight: two positives, six background."""
    rows = [[0.0, 0.0, 10.0, 10.0 + k / 100] for k in range(8)] + [[70.0, 0.0, 90.0, 20.0 + k] for k in range(8)]
    roi_heads = heads(add_ground_truth=False, batch_size_per_image=8)
    found = [select(roi_heads, rows, iteration=step) for step in range(3)]
    for one in found:
        assert one.positive.sum() == 2
        assert (one.labels[one.positive] == 2).all()
        assert (one.labels[~one.positive] == 0).all()
        assert one.valid.all()
    assert len({tuple(sorted(answers(one))) for one in found}) == 3


def test_the_sample_of_an_object_does_not_depend_on_the_number_of_proposals():
    """Objects that overlap nothing else are drawn by their own codes: with 3 or 7 proposals of no use, the same."""
    boxes = torch.tensor([[[20.0 * k, 0.0, 20.0 * k + 10, 10.0] for k in range(12)]])
    labels = torch.arange(12)[None] % 3 + 1
    roi_heads = heads(batch_size_per_image=8, positive_fraction=0.5, bg_iou_range=(0.4, 0.5))
    truth = {"boxes": boxes, "labels": labels, "valid_objects": torch.ones(1, 12, dtype=torch.bool)}
    drawn = [
        {box for box, (label, _) in answers(select(roi_heads, [[0.0, 50.0, 9.0, 60.0]] * n, **truth)).items() if label}
        for n in (3, 7)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4


def made_rois() -> TrainingRois:
    targets = torch.tensor([[[0.5, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]])
    positive = torch.tensor([[True, False, False]])
    return TrainingRois(
        torch.zeros(1, 3, 4), torch.tensor([[2, 0, 0]]), targets, positive, torch.tensor([[True, True, False]])
    )


def test_losses_by_hand():
    """Two RoIs count. The positive's box is read at its class: 1.5 away, so 1.5 - 0.5; twice that by the weight."""
    deltas = torch.full((1, 3, 4, 4), 7.0)
    deltas[0, 0, 2] = torch.tensor([2.0, 0.0, 0.0, 0.0])
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = math.log(3)  # a score of 3 / 6
    losses = heads(box_loss_weight=2.0).losses(logits, deltas, made_rois())
    assert losses["loss_classifier"].item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    assert losses["loss_box_reg"].item() == pytest.approx(2.0 * 1.0 / 2, rel=1e-6)


def test_one_box_shared_by_all_classes():
    deltas = torch.full((1, 3, 1, 4), 7.0)
    deltas[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    roi_heads = heads(class_agnostic=True, smooth_l1_beta=2.0)
    losses = roi_heads.losses(torch.zeros(1, 3, 4), deltas, made_rois())
    assert losses["loss_box_reg"].item() == pytest.approx(0.5 * 0.5**2 / 2 / 2, rel=1e-6)


def test_a_single_class_has_a_box_of_its_own():
    """Two outputs: the positive's is the second."""
    deltas = torch.full((1, 3, 2, 4), 7.0)
    deltas[0, 0, 1] = torch.tensor([2.0, 0.0, 0.0, 0.0])
    rois = made_rois()._replace(labels=torch.tensor([[1, 0, 0]]))
    losses = heads().losses(torch.zeros(1, 3, 2), deltas, rois)
    assert losses["loss_box_reg"].item() == pytest.approx(1.0 / 2, rel=1e-6)


@pytest.mark.parametrize("agnostic", [False, True])
def test_answers_are_the_predictors_roi_by_roi(agnostic):
    """Two images of two RoIs on maps of x + 10 y and 100 + x + 10 y: each RoI's own value in its own row."""
    roi_heads = heads(class_agnostic=agnostic)
    plane = torch.arange(8.0) + 10 * torch.arange(6.0)[:, None]
    rois = torch.tensor([[[0.0, 0, 2, 2], [4, 0, 6, 4]], [[2, 2, 4, 4], [0, 0, 2, 2]]])
    values = torch.tensor([[5.5, 4.5 + 15], [2.5 + 25 + 100, 105.5]])  # of the centres, less half a pixel
    logits, deltas = roi_heads([torch.stack((plane, plane + 100))[:, None]], rois, torch.tensor([[6, 8], [6, 8]]))
    predictor = roi_heads.box_predictor
    torch.testing.assert_close(logits, values[..., None] @ predictor.cls_score.weight.T)
    expected = (values[..., None] @ predictor.bbox_pred.weight.T).reshape(2, 2, -1, 4)
    assert expected.shape[2] == (1 if agnostic else 4)
    torch.testing.assert_close(deltas, expected)


def test_the_split_is_used_where_it_is_exact_and_saves_work(monkeypatch):
    calls = []
    monkeypatch.setattr(Conv5Head, "after_pooling", lambda self, *maps: calls.append(maps) or torch.zeros(8, 2048))
    sizes = torch.tensor([[144, 208]])
    feature, rois = torch.randn(1, 1024, 9, 13), random_rois(torch.Generator().manual_seed(0), 4)[:1].repeat(1, 2, 1)
    c4_heads("roi_align", 14, False)([feature], rois, sizes)
    assert len(calls) == 1
    assert [tuple(m.shape) for m in calls[0]] == [(8, 512, 14, 14), (8, 2048, 7, 7)]
    c4_heads("roi_align", 14, False, norm="batch")([feature], rois, sizes)  # statistics of the batch are not linear
    c4_heads("roi_pool", 14, False)([feature], rois, sizes)  # nor is a maximum
    c4_heads("roi_align", 14, False)([torch.randn(1, 1024, 30, 40)], rois, sizes)  # more pixels than bins
    assert len(calls) == 1


def test_the_image_s_context_stands_behind_each_roi_s_features():
    """Images of 4 x 8 and 6 x 2 (H, W) on maps of x and 10 + x: one sample in the middle of each, less half a pixel."""
    roi_heads = heads(global_context=True)
    roi_heads.box_predictor = BoxPredictor(2, 3, class_agnostic=False)
    plane = torch.arange(8.0).expand(6, 8)
    rois = torch.tensor([[[0.0, 0, 2, 2], [4, 0, 6, 4]], [[2, 2, 4, 4], [0, 0, 2, 2]]])
    hidden = torch.tensor([[[0.5, 3.5], [4.5, 3.5]], [[12.5, 10.5], [10.5, 10.5]]])
    logits, deltas = roi_heads([torch.stack((plane, plane + 10))[:, None]], rois, torch.tensor([[4, 8], [6, 2]]))
    torch.testing.assert_close(logits, hidden @ roi_heads.box_predictor.cls_score.weight.T)
    torch.testing.assert_close(deltas.flatten(2), hidden @ roi_heads.box_predictor.bbox_pred.weight.T)


def test_the_draws_are_not_the_rpn_s():
    assert module.SAMPLING_PURPOSE != rpn.SAMPLING_PURPOSE


def test_the_weights_of_deltas_are_the_config_s_not_the_checkpoint_s():
    assert set(heads().state_dict()) == {
        f"box_predictor.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
