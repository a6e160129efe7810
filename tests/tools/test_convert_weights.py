"""The script: what it writes, prints, refuses."""

from __future__ import annotations

import pytest
import torch

from backbones.pretrained import load_backbone_weights
from backbones.weights import read_weights_file
from backbones.zoo import build_backbone
from tools.convert_weights import main, make_parser
from tools.runtime.cli import run


def convert(*arguments):
    """Exit code of the script."""
    with pytest.raises(SystemExit) as caught:
        run(main, make_parser(), [str(argument) for argument in arguments])
    return caught.value.code


@pytest.fixture
def foreign(tmp_path):
    """A CIFAR checkpoint as others write it."""
    torch.manual_seed(0)
    state = build_backbone("cifar_resnet20").state_dict()
    path = tmp_path / "resnet20.th"
    renamed = {f"module.{key.replace('fc.', 'linear.')}": value for key, value in state.items()}
    torch.save({"state_dict": renamed, "best_prec1": 91.0}, path)
    return path, state


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_written_checkpoint_loads(foreign, tmp_path, capsys, suffix):
    path, state = foreign
    out = tmp_path / "new" / f"converted.{suffix}"
    assert convert("--source", "akamaster", path, out) == 0
    assert "cifar_resnet20, 10 classes, RGB pixels minus [123.675, 116.28, 103.53]" in capsys.readouterr().out
    net = build_backbone("cifar_resnet20")
    load_backbone_weights(net, "cifar_resnet20", str(out), stride_in_1x1=False, for_classification=True)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    checkpoint = read_weights_file(out)
    assert checkpoint["kind"] == "classifier"
    assert checkpoint["format"] == 1
    assert checkpoint["class_names"][3] == "cat"
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source", "msra", "{file}", "{out}.pt"), "no net of this project's in msra's form"),
        (("--source", "akamaster", "{file}", "{out}.onnx"), "name the output .pt or .safetensors"),
        (("--source", "akamaster", "{file}.absent", "{out}.pt"), "no such weights file"),
        (("--source", "keras", "{file}", "{out}.pt"), "invalid choice"),
    ],
)
def test_mistakes_take_one_line_and_leave_no_file(foreign, tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    assert convert(*(argument.format(file=foreign[0], out=out) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def detector(tmp_path):
    """A detectron2-like file: what matters here is that it is a detector's."""
    path = tmp_path / "model_final.pth"
    torch.save({"model": {"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 4)}, "iteration": 5}, path)
    return path


C4 = "configs/zoo/detectron2_r50_c4_coco.yaml"


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (
            "detectron2",
            (),
            "a detector: give --cfg, its config, for anchors, sizes and classes: one of configs/",
        ),
        ("detectron2", ("--set", "data.classes=voc"), "--set changes a config: give --cfg"),
        ("detectron2", ("--cfg", C4), "2 classes and background, but data.classes names 80"),
        ("detectron2", ("--cfg", C4, "--set", "data.clases=voc"), "did you mean data.classes"),
        (
            "detectron2",
            ("--cfg", C4, "--set", "data.classes=[a, b]"),
            "is 3x4 in the file and 3x2048 in the config",
        ),
        ("akamaster", ("--cfg", C4), "no detector in akamaster's form: --cfg is for detectors"),
    ],
)
def test_a_detector_needs_its_config(detector, root, monkeypatch, tmp_path, capsys, source, options, words):
    monkeypatch.chdir(root)
    assert convert("--source", source, detector, tmp_path / "out.pt", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def test_no_file_is_replaced_unasked(foreign, tmp_path, capsys):
    path, _ = foreign
    out = tmp_path / "out.pt"
    out.write_bytes(b"precious")
    assert convert("--source", "akamaster", path, out) == 2
    assert "there is such a file already: give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert convert("--source", "akamaster", path, out, "--overwrite") == 0
    assert read_weights_file(out)["kind"] == "classifier"
    before = out.read_bytes()
    assert convert("--source", "torchvision", out, out, "--overwrite") == 2
    assert "is the input" in capsys.readouterr().err
    assert out.read_bytes() == before
    link = tmp_path / "link.pt"
    link.symlink_to(out)
    assert convert("--source", "torchvision", out, link, "--overwrite") == 2
    assert out.read_bytes() == before
