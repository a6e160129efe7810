"""The weights that a net starts from: sources, strictness, and what messages say of files that do not fit."""

from __future__ import annotations

import socket

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from backbones.pretrained import load_backbone_weights
from backbones.vgg import VGG
from backbones.weights import IMAGENET, MSRA, write_safetensors
from backbones.zoo import build_backbone
from configs import downloads
from configs.errors import UserError


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(3)
    return torchvision.models.resnet18().state_dict()


def checkpoint_of(state, preprocessing=MSRA, **model):
    return {
        "format": 1,
        "kind": "classifier",
        "config": {"model": model},
        "class_names": ["a", "b"],
        "preprocessing": preprocessing.to_dict(),
        "model": state,
    }


def load(net, name, path, **options):
    options = {"stride_in_1x1": False, **options}
    return load_backbone_weights(net, name, str(path), **options)


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_random_leaves_the_net_alone():
    net = build_backbone("cifar_resnet20")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert load(net, "cifar_resnet20", "random") == IMAGENET
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bare_torchvision_file(resnet18, tmp_path, norm, suffix):
    path = tmp_path / f"resnet18.{suffix}"
    safetensors.torch.save_file(resnet18, path) if suffix == "safetensors" else torch.save(resnet18, path)
    net = build_backbone("resnet18", norm=norm)
    assert load(net, "resnet18", path, for_classification=True) == IMAGENET
    for key, value in net.state_dict().items():
        assert torch.equal(value, resnet18[key]), key


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_our_own_checkpoint_brings_its_preprocessing(resnet18, tmp_path, suffix):
    path = tmp_path / f"best.{suffix}"
    checkpoint = checkpoint_of(resnet18, backbone="resnet18")
    write_safetensors(checkpoint, path) if suffix == "safetensors" else torch.save(checkpoint, path)
    net = build_backbone("resnet18")
    assert load(net, "resnet18", "best." + suffix, data_root=tmp_path) == MSRA
    assert torch.equal(net.layer4[1].conv2.weight, resnet18["layer4.1.conv2.weight"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_classifier_counts_for_classification_only(resnet18, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18, path)
    net = build_backbone("resnet18", num_classes=20)
    before = net.fc.weight.clone()
    load(net, "resnet18", path)
    assert torch.equal(net.fc.weight, before)
    assert torch.equal(net.conv1.weight, resnet18["conv1.weight"])
    message = error_of(net, "resnet18", path, for_classification=True)
    assert "fc.weight" in message
    assert "1,000 classes, the config 20" in message
    without = {key: value for key, value in resnet18.items() if not key.startswith("fc.")}
    torch.save(without, path)
    load(net, "resnet18", path)
    assert "no classifier" in error_of(net, "resnet18", path, for_classification=True)


def test_vggs_fc6_and_fc7_travel_along_for_detection(tmp_path):
    with torch.device("meta"):
        net = VGG((1, 1, 1, 1, 1), batch_norm=False)
    layers = (nn.Linear(8, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5))
    net.classifier = nn.Sequential(*layers)
    net.load_state_dict({key: torch.zeros(value.shape) for key, value in net.state_dict().items()}, assign=True)
    state = {key: torch.full_like(value, 0.5) for key, value in net.state_dict().items()}
    state |= {"classifier.6.weight": torch.ones(7, 6), "classifier.6.bias": torch.ones(7)}
    del state["classifier.3.bias"]
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    load(net, "vgg8", path)
    # fc7 travels whole or not at all; the 7 classes are another task's.
    assert [layer.weight.mean().item() for layer in net.classifier if isinstance(layer, nn.Linear)] == [0.5, 0.0, 0.0]
    assert net.classifier[0].bias.mean().item() == 0.5
    assert net.features[0].weight.mean().item() == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer3.1.bn2.running_var"), ["layer3.1.bn2.running_var", "missing"]),
        (lambda state: state.update(extra=torch.zeros(1)), ["extra", "not part of resnet18"]),
        (lambda state: state.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), ["conv1.weight", "64x3x3x3"]),
        (
            lambda state: state.update({"conv1.weigth": state.pop("conv1.weight")}),
            ["conv1.weight", "nearest key is conv1.weigth"],
        ),
        (lambda state: state.update({"bn1.wieght": state.pop("bn1.weight")}), ["bn1.weight", "nearest", "bn1.wieght"]),
    ],
)
def test_what_does_not_fit_is_named(resnet18, tmp_path, change, words):
    state = dict(resnet18)
    change(state)
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    message = error_of(build_backbone("resnet18"), "resnet18", path)
    for word in [*words, str(path)]:
        assert word in message


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "vgg16"])
def test_weights_of_another_net_are_recognised(resnet18, tmp_path, name):
    path = tmp_path / "file.pth"
    torch.save(resnet18, path)
    with torch.device("meta"):
        net = build_backbone(name)
    message = error_of(net, name, path)
    assert "weights of resnet18" in message
    assert name in message
    torch.save(checkpoint_of(resnet18, backbone="resnet18"), path)
    assert f"weights of resnet18, but the config's backbone is {name}" in error_of(net, name, path)


@pytest.mark.parametrize("stored", [False, True])
def test_the_stride_style_must_meet(tmp_path, stored):
    with torch.device("meta"):
        net = build_backbone("resnet50", stride_in_1x1=not stored)
    path = tmp_path / "resnet50.pt"
    torch.save(checkpoint_of({}, backbone="resnet50", stride_in_1x1=stored), path)
    message = error_of(net, "resnet50", path, stride_in_1x1=not stored)
    assert f"set model.stride_in_1x1: {str(stored).lower()}" in message
    if not stored:
        torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)  # bare: torchvision's
        assert "set model.stride_in_1x1: false" in error_of(net, "resnet50", path, stride_in_1x1=True)


def test_nets_of_the_same_shapes_are_told_apart(tmp_path):
    plain = build_backbone("cifar_resnet20", plain=True)
    path = tmp_path / "plain.pt"
    torch.save(checkpoint_of(plain.state_dict(), backbone="cifar_resnet20", plain=True, shortcut="A"), path)
    load(plain, "cifar_resnet20", path)
    assert "plain: True" in error_of(build_backbone("cifar_resnet20"), "cifar_resnet20", path)


def test_a_net_of_ones_own(tmp_path):
    table = {"stages": [{"units": 1, "width": 8, "stride": 2}], "unit": "bottleneck", "num_classes": 2}
    path = tmp_path / "own.pt"
    net, other = build_backbone(table), build_backbone(table, stride_in_1x1=True)
    torch.save(checkpoint_of(net.state_dict(), backbone=table), path)
    assert load(build_backbone(table), "net", path, for_classification=True) == MSRA
    assert "set model.stride_in_1x1: false" in error_of(other, "net", path, stride_in_1x1=True)
    wider = build_backbone({**table, "stem": {"width": 32}})
    assert "conv1.weight is 64x3x7x7 in the file and 32x3x7x7" in error_of(wider, "net", path)


def test_a_path_that_leads_nowhere(tmp_path):
    message = error_of(nn.Identity(), "resnet18", "r18.pt", data_root=tmp_path)
    assert f"no file r18.pt or {tmp_path / 'r18.pt'}" in message
    assert "torchvision:IMAGENET1K_V1" in message


def test_shortcut_options_are_explained(resnet18, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18, path)
    for options in ({"shortcut": "A"}, {"shortcut": "C"}, {"plain": True}):
        net = build_backbone("resnet18", **options)
        message = error_of(net, "resnet18", path)
        assert "downsample" in message
        assert "shortcut options differ" in message


def test_torchvisions_files_are_found_without_a_network(resnet18, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    file_name = "resnet18-f37072fd.pth"
    net = build_backbone("resnet18")
    message = error_of(net, "resnet18", "torchvision:IMAGENET1K_V1", data_root=tmp_path / "data")
    for words in (
        "torchvision:IMAGENET1K_V1: cannot",
        str(tmp_path / "cache"),
        file_name,
        "https://",
        "no network here",
    ):
        assert words in message
    assert not [path for path in tmp_path.rglob("*.p*t*") if not path.name.startswith(".")]  # nothing half-written

    for folder in (tmp_path / "data" / "weights", tmp_path / "cache" / "hub" / "checkpoints"):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(resnet18, folder / file_name)
        assert load(net, "resnet18", "torchvision:IMAGENET1K_V1", data_root=tmp_path / "data") == IMAGENET
        (folder / file_name).unlink()


def test_torchvisions_names_are_checked():
    net = build_backbone("cifar_resnet20")
    assert "IMAGENET1K_V1" in error_of(net, "resnet18", "torchvision:IMAGENET1K_V2")
    assert "no weights for cifar_resnet20" in error_of(net, "cifar_resnet20", "torchvision:IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(model=None), "the checkpoint's model is a NoneType"),
        (lambda c: c.update(config=[1]), "the checkpoint's config is a list"),
        (lambda c: c.update(config={"model": 3}), "config.model is not a mapping"),
        (lambda c: c.update(preprocessing={}), "preprocessing: mean is not three numbers"),
        (lambda c: c["preprocessing"].update(std=[1, 0, 1]), "over .1, 0, 1."),
        (lambda c: c["preprocessing"].update(std=[1, float("nan"), 1]), "std is not three numbers"),
        (lambda c: c["model"].update({"conv1.weight": "text"}), "conv1.weight is a str, not a tensor"),
        (lambda c: c["model"]["conv1.weight"].fill_(float("nan")), "conv1.weight has values that are not finite"),
    ],
)
def test_checkpoints_with_wrong_parts_are_one_line(tmp_path, resnet18, change, said):
    content = checkpoint_of({key: value.clone() for key, value in resnet18.items()}, backbone="resnet18")
    change(content)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=said):
        load(build_backbone("resnet18", num_classes=1000), "resnet18", tmp_path / "weights.pt")
