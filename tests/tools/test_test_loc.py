"""The test of localisation by the script, with networks that have learned nothing: sets, files, and mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.io import savemat

from backbones.weights import IMAGENET
from configs.errors import UserError
from configs.loading import load_config, parse_config
from configs.localisation import LocalisationConfig
from detection.localisation import build_localiser
from tests.tools.made import localisation_values
from tools import test_loc as script
from tools.train_loc import read_sets


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
    with pytest.raises(UserError, match=r"other\.pt: other classes than .*rpn\.pt's \(n02, n03 in one of them only\)"):
        script.main(
            script.make_parser().parse_args(
                ["--cfg", str(config), "--device", "cpu", "--weights", str(config.parent / "rpn.pt"), other]
            )
        )


def test_a_set_without_labels_ends_with_a_submission(made, tmp_path, capsys):
    """Each image's classes, best first, by the development kit's numbers, with their boxes; as with labels else."""
    config, values = made
    labelled = sorted(Path(values["data"]["val"]["root"], "val").rglob("*.png"))
    for number, path in enumerate(labelled, 1):
        (tmp_path / "ILSVRC/Data/CLS-LOC/test").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / f"ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{number:08d}.png")
    kit = tmp_path / "ILSVRC/ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    synsets = np.array([("n01", 449), ("n02", 7)], dtype=[("WNID", "O"), ("ILSVRC2012_ID", "O")])
    savemat(kit / "meta.mat", {"synsets": synsets})
    setting = ["--data-root", str(tmp_path), "--set", "data.test={format: imagenet_loc, root: ILSVRC, split: test}"]
    run(config, *setting, "--out", str(tmp_path / "out"))
    assert "12 images without labels" in capsys.readouterr().out
    lines = [line.split() for line in (tmp_path / "out/submission.txt").read_text().splitlines()]
    assert not (tmp_path / "out/metrics.json").exists()

    run(config, "--split", "val", "--out", str(tmp_path / "val"))
    rows = json.loads((tmp_path / "val/predictions.json").read_text())
    number = {"n01": "449", "n02": "7"}
    assert len(rows) == 24
    for row, fields in zip(rows, [part for line in lines for part in (line[:5], line[5:])], strict=True):
        assert fields[0] == number[row["category"]]
        x1, y1, x2, y2 = row["bbox"]
        assert [float(field) for field in fields[1:]] == pytest.approx([x1, y1, x2 - 1, y2 - 1], abs=0.02)

    header, *kaggle = csv.reader((tmp_path / "out/submission.csv").read_text().splitlines())
    assert header == ["ImageId", "PredictionString"]
    assert [name for name, _ in kaggle] == [f"ILSVRC2012_test_{number:08d}" for number in range(1, 13)]
    for line, (_, text) in zip(lines, kaggle, strict=True):  # the same in other numbers, n01 the first wnid
        numbers = {"449": 1, "7": 2}
        fields = [int(field) for field in text.split()]
        assert fields[::5] == [numbers[field] for field in line[::5]]
        assert [f for i, f in enumerate(fields) if i % 5] == pytest.approx(
            [float(f) for i, f in enumerate(line) if i % 5], abs=0.51
        )
    (kit / "meta.mat").unlink()
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 a fish\nn015 between, not learned\nn02 a bird\n")
    run(config, *setting, "--out", str(tmp_path / "kaggle"))
    assert not (tmp_path / "kaggle/submission.txt").exists()
    again = (tmp_path / "kaggle/submission.csv").read_text().splitlines()
    assert {field for line in again[1:] for field in line.split(",")[1].split()[::5]} == {"1", "3"}

    with pytest.raises(UserError, match="--out: give the folder for submission"):
        run(config, *setting)
    blind = save(tmp_path / "blind.pt", values, "model.rpn.classification_loss_weight=0")
    given = ["--cfg", str(config), "--device", "cpu", "--weights", blind, *setting, "--out", str(tmp_path)]
    with pytest.raises(UserError, match="has no labels: give --classifier"):
        script.main(script.make_parser().parse_args(given))
    with pytest.raises(UserError, match=r"val: split test has no boxes"):
        run(config, "--set", "data.val={format: imagenet_loc, root: ILSVRC, split: test}")
    with_test = load_config(config, setting[3:], LocalisationConfig)
    with pytest.raises(UserError, match=r"data\.test: has no labels.*tools/test_loc\.py"):
        read_sets(with_test, tmp_path)
