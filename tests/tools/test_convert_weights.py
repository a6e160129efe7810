"""The script: what it writes, prints, refuses."""

from __future__ import annotations

import pytest
import torch

from backbones.weights import load_backbone_weights, read_weights_file
from backbones.zoo import build_backbone
from tools.convert_weights import build_parser, main
from tools.runtime.cli import run


def convert(*arguments):
    """Exit code of the script."""
    with pytest.raises(SystemExit) as caught:
        run(main, build_parser(), [str(argument) for argument in arguments])
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
