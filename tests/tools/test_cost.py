"""Costs part by part against published numbers and against the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backbones.analysis import cost, stage_costs
from backbones.zoo import build_backbone
from configs.errors import UserError
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
    table = json.loads(run(capsys, "--cfg", str(CONFIGS / "tiny_imagenet_groups.yaml"), "--json"))
    assert table[-1]["output"] == [200]


def test_a_detectors_config(capsys):
    parts = json.loads(run(capsys, "--cfg", str(CONFIGS / "frcnn_vgg16_voc.yaml"), "--json"))
    named = {part["name"]: part for part in parts}
    assert named["rpn"]["parameters"] == 512 * 512 * 9 + 512 + (512 + 1) * 9 * 5
    fully_connected = 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + 4097 * 21 * 5
    assert named["head, 300 RoIs"]["parameters"] == fully_connected
    assert named["head, 300 RoIs"]["multiply_adds"] == 300 * (512 * 49 * 4096 + 4096 * 4096 + 4096 * 21 * 5)


def test_global_context_is_one_more_roi_through_conv5(capsys):
    config = str(CONFIGS / "bccd_r18_c4.yaml")
    heads = []
    for context in ("false", "true"):
        options = ["--classes", "3", "--size", "64", "--json", "--set", f"model.box.global_context={context}"]
        heads.append(json.loads(run(capsys, "--cfg", config, *options))[-2]["multiply_adds"])
    count = json.loads(run(capsys, "--cfg", config, "--size", "64", "--json"))[-2]["name"].split()[1]
    siblings = int(count) * 512 * 4 * 5
    assert heads[1] - 2 * siblings == (heads[0] - siblings) * (int(count) + 1) // int(count)


def test_a_detector_on_the_net_of_its_checkpoint(tmp_path, capsys):
    """No shortcuts, as the checkpoint says, though the config names the residual net; a config without a `box`."""
    with torch.device("meta"):
        net = build_backbone("cifar_resnet8", plain=True, shortcut="A")
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in net.state_dict().items()}
    model = {"backbone": "cifar_resnet8", "plain": True, "shortcut": "B"}
    preprocessing = {"mean": [0.0] * 3, "std": [1.0] * 3, "channel_order": "rgb"}
    content = {"format": 1, "kind": "classifier", "config": {"model": model}, "class_names": []}
    torch.save({**content, "preprocessing": preprocessing, "model": state}, tmp_path / "last.pt")
    config = tmp_path / "own.yaml"
    config.write_text(
        "data: {train: [{format: generated, image_set: train}]}\n"
        f"model: {{weights: {tmp_path / 'last.pt'}, anchors: {{sizes: [16]}}}}\n"
        "optim: {lr: 0.1, reference_batch_size: 1}\nschedule: {epochs: 1}\ntrain: {batch_size: 1}\n"
    )
    parts = {part["name"]: part for part in json.loads(run(capsys, "--cfg", str(config), "--json", "--size", "64"))}
    assert parts["conv3"]["parameters"] == 16 * 32 * 9 + 32 * 32 * 9 + 4 * 32  # no projection
    (tmp_path / "last.pt").unlink()
    named = run(capsys, "--cfg", str(config), "--set", "model.backbone=cifar_resnet8", "model.shortcut=B", "--json")
    assert json.loads(named)[2]["parameters"] == parts["conv3"]["parameters"] + 16 * 32 + 2 * 32
    with pytest.raises(UserError, match="there is no file"):
        run(capsys, "--cfg", str(config))
    with pytest.raises(UserError, match=r"localiser's.*cost\.py resnet101"):
        run(capsys, "--cfg", str(CONFIGS / "imagenet_loc_rpn_resnet101.yaml"))


@pytest.mark.parametrize("words", [(), ("nin", "--cfg", "x.yaml"), ("resnet51",), ("--cfg", "missing.yaml")])
def test_mistakes_end_with_code_2(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost.py", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.make_parser())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
