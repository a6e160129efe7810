"""Costs part by part against published numbers and against the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backbones.analysis import cost, stage_costs
from backbones.zoo import build_backbone
from tools import cost as script
from tools.runtime import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def run(capsys, *words: str) -> str:
    script.main(script.make_parser().parse_args(words))
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "googlenet", "highway19", "dsn", "maxout", "cifar_resnet20"])
def test_the_parts_add_up_to_the_whole(name):
    with torch.device("meta"):
        net = build_backbone(name)
    parts = stage_costs(net, (32, 64))
    whole = cost(net, (32, 64))
    assert sum(part.parameters for part in parts) == whole.parameters
    assert sum(part.multiply_adds for part in parts) == whole.multiply_adds
    assert [part.name for part in parts] == [*net.stage_channels, "classifier"]
    for part in parts[:-1]:
        assert part.output[0] == net.stage_channels[part.name]


def test_a_stage_by_hand():
    with torch.device("meta"):
        first = stage_costs(build_backbone("resnet18"), (224, 224))[0]
    assert first.parameters == 3 * 64 * 49 + 2 * 64
    assert first.multiply_adds == 3 * 64 * 49 * 112 * 112
    assert first.activations == 2 * 64 * 112 * 112  # the convolution's and the batch norm's
    assert first.output == (64, 112, 112)


def test_a_net_by_name(capsys):
    out = run(capsys, "resnet50", "--stride-in-1x1", "--json")
    total = json.loads(out)[-1]
    assert (total["name"], total["parameters"]) == ("total", 25_557_032)
    assert total["multiply_adds"] == pytest.approx(3.8e9, rel=0.02)


def test_a_classifiers_config(capsys):
    out = run(capsys, "--cfg", str(CONFIGS / "cifar_nin.yaml"))
    assert "966,986" in out
    assert "96 x 32 x 32" in out


def test_a_detectors_config(capsys):
    parts = json.loads(run(capsys, "--cfg", str(CONFIGS / "frcnn_vgg16_voc.yaml"), "--json"))
    named = {part["name"]: part for part in parts}
    assert named["rpn"]["parameters"] == 512 * 512 * 9 + 512 + (512 + 1) * 9 * 5
    fully_connected = 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + 4097 * 21 * 5
    assert named["head, 300 RoIs"]["parameters"] == fully_connected
    assert named["head, 300 RoIs"]["multiply_adds"] == 300 * (512 * 49 * 4096 + 4096 * 4096 + 4096 * 21 * 5)


@pytest.mark.parametrize("words", [(), ("nin", "--cfg", "x.yaml"), ("resnet51",), ("--cfg", "missing.yaml")])
def test_mistakes_end_with_code_2(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost.py", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.make_parser())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
