"""Reading of detector checkpoints: what comes back, and each way in which a file can be wrong, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from configs.errors import UserError
from detection.checkpoint import load_detector, load_matching, load_strictly, read_detector_file
from tests.detection.made import save_detector


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("weights") / "detector.pt")


def test_a_detector_comes_back_bit_for_bit(file: Path):
    stored = torch.load(file, weights_only=True)
    detector, config = load_detector(file)
    assert not detector.training
    assert detector.class_names == ["red", "blue"]
    assert detector.preprocessing.to_dict() == stored["preprocessing"]
    own = detector.state_dict()
    assert own.keys() == stored["model"].keys()
    assert all(torch.equal(own[name], value) for name, value in stored["model"].items())
    assert config.model.backbone == "resnet18"


def test_thresholds_of_the_command_line(file: Path):
    detector, config = load_detector(file, overrides=["test.score_thresh=0.25", "test.detections_per_img=7"])
    assert (detector.test.score_thresh, detector.test.detections_per_img) == (0.25, 7)
    assert config.test.score_thresh == 0.25
    with pytest.raises(UserError, match=r"score_tresh.*score_thresh"):
        load_detector(file, overrides=["test.score_tresh=0.25"])


def test_a_config_that_does_not_fit_the_weights(file: Path):
    with pytest.raises(UserError, match=r"rpn.*\(16, .* in the file, \(8, .* in the model") as error:
        load_detector(file, overrides=["model.rpn.hidden_channels=8"])
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "classifier"}, "is a classifier checkpoint, not a detector"),
        ({"kind": None}, "not one of this project's checkpoints, not a detector"),
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"class_names": []}, "lacks class_names"),
        ({"class_names": torch.zeros(0)}, "class_names are not a list of texts"),
        ({"format": torch.ones(2)}, "its format is a Tensor: the checkpoint is damaged"),
        ({"kind": torch.zeros(0)}, "its kind is a Tensor: the checkpoint is damaged"),
        ({"model": None}, "model"),
        ({"preprocessing": None}, "preprocessing"),
    ],
    ids=str,
)
def test_files_that_are_not_detectors(file: Path, tmp_path: Path, change, words):
    path = tmp_path / "changed.pt"
    content = torch.load(file, weights_only=True) | change
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    with pytest.raises(UserError, match=words) as error:
        read_detector_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_list(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.pt"):
        read_detector_file(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"list\.pt: holds a list"):
        read_detector_file(tmp_path / "list.pt")


class Net(nn.Module):
    """A body, a head and class layers in a detector's words."""

    def __init__(self, width: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, width)
        self.roi_heads = nn.ModuleDict({"box_head": nn.Linear(width, 2), "box_predictor": nn.Linear(2, classes)})


def test_strict_loading_loads_everything_or_nothing():
    torch.manual_seed(0)
    source, net = Net(), Net()
    load_strictly(net, source.state_dict(), "x.pt")
    for name, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    state = Net().state_dict()
    for change, words in (
        (state | {"extra": torch.zeros(1)}, "x.pt: extra is not a part"),
        ({name: value for name, value in state.items() if name != "backbone.bias"}, "x.pt: backbone.bias is missing"),
        (state | {"backbone.bias": torch.zeros(3)}, r"backbone.bias .*\(3,\) in the file, \(2,\) in the model"),
    ):
        with pytest.raises(UserError, match=words):
            load_strictly(net, change, "x.pt")
        assert torch.equal(net.backbone.weight, source.backbone.weight)


def test_matching_loading_leaves_the_class_layers_fresh_and_names_them():
    torch.manual_seed(0)
    source, net = Net(classes=3), Net(classes=5)
    before = net.roi_heads["box_predictor"].weight.detach().clone()
    fresh = load_matching(net, source.state_dict() | {"unknown": torch.zeros(1)}, "a.pt")
    assert fresh == ["roi_heads.box_predictor.weight", "roi_heads.box_predictor.bias"]
    assert torch.equal(net.roi_heads["box_predictor"].weight, before)
    assert torch.equal(net.backbone.weight, source.backbone.weight)
    assert torch.equal(net.roi_heads["box_head"].bias, source.roi_heads["box_head"].bias)
    assert load_matching(Net(), source.state_dict(), "a.pt") == []


@pytest.mark.parametrize("part", ["backbone.weight", "roi_heads.box_head.weight"])
def test_another_body_is_refused(part):
    state = Net().state_dict()
    del state[part]
    with pytest.raises(UserError, match=rf"^a\.pt: has no {part} of the model's shape.*config\.yaml beside"):
        load_matching(Net(), state, "a.pt")
