"""Where weights come from, that nothing but the right ones loads, and that reading a file runs no code."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from backbones.weights import (
    CAFFE_VGG,
    GOOGLENET,
    IMAGENET,
    MSRA,
    Preprocessing,
    as_classifier,
    check_fields,
    check_keys,
    check_net,
    check_tensors,
    detect_net,
    first_line,
    load_checked,
    read_weights_file,
    write_safetensors,
)
from backbones.zoo import build_backbone
from configs.errors import UserError
from tests.backbones.test_pretrained import error_of


def test_constants_are_the_published_means_and_deviations():
    assert IMAGENET.mean == pytest.approx([value * 255 for value in (0.485, 0.456, 0.406)])
    assert IMAGENET.std == pytest.approx([value * 255 for value in (0.229, 0.224, 0.225)])
    assert (MSRA.mean, MSRA.channel_order) == ((102.9801, 115.9465, 122.7717), "bgr")
    assert (CAFFE_VGG.mean, CAFFE_VGG.channel_order) == ((103.939, 116.779, 123.68), "bgr")
    assert Preprocessing.from_dict(MSRA.to_dict()) == MSRA


# ---------------------------------------------------------------------------------------------- files


class Bomb:
    """What pickle would execute: a call that leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_no_file_executes_code(tmp_path, suffix):
    path, trace = tmp_path / f"weights.{suffix}", tmp_path / "trace"
    content = {"conv1_w": np.zeros(3), "more": Bomb(trace)}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"a": torch.zeros(1), "more": Bomb(trace)}, path)
    with pytest.raises(UserError) as caught:
        read_weights_file(path)
    assert not trace.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [b"cbuiltins\neval\n(V1+1\ntR.", b"cnumpy\nload\n(Vx\ntR.", b"cos\nsystem\n(Vtrue\ntR.", b"(S'x'\nios\nsystem\n."],
)
def test_no_function_is_looked_up(tmp_path, call):
    path = tmp_path / "weights.pkl"
    path.write_bytes(call)
    with pytest.raises(UserError, match="asks for"):
        read_weights_file(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL))
def test_pickles_of_arrays(tmp_path, protocol):
    content = {
        "blobs": collections.OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.float64(2.5)),
        "list": [1, "two", (3.0, None)],
    }
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_weights_file(path)
    assert np.array_equal(read["blobs"]["a"], content["blobs"]["a"])
    assert read["blobs"]["b"] == 2.5
    assert read["list"] == content["list"]


def test_pickles_of_python_2(tmp_path):
    """As Python 2 and its numpy wrote {"conv1_w": np.array([1.5, -2], np.float32)}: the bytes are a str."""
    data = struct.pack("<2f", 1.5, -2.0)
    pickled = (
        b"\x80\x02}q\x00U\x07conv1_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
        b"K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + data + b"tbs."
    )
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickled)
    assert read_weights_file(path)["conv1_w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "absent"])
def test_damaged_files_take_one_line(tmp_path, suffix, damage):
    path = tmp_path / f"weights.{suffix}"
    state = {"conv1.weight": torch.randn(40, 50)}
    if suffix == "pth":
        torch.save(state, path)
    elif suffix == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) * 2 // 3], "foreign": b"<html>404</html>"}.get(damage, b""))
    if damage == "absent":
        path.unlink()
    with pytest.raises(UserError) as caught:
        read_weights_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_than_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="holds a list, not a dict"):
            read_weights_file(path)


def test_other_projects_files_are_sent_to_the_converter(tmp_path):
    net = nn.Identity()
    for content in ({"conv1_w": torch.zeros(1)}, {"state_dict": {"module.conv1.weight": torch.zeros(1)}}):
        path = tmp_path / "other.pth"
        torch.save(content, path)
        assert "tools/convert_weights.py" in error_of(net, "resnet18", path)
    torch.save({"kind": "detector"}, path)
    assert "--init-from" in error_of(net, "resnet18", path)
    torch.save({"kind": "localiser"}, path)
    assert "a localiser's checkpoint, not a classifier's" in error_of(net, "resnet18", path)
    torch.save({"kind": "classifier", "model": {}}, path)
    assert "config, preprocessing" in error_of(net, "resnet18", path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a picture, not weights"),
        (b"\x89PNG\r\n\x1a\n", "is a picture, not weights"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5"),
        (b"\x1f\x8b" + bytes(100), "is compressed with gzip"),
    ],
)
def test_files_of_something_else_are_named(tmp_path, content, said):
    for suffix in ("pth", "safetensors", "pkl"):
        path = tmp_path / f"weights.{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"weights\.{suffix}: {said}"):
            read_weights_file(path)


def test_mistaken_names_and_files_are_told(tmp_path):
    torch.save({}, tmp_path / "best.pt")
    with pytest.raises(UserError, match=r"bst\.pt: there is no such weights file: its folder has best\.pt$"):
        read_weights_file(tmp_path / "bst.pt")
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(UserError, match=r"config\.yaml: is a text file, not weights"):
        read_weights_file(tmp_path / "config.yaml")
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(UserError, match=r"a\.onnx: is an exported file, .*give the checkpoint that it was made of"):
        read_weights_file(tmp_path / "a.onnx")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "")
    with pytest.raises(UserError, match=r"photos\.zip: is an ordinary archive"):
        read_weights_file(tmp_path / "photos.zip")


def test_a_folder_names_its_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").touch()
    assert "is a folder: give the file: weights.safetensors" in error_of(nn.Identity(), "resnet18", tmp_path / "model")


def test_compressed_archives_are_not_unpacked(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(UserError, match="an ordinary archive"):
        read_weights_file(tmp_path / "bomb.pth")


def test_a_wrong_checksum_inside_is_damage(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.arange(5000.0)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)  # PyTorch reads it without a word
    with pytest.raises(UserError, match=r"the checksum of .* is wrong: the file is damaged"):
        read_weights_file(path)


def test_damage_is_told_without_a_warning_before_it(tmp_path, recwarn):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": 1}, protocol=4))  # of which PyTorch warns
    with pytest.raises(UserError, match="not a weights file of tensors and arrays"):
        read_weights_file(path)
    assert not recwarn.list


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    """A number that is repeated by strides of zero takes four bytes in the file."""
    torch.save({"a": torch.zeros(1).expand(1_000_000, 1_000_000), "b": torch.zeros(1).expand(3)}, tmp_path / "a.pth")
    content = read_weights_file(tmp_path / "a.pth")
    check_tensors({"b": content["b"]}, "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: a has 1000000000000 numbers, of which the file holds a part only"):
        check_tensors(content, "a.pth")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_another_type_are_not_rounded_silently(dtype):
    check_tensors({"conv.weight": torch.ones(2).half(), "bn.num_batches_tracked": torch.tensor(3)}, "a.pt")
    with pytest.raises(
        UserError, match=r"a\.pt: conv\.weight has numbers of type torch\..*: weights are floating-point"
    ):
        check_tensors({"conv.weight": torch.ones(2).to(dtype)}, "a.pt")


# ---------------------------------------------------------------------------------------------- whose they are


def names_of(*units: int, bottleneck: bool = False) -> dict[str, torch.Tensor]:
    """Keys as of a residual net with so many units in its stages."""
    names = [f"layer{stage}.{unit}.conv1.weight" for stage, n in enumerate(units, 1) for unit in range(n)]
    return dict.fromkeys([*names, *["layer1.0.conv3.weight"] * bottleneck], torch.zeros(1))


def vgg_names(convolutions: int) -> dict[str, torch.Tensor]:
    return {f"features.{3 * number}.weight": torch.zeros(1, 1, 1, 1) for number in range(convolutions)}


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (names_of(3, 4, 6, 3), "resnet34"),
        (names_of(3, 4, 6, 3, bottleneck=True), "resnet50"),
        (names_of(3, 4, 23, 3, bottleneck=True), "resnet101"),
        (names_of(3, 3, 3), "cifar_resnet20"),
        (names_of(1, 1, 1, 2), None),  # 12 layers
        (vgg_names(13), "vgg16"),
        ({**vgg_names(16), "features.1.running_mean": torch.zeros(1)}, "vgg19_bn"),
        (vgg_names(12), None),
        ({"inception3a.branch1.conv.weight": torch.zeros(1)}, "googlenet"),
        ({"x": torch.zeros(1)}, None),
    ],
)
def test_the_net_is_known_by_its_keys(state, name):
    assert detect_net(state) == name


def test_a_checkpoint_as_safetensors_comes_back(tmp_path):
    content = {"kind": "classifier", "class_names": ["a"], "model": {"w": torch.arange(6.0).reshape(2, 3).T}}
    write_safetensors(content, tmp_path / "w.safetensors")
    read = read_weights_file(tmp_path / "w.safetensors")
    assert torch.equal(read.pop("model")["w"], content["model"]["w"])
    assert read == {"kind": "classifier", "class_names": ["a"]}
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "bare.safetensors")
    assert list(read_weights_file(tmp_path / "bare.safetensors")) == ["w"]


GOOD = {"config": {"model": {}}, "preprocessing": IMAGENET.to_dict(), "model": {"w": torch.zeros(1)}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": [1]}, "the checkpoint's model is a list, not a mapping"),
        ({"config": {"model": "resnet50"}}, r"config\.model is not a mapping"),
        ({"config": {"data": "x"}}, r"config\.data is not a mapping"),
        ({"config": {"train": None}}, r"config\.train is not a mapping"),
        ({"config": {"seed": torch.zeros(2)}}, "config holds a Tensor, not plain values only"),
        ({"config": {"data": {"min_size": [1, [torch.zeros(0)]]}}}, "config holds a Tensor, not plain values only"),
        ({"class_names": [1]}, "class_names are not a list of texts"),
        ({"model": {"w": 1.0}}, "w is a float, not a tensor: the weights are damaged"),
        ({"model": {3: torch.zeros(1)}}, "3 is a Tensor, not a tensor: the weights are damaged"),
        ({"model": {"w": torch.eye(2).to_sparse()}}, "w is not a plain dense tensor"),
        ({"model": {"w": torch.tensor([1.0, float("nan")])}}, "w has values that are not finite"),
        ({"mean_image": torch.tensor(float("inf"))}, "mean_image has values that are not finite"),
        ({"preprocessing": {}}, r"x\.pt: "),
        ({"preprocessing": {**IMAGENET.to_dict(), "mean": [10**5000, 1, 1]}}, "mean is not three numbers"),
    ],
)
def test_parts_of_a_checkpoint_are_looked_at(changes, said):
    check_fields(GOOD, "x.pt")
    with pytest.raises(UserError, match=said):
        check_fields({**GOOD, **changes}, "x.pt")


def test_torchvisions_files_get_its_preprocessing_and_stride():
    found = as_classifier({"module.layer1.0.conv1.weight": torch.zeros(1)}, Path("x.pth"))
    assert found["config"] == {"model": {"stride_in_1x1": False}}
    assert found["preprocessing"] == IMAGENET.to_dict()
    assert list(found["model"]) == ["layer1.0.conv1.weight"]
    google = {"inception3a.branch1.conv.weight": torch.zeros(1), "aux1.fc1.weight": torch.zeros(1)}
    found = as_classifier(google, Path("x.pth"))
    assert found["preprocessing"] == GOOGLENET.to_dict()
    assert list(found["model"]) == ["inception3a.branch1.conv.weight"]


SMALL = {"stem": {"width": 4}, "stages": [{"units": 1, "width": 4}], "unit": "bottleneck"}


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"backbone": "resnet50"}, "weights of resnet50, but the config's backbone is mine"),
        ({"stride_in_1x1": True}, "stride in the 1x1, but .* in the 3x3: set model.stride_in_1x1: true"),
        ({"plain": True}, "trained with plain: True, but this net has plain: False"),
        ({"shortcut": "A"}, "trained with shortcut: A, but this net has shortcut: B"),
    ],
)
def test_weights_of_another_kind_of_the_same_net(stored, said):
    net = build_backbone(SMALL)
    for same in ({}, {"backbone": "mine", "shortcut": "B"}, {"backbone": SMALL}):
        check_net(same, net, "mine", False, Path("x.pt"))
    check_net({"stride_in_1x1": True}, net, "mine", True, Path("x.pt"))
    with pytest.raises(UserError, match=said):
        check_net(stored, net, "mine", False, Path("x.pt"))


def linear_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"conv": nn.Conv2d(1, 2, 1), "bn": nn.BatchNorm2d(2), "fc": nn.Linear(2, 3)})


def test_the_classifier_and_the_counters_need_not_fit():
    net, other = linear_net(), linear_net()
    state = {**other.state_dict(), "fc.weight": torch.zeros(5, 2), "fc.bias": torch.zeros(5)}
    state["conv.weight"] = torch.full((2, 1, 1, 1), 7.0)
    own = net["fc"].weight.clone()
    del state["bn.num_batches_tracked"]
    load_checked(net, state, "mine", Path("x.pt"), for_classification=False)
    assert (net["conv"].weight == 7).all()
    assert torch.equal(net["fc"].weight, own)
    with pytest.raises(
        UserError, match=r"fc\.weight is 5x2 in the file and 3x2 in mine: the file has 5 classes, the config 3"
    ):
        load_checked(net, state, "mine", Path("x.pt"), for_classification=True)
    state |= {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}
    load_checked(net, state, "mine", Path("x.pt"), for_classification=True)
    assert (net["fc"].weight == 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("conv.bias"), r"conv\.bias of mine is missing: the nearest key is fc\.bias"),
        (lambda state: [state.pop(key) for key in ("fc.weight", "fc.bias")],
         r"fc\.weight of mine is missing \(and 1 more\): the file has no classifier"),
        (lambda state: state.update({"conf.bias": torch.zeros(1)}), r"conf\.bias is not part of mine: the nearest"),
        (lambda state: state.update({"layer1.0.downsample.0.weight": torch.zeros(1)}), "the shortcut options differ"),
        (lambda state: state.update(names_of(2, 2, 2, 2)),
         r"layer1\.0\.conv1\.weight is not part of mine \(and 7 more\): these are the weights of resnet18"),
    ],
)  # fmt: skip
def test_the_first_key_that_does_not_fit_is_named_with_a_cause(change, said):
    own = linear_net().state_dict()
    state = dict(own)
    check_keys(own, state, "mine", Path("x.pt"))
    change(state)
    with pytest.raises(UserError, match=said):
        check_keys(own, state, "mine", Path("x.pt"))


def test_errors_in_a_line():
    assert first_line(ValueError("Weights only load failed.\n\nreally this\nand more")) == "really this"
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(ValueError("x" * 159)) == "x" * 159
    assert first_line(ValueError("x" * 160)) == "x" * 157 + "..."
