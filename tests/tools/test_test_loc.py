"""The test of localisation by the script, with networks that have learned nothing: sets, files, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from backbones.weights import IMAGENET
from configs.errors import UserError
from configs.loading import parse_config
from configs.localisation import LocalisationConfig
from detection.localisation import build_localiser
from tests.tools.made import localisation_values
from tools import test_loc as script


def save(path: Path, values: dict, *overrides: str, names: tuple[str, ...] = ("n01", "n02")) -> str:
    config = parse_config(values, list(overrides), LocalisationConfig, "made")
    torch.manual_seed(0)
    net = build_localiser(config.model, len(names), preprocessing=IMAGENET)
    content = {
        "format": 1, "kind": "localiser", "config": config.model_dump(mode="json"), "class_names": list(names),
        "mean_boxes": [[0.2, 0.2, 0.8, 0.8]] * len(names), "preprocessing": IMAGENET.to_dict(),
        "model": net.state_dict(),
    }  # fmt: skip
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    """The config's file, and its values; the networks lie beside it."""
    root = tmp_path_factory.mktemp("loc")
    values = localisation_values(root)
    (root / "tiny.yaml").write_text(yaml.safe_dump(values))
    save(root / "rpn.pt", values)
    save(root / "rcnn.pt", values, "model.stage=rcnn", "model.rcnn.proposals=x.pt")
    return root / "tiny.yaml", values


def run(config: Path, *options: str) -> None:
    given = ["--cfg", str(config), "--device", "cpu", "--weights", str(config.parent / "rpn.pt"), *options]
    script.main(script.make_parser().parse_args(given))


def test_sets_and_files(made, tmp_path, capsys):
    """Without a test set the validation set; both stages; the view and the files are in metrics.json."""
    config, _ = made
    run(config, "--rcnn", str(config.parent / "rcnn.pt"), "--view", "center", "--out", str(tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["split"], metrics["view"], metrics["images"]) == ("val", "center", 12)
    assert metrics["weights"] == [str(config.parent / "rpn.pt")]
    assert metrics["rcnn"] == [str(config.parent / "rcnn.pt")]
    assert 0 <= metrics["mean_box_error"] <= 1
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 12 * 2
    assert "val, 12 images, 1 RPN, 1 R-CNN, view center" in capsys.readouterr().out
    run(config, "--split", "train", "--view", "center")
    assert "train, 32 images, 1 RPN, view center" in capsys.readouterr().out


def test_mistakes(made, tmp_path):
    config, values = made
    with pytest.raises(UserError, match=r"data\.test: the config has no such set: give --split"):
        run(config, "--split", "test")
    with pytest.raises(UserError, match=r"rpn\.pt: of stage rpn, where stage rcnn is needed"):
        run(config, "--rcnn", str(config.parent / "rpn.pt"))
    other = save(tmp_path / "other.pt", values, names=("n01", "n03"))
    with pytest.raises(UserError, match=r"other\.pt: other classes than .*rpn\.pt \(n02, n03 differ\)"):
        script.main(
            script.make_parser().parse_args(
                ["--cfg", str(config), "--device", "cpu", "--weights", str(config.parent / "rpn.pt"), other]
            )
        )
    turned = save(tmp_path / "turned.pt", values, names=("n02", "n01"))
    first, second = (script.load_localiser(path, "rpn") for path in (config.parent / "rpn.pt", turned))
    with pytest.raises(UserError, match=r"b: other classes than a \(their order differ\)"):
        script.check_classes([(Path("a"), first), (Path("b"), second)])
    script.check_classes([(Path("a"), first), (Path("b"), first)])
