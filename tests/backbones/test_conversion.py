"""Other projects' weights: synthetic files recomputed by hand, and real ones against their published accuracy."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from backbones.conversion import convert
from backbones.pretrained import load_backbone_weights
from backbones.weights import CAFFE_VGG, IMAGENET, MSRA, Preprocessing, read_weights_file
from backbones.zoo import build_backbone
from configs.errors import UserError

UNITS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


@functools.cache
def msra_file(name, classes=7):
    """A dict as in the released .pkl files: names of Caffe2, batch norm as scale and offset only."""
    rng = np.random.default_rng(0)
    blobs = {}

    def layer(key, outputs, inputs, kernel, bn):
        blobs[f"{key}_w"] = rng.normal(0, (2 / (inputs * kernel**2)) ** 0.5, (outputs, inputs, kernel, kernel))
        blobs[f"{bn}_bn_s"] = rng.uniform(0.5, 1.5, outputs)
        blobs[f"{bn}_bn_b"] = rng.normal(0, 0.1, outputs)

    layer("conv1", 64, 3, 7, "res_conv1")
    blobs["conv1_b"] = rng.normal(0, 0.5, 64)
    inputs = 64
    for stage, units in enumerate(UNITS[name]):
        width = 64 * 2**stage
        outputs = width if name == "resnet18" else 4 * width
        for unit in range(units):
            key = f"res{stage + 2}_{unit}_branch"
            if name == "resnet18":
                shapes = [("2a", width, inputs, 3), ("2b", width, width, 3)]
            else:
                shapes = [("2a", width, inputs, 1), ("2b", width, width, 3), ("2c", outputs, width, 1)]
            if unit == 0 and inputs != outputs:
                shapes.append(("1", outputs, inputs, 1))
            for branch, *shape in shapes:
                layer(key + branch, *shape, key + branch)
            inputs = outputs
    blobs["fc1000_w"] = rng.normal(0, 0.02, (classes, inputs))
    blobs["fc1000_b"] = rng.normal(0, 0.02, classes)
    blobs["res2_0_branch2a_w_momentum"] = np.zeros(3)
    return {key: value.astype(np.float32) for key, value in blobs.items()}


def msra_blobs(name, classes=7):
    """A copy of the file's dict, to be changed."""
    return dict(msra_file(name, classes))


def run_msra(blobs, x, units):
    """The net of He et al. 2016 from the blobs: y = s * conv(x) + b, stride in the first 1x1."""

    def conv(x, key, stride=1, bn=None):
        weight = torch.from_numpy(blobs[f"{key}_w"])
        out = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        if f"{key}_b" in blobs:
            out = out + torch.from_numpy(blobs[f"{key}_b"])[:, None, None]
        scale, offset = (torch.from_numpy(blobs[f"{bn or key}_bn_{part}"])[:, None, None] for part in "sb")
        return out * scale + offset

    x = F.max_pool2d(F.relu(conv(x, "conv1", 2, "res_conv1")), 3, 2, 1)
    for stage, count in enumerate(units):
        for unit in range(count):
            key, stride = f"res{stage + 2}_{unit}_branch", 2 if stage and not unit else 1
            out = F.relu(conv(x, key + "2a", stride))
            out = F.relu(conv(out, key + "2b"))
            out = conv(out, key + "2c")
            x = F.relu(out + (conv(x, key + "1", stride) if unit == 0 else x))
    return x.mean((2, 3)) @ torch.from_numpy(blobs["fc1000_w"]).T + torch.from_numpy(blobs["fc1000_b"])


def renamed(blobs):
    """The same in detectron2's names."""
    names = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "branch1": "shortcut"}
    new = {"stem.fc.weight": blobs["fc1000_w"], "stem.fc.bias": blobs["fc1000_b"]}
    new["stem.conv1.weight"], new["stem.conv1.bias"] = blobs["conv1_w"], blobs["conv1_b"]
    for suffix, our in (("s", "weight"), ("b", "bias")):
        new[f"stem.conv1.norm.{our}"] = blobs[f"res_conv1_bn_{suffix}"]
    for key, value in blobs.items():
        parts = key.split("_")
        if parts[0].startswith("res") and parts[0] != "res" and not key.endswith("momentum"):
            layer = f"{parts[0]}.{parts[1]}.{names[parts[2]]}"
            new[f"{layer}.weight" if parts[3] == "w" else f"{layer}.norm.{'weight' if parts[4] == 's' else 'bias'}"] = (
                value
            )
    return new


@pytest.mark.parametrize("form", ["caffe2", "caffe2 blobs", "detectron2"])
def test_msra_resnet50_equals_a_recomputation(form, tmp_path):
    torch.manual_seed(0)
    blobs = msra_blobs("resnet50")
    content = {"caffe2": blobs, "caffe2 blobs": {"blobs": blobs}, "detectron2": {"model": renamed(blobs)}}[form]
    checkpoint = convert(content, "msra", tmp_path / "R-50.pkl")
    assert Preprocessing.from_dict(checkpoint["preprocessing"]) == MSRA
    assert checkpoint["config"]["model"]["stride_in_1x1"] is True
    norm = "batch" if form == "caffe2" else "frozen"
    net = build_backbone("resnet50", norm=norm, stride_in_1x1=True, num_classes=7).eval()
    path = tmp_path / "resnet50.pt"
    torch.save(checkpoint, path)
    load_backbone_weights(net, "resnet50", str(path), stride_in_1x1=True, for_classification=True)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = run_msra(blobs, x, UNITS["resnet50"])
        assert (net(x) - expected).norm() < 1e-5 * expected.norm()


def test_an_affine_layer_stays_itself(tmp_path):
    """Variance 1 - eps: in float32, scale and offset come out as they went in."""
    blobs = msra_blobs("resnet50")
    net = build_backbone("resnet50", norm="frozen", num_classes=7)
    net.load_state_dict(convert(blobs, "msra", tmp_path)["model"], strict=True)
    scale, offset = net.layer2[1].bn2.constants(torch.float32)
    assert np.allclose(scale, blobs["res3_1_branch2b_bn_s"], rtol=2e-7, atol=0)
    assert np.array_equal(offset, blobs["res3_1_branch2b_bn_b"])


@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_the_depth_is_found_out(name, tmp_path):
    checkpoint = convert(msra_blobs(name, classes=1000), "msra", tmp_path)
    assert checkpoint["config"]["model"]["backbone"] == name
    assert checkpoint["class_names"][:2] == ["tench", "goldfish"]
    assert len(checkpoint["class_names"]) == 1000


def test_a_file_without_classifier_serves_detection(tmp_path):
    blobs = {key: value for key, value in msra_blobs("resnet50").items() if not key.startswith("fc1000")}
    checkpoint = convert(blobs, "msra", tmp_path)
    assert checkpoint["config"]["model"]["num_classes"] == 0
    torch.save(checkpoint, tmp_path / "R-50.pt")
    net = build_backbone("resnet50", norm="frozen", stride_in_1x1=True)
    load_backbone_weights(net, "resnet50", str(tmp_path / "R-50.pt"), stride_in_1x1=True)
    assert np.array_equal(net.conv1.weight.detach(), blobs["conv1_w"])


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_torchvisions_files_keep_their_style(name, tmp_path):
    state = getattr(torchvision.models, name)(num_classes=3).state_dict()
    checkpoint = convert(state, "torchvision", tmp_path)
    assert checkpoint["config"]["model"] == {
        "backbone": name, "stride_in_1x1": False, "shortcut": "B", "plain": False, "num_classes": 3
    }  # fmt: skip
    assert Preprocessing.from_dict(checkpoint["preprocessing"]) == IMAGENET
    assert checkpoint["class_names"] == []
    assert all(torch.equal(value, state[key]) for key, value in checkpoint["model"].items())


def test_caffes_vgg16_is_bgr_without_deviation(tmp_path, monkeypatch):
    monkeypatch.setattr("backbones.weights._MOST_REPEATED", 1 << 30)  # zeros of 553 MB that take no place
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    state = {key: torch.zeros(1).expand(value.shape) for key, value in shapes.items()}
    checkpoint = convert(state, "caffe-vgg16", tmp_path)
    assert checkpoint["config"]["model"]["backbone"] == "vgg16"
    assert Preprocessing.from_dict(checkpoint["preprocessing"]) == CAFFE_VGG
    with pytest.raises(UserError, match="no net of this project's in akamaster's form"):
        convert({"state_dict": {"a": torch.zeros(1)}}, "akamaster", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda blobs: blobs.pop("res4_3_branch2b_bn_s"), "layer3.3.bn2.weight"),
        (lambda blobs: blobs.update(res5_1_branch2a_w=np.zeros((512, 2, 1, 1))), "layer4.1.conv1.weight is 512x2x1x1"),
        (lambda blobs: blobs.update(__author__="torchvision"), "torchvision's own file"),
    ],
)
def test_what_does_not_fit_is_named(change, words, tmp_path):
    blobs = msra_blobs("resnet50")
    change(blobs)
    with pytest.raises(UserError, match=words):
        convert(blobs, "msra", tmp_path / "R-50.pkl")


def test_akamasters_option_b(tmp_path):
    state = build_backbone("cifar_resnet20", shortcut="B").state_dict()
    foreign = {
        "module." + key.replace("downsample", "shortcut").replace("fc.", "linear."): value
        for key, value in state.items()
    }
    checkpoint = convert({"state_dict": foreign, "best_prec1": 90.0}, "akamaster", tmp_path)
    assert checkpoint["config"]["model"]["shortcut"] == "B"
    assert checkpoint["model"].keys() == {key for key in state if "num_batches" not in key}


def cifar_batch(folder, count):
    """Up to `count` test images, spread over the classes: (N, 3, 32, 32) uint8 RGB and labels."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, path in enumerate(classes):
        for file in sorted(path.iterdir())[: count // len(classes)]:
            images.append(np.asarray(Image.open(file).convert("RGB")))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels), [path.name for path in classes]


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_public_cifar_checkpoints_recognise_cifar(depth, data_dir):
    path = next((data_dir / "resnet_cifar10_weights").glob(f"resnet{depth}-*.th"))
    checkpoint = convert(read_weights_file(path), "akamaster", path)
    name = f"cifar_resnet{depth}"
    assert checkpoint["config"]["model"]["backbone"] == name
    assert checkpoint["config"]["model"]["shortcut"] == "A"
    net = build_backbone(name).eval()
    missing, unexpected = net.load_state_dict(checkpoint["model"], strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images, labels, classes = cifar_batch(data_dir / "cifar10_lossless_5k" / "test", 100)
    assert checkpoint["class_names"] == classes
    preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])
    mean, std = (torch.tensor(value)[:, None, None] for value in (preprocessing.mean, preprocessing.std))
    with torch.no_grad():
        logits = net((images - mean) / std)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == labels).float().mean() > 0.8
