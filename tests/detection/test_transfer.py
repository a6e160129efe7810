"""Class rows by name: VOC's twenty are all among COCO's; what is not known stays fresh."""

from __future__ import annotations

import pytest
import torch

from backbones.weights import IMAGENET
from configs.detection import ModelConfig
from configs.errors import UserError
from datasets.class_lists import COCO, IMAGENET_DET, VOC
from detection.model import Detector, build_detector
from detection.transfer import SYNONYMS, same_classes, transfer_classes


def make(names: list[str], **box: object) -> Detector:
    options = {"pool_size": 7, **box}
    config = ModelConfig.model_validate(
        {"backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0, "box": options}
    )
    return build_detector(config, names, preprocessing=IMAGENET)


def test_vocs_classes_are_cocos():
    found = same_classes(COCO, VOC)
    pairs = {VOC[new - 1]: COCO[old - 1] for new, old in found.items()}
    assert len(pairs) == 20
    assert {name: other for name, other in pairs.items() if name != other} == {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert same_classes(["Traffic_Light", "dog"], ["traffic light", "cat", "Dog"]) == {1: 1, 3: 2}
    assert same_classes(["TV_or_Monitor", "hair-dryer"], ["tv", "hair drier"]) == {1: 1, 2: 2}
    names = {name for group in SYNONYMS for name in group}
    known = {name for names in (COCO, VOC, IMAGENET_DET) for name in names}
    assert names - known == {"hair dryer", "mobile phone"} - known, "a synonym that no list has"


@pytest.mark.parametrize("unused", [0, 3])
def test_rows_go_to_the_classes_of_the_same_name(unused):
    torch.manual_seed(0)
    old, new = make(["tv", "car", "dog"], unused_outputs=unused), make(["cat", "dog", "tvmonitor"])
    fresh = {name: value.clone() for name, value in new.roi_heads.box_predictor.state_dict().items()}
    assert transfer_classes(new, old.state_dict(), old.class_names) == ["dog", "tvmonitor"]
    ours, theirs = new.roi_heads.box_predictor, old.roi_heads.box_predictor
    for mine, other in ((0, 0), (2, 3), (3, 1)):  # background, dog, tv
        assert torch.equal(ours.cls_score.weight[mine], theirs.cls_score.weight[other])
        assert torch.equal(ours.bbox_pred.weight[4 * mine : 4 * mine + 4], theirs.bbox_pred.weight[4 * other :][:4])
    assert torch.equal(ours.cls_score.weight[1], fresh["cls_score.weight"][1])
    assert torch.equal(ours.bbox_pred.weight[4:8], fresh["bbox_pred.weight"][4:8])


def test_a_box_shared_by_all_classes_goes_along():
    old, new = make(["car", "dog"], class_agnostic=True), make(["dog"], class_agnostic=True)
    transfer_classes(new, old.state_dict(), old.class_names)
    assert torch.equal(new.roi_heads.box_predictor.bbox_pred.weight, old.roi_heads.box_predictor.bbox_pred.weight)


def test_what_does_not_fit_is_refused():
    old = make(["car", "dog"])
    with pytest.raises(UserError, match=r"none of the classes to start from \(car, dog\) is one of the new ones"):
        transfer_classes(make(["ship"]), old.state_dict(), old.class_names)
    with pytest.raises(UserError, match="class_agnostic differ"):
        transfer_classes(make(["dog"], class_agnostic=True), old.state_dict(), old.class_names)
    with pytest.raises(UserError, match="global_context"):
        transfer_classes(make(["dog"], global_context=True), old.state_dict(), old.class_names)
