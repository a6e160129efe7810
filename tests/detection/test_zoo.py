"""Detectors by name: the table against torchvision's own, and random weights in the published form from a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from configs.errors import UserError
from configs.loading import load_config
from datasets.class_lists import COCO
from detection.checkpoint import load_detector, read_detector_file
from detection.zoo import CONFIGS, LICENCES, ZOO, card_of_file
from tests.serving import serving
from tools.runtime import cli
from tools.runtime.setup import make_detector

MODELS = torchvision.models.detection


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that stands for every publisher's address."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    with serving(folder) as server:
        for variable in ("RESIDUAL_DETECTION_TORCHVISION_URL", "HF_ENDPOINT"):
            monkeypatch.setenv(variable, server.url)
        yield folder


def test_the_table_is_torchvisions():
    for weights in (MODELS.FasterRCNN_ResNet50_FPN_Weights.COCO_V1, MODELS.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1):
        name = weights.url.rsplit("/", 1)[1].partition("_coco")[0]
        model = ZOO[f"torchvision://{name}"]
        assert weights.url == f"https://download.pytorch.org/models/{model.file}"
        assert model.published.endswith(str(weights.meta["_metrics"]["COCO-val2017"]["box_map"]))


@pytest.mark.parametrize("name", ZOO)
def test_each_has_a_config_and_a_page(name, root):
    scheme, _, rest = name.partition("://")
    model = ZOO[name]
    config = load_config(CONFIGS / model.config)
    assert scheme in LICENCES
    assert config.model.stride_in_1x1 == (scheme == "detectron2")
    depth = "101" if "101" in rest else "50"
    assert config.model.backbone == f"resnet{depth}"
    assert (config.model.neck == "fpn") == ("fpn" in rest.lower())
    assert config.model.dilated_conv5 == ("DC5" in rest)
    row = next(line for line in (root / "docs" / "zoo.md").read_text().splitlines() if f"`{name}`" in line)
    assert model.config.removesuffix(".yaml") in row
    assert model.published.split()[-1].rstrip(")") in row or "80.3" in row


def test_every_config_is_some_detectors():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {model.config for model in ZOO.values()}


def test_a_detector_by_name(published, capsys):
    torch.manual_seed(0)
    state = MODELS.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save(state, published / ZOO["torchvision://fasterrcnn_resnet50_fpn"].file)
    detector, config = load_detector(Path("torchvision://fasterrcnn_resnet50_fpn"))  # one slash is left of two
    assert "BSD 3-Clause" in capsys.readouterr().err
    assert detector.class_names == COCO
    assert config.data.test_min_size == 800
    assert torch.equal(detector.rpn.head.cls_logits.weight, state["rpn.head.cls_logits.weight"])
    card = read_detector_file("torchvision://fasterrcnn_resnet50_fpn")["card"]
    assert card["source"] == "torchvision://fasterrcnn_resnet50_fpn"
    assert card["published"] == "COCO val2017 box AP 37.0"
    assert card["licence"] == LICENCES["torchvision"]
    assert not capsys.readouterr().err  # it was kept

    config = load_config(CONFIGS / "torchvision_r50_fpn_coco.yaml", ["model.box.unused_outputs=0"])
    name = cli.weights_argument("torchvision://fasterrcnn_resnet50_fpn")
    mine = make_detector(config, ["cat", "dog"], published, None, name)  # as --init-from does
    assert "weights    of torchvision://fasterrcnn_resnet50_fpn; from scratch: roi_heads.box_pred" in (
        capsys.readouterr().out
    )
    assert torch.equal(mine.roi_heads.box_head.fc6.weight, state["roi_heads.box_head.fc6.weight"])
    assert mine.card == {"started_from": card["source"], "licence": card["licence"]}
    assert detector.card == card


def test_files_of_the_hub(published):
    """This project's checkpoints are taken; others' detectors need a config."""
    folder = published / "me" / "repo" / "resolve" / "main"
    folder.mkdir(parents=True)
    torch.save({"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 4)}, folder / "foreign.pth")
    with pytest.raises(UserError, match=r"of another project's form: convert .*foreign\.pth with tools/convert"):
        load_detector("hf://me/repo/foreign.pth")
    torch.save({"kind": "detector", "format": 99}, folder / "newer.pt")
    with pytest.raises(UserError, match="has format 99"):
        load_detector("hf://me/repo/newer.pt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision://fasterrcnn_resnet50_fpn_v3", "did you mean torchvision://fasterrcnn_resnet50_fpn"),
        ("detectron2://COCO-Detection/faster_rcnn_R_101_C4_1x.yaml", "did you mean detectron2://COCO-Detection/"),
        ("detectron2://", "no such detector: there are torchvision://fasterrcnn_resnet50_fpn, "),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(UserError) as caught:
        load_detector(name)
    assert words in str(caught.value)


def test_the_publishers_file_name_is_known():
    card = card_of_file(Path("downloads/model_final_f97cb7.pkl"), "detectron2")
    assert card["source"] == "detectron2://COCO-Detection/faster_rcnn_R_50_C4_3x"
    assert card["published"] == "COCO val2017 box AP 38.4"
    assert card["licence"].startswith("CC BY-SA 3.0")
    assert card_of_file(Path("mine.pkl"), "detectron2") == {"source": "detectron2, mine.pkl"}
