"""Networks from a classifier's weights and from checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.weights import Preprocessing
from backbones.zoo import build_backbone
from configs.errors import UserError
from configs.loading import load_config
from configs.localisation import LocalisationConfig, LocaliserConfig
from detection.localisation.checkpoint import build_localiser, load_localiser
from detection.localisation.rcnn import PerClassRcnn
from detection.localisation.rpn import PerClassRpn
from tests.detection.localisation.made import NET

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize("backbone", ["resnet18", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_both_stages_start_from_a_classifiers_weights(tmp_path, backbone):
    torch.manual_seed(3)
    classifier = build_backbone(backbone, num_classes=7)
    path = tmp_path / "classifier.pt"
    preprocessing = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "channel_order": "rgb"}
    torch.save(
        {"format": 1, "kind": "classifier", "config": {"model": {"backbone": backbone}}, "class_names": [],
         "preprocessing": preprocessing, "model": classifier.state_dict(), "training": {}}, path,
    )  # fmt: skip
    values = {"backbone": backbone, "weights": str(path)}
    rpn = build_localiser(LocaliserConfig(**values), 7)
    rcnn = build_localiser(LocaliserConfig(**values, stage="rcnn", rcnn={"proposals": "x.pt"}), 7)
    assert isinstance(rpn, PerClassRpn)
    assert isinstance(rcnn, PerClassRcnn)
    own = classifier.state_dict()
    for net in (rpn, rcnn):
        assert net.normalize.preprocessing.to_dict() == preprocessing
        state = net.net.state_dict()
        assert len(state) > 20
        assert all(torch.equal(value, own[name]) for name, value in state.items())
    dropped = {name for name in own.keys() - rcnn.net.state_dict().keys() if "num_batches" not in name}
    assert dropped == {"fc.weight", "fc.bias", "classifier.6.weight", "classifier.6.bias"} & own.keys()
    stride, channels = {"resnet18": (32, 512), "vgg16": (16, 512)}[backbone]
    assert rpn.anchors.strides == [stride]
    assert rpn.siblings.cls_logits.weight.shape == (7 * 9, channels, 1, 1)
    assert rcnn.siblings.bbox_pred.weight.shape == (7 * 4, {"resnet18": 512, "vgg16": 4096}[backbone], 1, 1)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"format": 1, "kind": "classifier", "model": {}}, path)
    with pytest.raises(
        UserError, match=r"x\.pt: a classifier's checkpoint: give last\.pt or best\.pt of a run of tools/train_loc"
    ):
        load_localiser(path, "rpn")


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    preprocessing = {"mean": [1.0] * 3, "std": [1.0] * 3, "channel_order": "rgb"}
    whole = {"format": 1, "kind": "localiser", "config": {}, "preprocessing": preprocessing, "model": {}}
    for part, missing in (("preprocessing", "preprocessing"), (None, "class_names")):
        torch.save({key: value for key, value in whole.items() if key != part}, path)
        with pytest.raises(UserError, match=rf"x\.pt: the checkpoint lacks {missing}"):
            load_localiser(path, "rpn")


def test_a_run_s_network_comes_back_in_eval_mode(tmp_path):
    values = {"backbone": NET, "weights": "random", "norm": "batch"}
    preprocessing = Preprocessing(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="rgb")
    made = load_config(CONFIGS / "tiny_imagenet_loc_rpn.yaml", ["schedule.epochs=3"], LocalisationConfig)
    config = {**made.model_dump(mode="json"), "model": values}
    net = build_localiser(LocaliserConfig(**values), 5, preprocessing=preprocessing)
    content = {
        "format": 1, "kind": "localiser", "config": config, "class_names": list("abcde"), "model": net.state_dict(),
        "preprocessing": preprocessing.to_dict(), "mean_boxes": [[0.1, 0.2, 0.8, 0.9]] * 5,
    }  # fmt: skip
    torch.save(content, tmp_path / "last.pt")
    loaded = load_localiser(tmp_path / "last.pt", "rpn")
    assert isinstance(loaded.net, PerClassRpn)
    assert not loaded.net.training
    assert loaded.net.normalize.preprocessing == preprocessing
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.net.state_dict().items())
    assert (loaded.class_names, loaded.mean_boxes) == (list("abcde"), content["mean_boxes"])
    assert loaded.config.schedule == made.schedule
    with pytest.raises(UserError, match=r"last\.pt: of stage rpn, where stage rcnn is needed"):
        load_localiser(tmp_path / "last.pt", "rcnn")
