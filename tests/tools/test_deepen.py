"""A trained net is deepened by the command, and training starts from what it wrote."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml

from backbones.classification import build_classifier, load_classifier
from configs.classification import ClassificationConfig
from configs.loading import load_config
from tools import deepen as script
from tools.pretrain import make_parser as pretrain_parser
from tools.runtime import cli


@pytest.fixture
def shallow(tmp_path, classifier_values):
    """(config, checkpoint) of a plain net with batch norm that has seen something."""
    values = copy.deepcopy(classifier_values)
    values["model"]["plain"] = True
    values["data"]["mean"] = "channel"
    (tmp_path / "shallow.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "shallow.yaml", [], ClassificationConfig)
    torch.manual_seed(0)
    net = build_classifier(config.model, 3).train()
    for _ in range(3):
        net(torch.randn(16, 3, 12, 12) + 0.3)
    preprocessing = {"mean": [100.0, 100.0, 100.0], "std": [50.0, 50.0, 50.0], "channel_order": "rgb"}
    checkpoint = {"format": 1, "kind": "classifier", "class_names": ["blue", "green", "red"]}
    checkpoint |= {"config": config.model_dump(mode="json"), "preprocessing": preprocessing, "model": net.state_dict()}
    torch.save(checkpoint, tmp_path / "shallow.pt")
    return tmp_path / "shallow.yaml", tmp_path / "shallow.pt"


def run(config, weights, out, *units) -> None:
    words = ["--cfg", config, "--weights", weights, "--device", "cpu", "--out", out, "--units", *units]
    script.main(script.make_parser().parse_args([str(word) for word in words]))


def test_the_deeper_net_says_the_same_and_can_be_trained_on(tmp_path, shallow, capsys):
    config, weights = shallow
    run(config, weights, tmp_path / "deep.pt", 3, 4)
    assert "parameters have become" in capsys.readouterr().out
    model = load_config(config, [], ClassificationConfig).model
    before, after = load_classifier(weights, model), load_classifier(tmp_path / "deep.pt", model)
    assert [stage.units for stage in after.net.spec.stages] == [3, 4]
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(before.net(before.normalize(images)), after.net(after.normalize(images)), atol=1e-4)
    assert after.class_names == ["blue", "green", "red"]

    from tools.pretrain import main as pretrain

    values = yaml.safe_load(config.read_text())
    for stage, units in zip(values["model"]["backbone"]["stages"], (3, 4), strict=True):
        stage["units"] = units
    values["model"]["weights"] = str(tmp_path / "deep.pt")
    (tmp_path / "deep.yaml").write_text(yaml.safe_dump(values))
    words = ["--cfg", str(tmp_path / "deep.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    pretrain(pretrain_parser().parse_args(words))
    assert (tmp_path / "run/last.pt").is_file()


def test_mistakes_end_with_code_2(tmp_path, shallow, monkeypatch, capsys):
    config, weights = shallow
    argv = ["deepen.py", "--cfg", str(config), "--weights", str(weights), "--out", str(tmp_path / "x.pt"), "--units"]
    monkeypatch.setattr("sys.argv", [*argv, "0", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.make_parser())
    assert ended.value.code == 2
    assert "none below" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()
