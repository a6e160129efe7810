"""The test of classifiers as a script: views, ensembles, classes that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from backbones.classification import build_classifier
from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.classification import build_splits
from tools import test_cls
from tools.runtime import cli


def evaluate(config: Path, weights: list[Path], *more: str) -> int:
    """Exit code of the script."""
    arguments = ["--cfg", str(config), "--device", "cpu", "--weights", *map(str, weights), *more]
    with pytest.raises(SystemExit) as ending:
        cli.run(test_cls.main, test_cls.make_parser(), arguments)
    return ending.value.code


def checkpoint(path: Path, config: Path, seed: int, **changes: object) -> Path:
    """A random net's checkpoint."""
    torch.manual_seed(seed)
    values = load_config(config, [], ClassificationConfig)
    content = {
        "format": 1,
        "kind": "classifier",
        "config": values.model_dump(mode="json"),
        "class_names": ["blue", "green", "red"],
        "preprocessing": {"mean": [100.0, 90.0, 80.0], "std": [50.0, 50.0, 50.0], "channel_order": "rgb"},
        "model": build_classifier(values.model, 3).state_dict(),
        **changes,
    }
    torch.save(content, path)
    return path


@pytest.fixture
def weights(classifier_config, tmp_path) -> Path:
    return checkpoint(tmp_path / "a.pt", classifier_config, 0)


def scores_by_hand(path: Path, config: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax scores of the single view, image by image, and the labels."""
    values = load_config(config, [], ClassificationConfig)
    images = getattr(build_splits(values.data, Path()), split)
    content = torch.load(path, weights_only=True)
    net = build_classifier(values.model, 3).eval()
    net.load_state_dict(content["model"])
    mean = torch.tensor(content["preprocessing"]["mean"]).view(3, 1, 1)
    with torch.no_grad():
        scores = [
            net(((torch.from_numpy(image).permute(2, 0, 1) - mean) / 50)[None]).softmax(1) for image in images.images
        ]
    return torch.cat(scores), torch.from_numpy(images.labels)


def test_the_error_is_that_of_the_scores(classifier_config, weights, tmp_path, capsys):
    assert evaluate(classifier_config, [weights], "--out", str(tmp_path / "out")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    scores, labels = scores_by_hand(weights, classifier_config, "test")
    assert metrics["top1_error"] == pytest.approx((scores.argmax(1) != labels).float().mean().item())
    assert metrics["loss"] == pytest.approx(-scores[range(24), labels].log().mean().item(), rel=1e-5)
    assert (metrics["images"], metrics["split"], metrics["views"]) == (24, "test", "center")
    assert f"top-1 error {100 * metrics['top1_error']:.2f} %" in capsys.readouterr().out


def test_an_ensemble_averages_the_scores(classifier_config, weights, tmp_path):
    other = checkpoint(tmp_path / "b.pt", classifier_config, 1)
    assert evaluate(classifier_config, [weights, other], "--split", "val", "--out", str(tmp_path / "out")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    (first, labels), (second, _) = (scores_by_hand(path, classifier_config, "val") for path in (weights, other))
    mean = (first + second) / 2
    assert metrics["loss"] == pytest.approx(-mean[range(24), labels].log().mean().item(), rel=1e-5)
    assert metrics["weights"] == [str(weights), str(other)]


@pytest.mark.parametrize("place", ["memory", "files"])
@pytest.mark.parametrize("view", ["10crop", "multiscale"])
def test_other_views_of_sets_in_memory_and_in_files(classifier_config, weights, tmp_path, view, place):
    settings = ["data.test_resize=16", "data.test_scales=[12,20]"]
    settings += ["data.augment={crop: centre}", "data.mean=channel"] if place == "files" else []
    assert (
        evaluate(classifier_config, [weights], "--views", view, "--out", str(tmp_path / "o"), "--set", *settings) == 0
    )
    assert json.loads((tmp_path / "o/metrics.json").read_text())["images"] == 24


def test_a_set_of_some_of_the_classes_keeps_their_labels(classifier_config, weights, tmp_path, classifier_values):
    """Without the first class: the labels of the others stay 1 and 2."""
    folder = Path(classifier_values["data"]["test"]["root"])
    (folder / "blue").rename(tmp_path / "blue")
    scores, labels = scores_by_hand(weights, classifier_config, "test")
    assert sorted(set(labels.tolist())) == [1, 2]
    assert evaluate(classifier_config, [weights], "--out", str(tmp_path / "out")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["images"] == 16
    assert metrics["top1_error"] == pytest.approx((scores.argmax(1) != labels).float().mean().item())


def test_the_held_out_images_can_be_tested(classifier_config, weights, tmp_path):
    settings = ["data.hold_out=5", "data.val=null"]
    arguments = ["--split", "val", "--out", str(tmp_path / "out"), "--set", *settings]
    assert evaluate(classifier_config, [weights], *arguments) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["images"] == 5


def test_names_that_differ_are_taken_in_order_and_said(classifier_config, tmp_path, capsys):
    path = checkpoint(tmp_path / "c.pt", classifier_config, 0, class_names=["azure", "emerald", "scarlet"])
    assert evaluate(classifier_config, [path]) == 0
    assert "the net calls its classes azure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"class_names": ["red", "green", "blue"]}, [], "their order"),
        ({"class_names": ["blue", "green", "pink"]}, [], "pink, red differ"),
        ({}, ["--set", "data.test=null", "data.val=null"], "data.val: the config has no such set"),
        ({"kind": "detector"}, [], "a detector's checkpoint"),
        ({"preprocessing": None}, ["--views", "5crop"], "invalid choice"),
    ],
)
def test_mistakes_take_one_line(classifier_config, weights, tmp_path, capsys, changes, more, words):
    other = checkpoint(tmp_path / "b.pt", classifier_config, 1, **changes)
    assert evaluate(classifier_config, [weights, other], *more) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "\n" not in message


def test_a_class_that_the_net_does_not_know_beside_its_own_is_refused(classifier_config, tmp_path):
    path = checkpoint(tmp_path / "c.pt", classifier_config, 0, class_names=["azure", "green", "red"])
    with pytest.raises(UserError, match="has the class blue, which the net does not know, beside others of its"):
        test_cls.main(test_cls.make_parser().parse_args(["--cfg", str(classifier_config), "--weights", str(path)]))


def test_a_set_with_other_classes_is_refused(classifier_config, weights, tmp_path, capsys, classifier_values):
    folder = Path(classifier_values["data"]["test"]["root"])
    (folder / "blue").rename(folder / "azure")
    (folder / "red").rename(tmp_path / "red")
    assert evaluate(classifier_config, [weights]) == 2
    assert "has the 2 classes azure, green, the net 3 (blue, green, red)" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ without labels


@pytest.fixture
def unlabelled(classifier_values, tmp_path) -> tuple[str, list[int]]:
    """--set of the labelled test set's images in one flat folder, in another order; their places in the labelled."""
    folder = tmp_path / "flat"
    folder.mkdir()
    labelled = sorted(Path(classifier_values["data"]["test"]["root"]).rglob("*.png"))
    places = np.random.default_rng(0).permutation(len(labelled)).tolist()
    for number, place in enumerate(places, 1):
        shutil.copy(labelled[place], folder / f"ILSVRC2012_test_{number:08d}.png")
    numbers = [("red", 7), ("blue", 449), ("green", 12)]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(numbers, dtype=[("WNID", "O"), ("ILSVRC2012_ID", "O")])})
    return f"data.test={{format: imagenet_test, root: {folder}, meta: {tmp_path}/meta.mat}}", places


@pytest.mark.parametrize("place", ["memory", "files"])
def test_a_set_without_labels_ends_with_a_submission(classifier_config, weights, tmp_path, unlabelled, place, capsys):
    """The averaged scores' classes, by the development kit's numbers, a line for each image."""
    other = checkpoint(tmp_path / "b.pt", classifier_config, 1)
    (first, _), (second, _) = (scores_by_hand(path, classifier_config, "test") for path in (weights, other))
    setting, places = unlabelled
    settings = ["data.augment={crop: centre}", "data.mean=channel"] if place == "files" else []
    settings = ["--set", setting, *settings]
    assert evaluate(classifier_config, [weights, other], "--out", str(tmp_path / "out"), *settings) == 0
    order = (first + second).argsort(1, descending=True)[places].tolist()
    expected = [" ".join(str((449, 12, 7)[label]) for label in row) for row in order]
    assert (tmp_path / "out/submission.txt").read_text().splitlines() == expected
    assert not (tmp_path / "out/metrics.json").exists()
    assert "24 images without labels (test), center" in capsys.readouterr().out


def test_mistakes_without_labels_take_one_line(classifier_config, weights, tmp_path, unlabelled, capsys):
    setting, _ = unlabelled
    assert evaluate(classifier_config, [weights], "--set", setting) == 2
    assert "data.test: has no labels: give --out" in capsys.readouterr().err
    odd = checkpoint(tmp_path / "c.pt", classifier_config, 0, class_names=["azure", "green", "red"])
    assert evaluate(classifier_config, [odd], "--out", str(tmp_path), "--set", setting) == 2
    assert "has no class azure" in capsys.readouterr().err
    nameless = checkpoint(tmp_path / "d.pt", classifier_config, 0, class_names=[])
    (tmp_path / "meta.mat").unlink()
    assert evaluate(classifier_config, [nameless], "--out", str(tmp_path), "--set", setting) == 2
    assert "meta.mat: missing" in capsys.readouterr().err
    two = setting.replace("meta.mat", "two.mat")
    synsets = np.array([("red", 7), ("blue", 449)], dtype=[("WNID", "O"), ("ILSVRC2012_ID", "O")])
    savemat(tmp_path / "two.mat", {"synsets": synsets})
    assert evaluate(classifier_config, [nameless], "--out", str(tmp_path), "--set", two) == 2
    assert "two.mat: has 2 classes, the net 3, whose file names none" in capsys.readouterr().err
    assert evaluate(classifier_config, [weights], "--set", setting.replace("data.test", "data.val")) == 2
    assert "format imagenet_test has no labels: it is for test" in capsys.readouterr().err


def test_a_training_does_not_end_with_a_set_without_labels(classifier_config, unlabelled):
    values = load_config(classifier_config, [unlabelled[0]], ClassificationConfig)
    with pytest.raises(UserError, match=r"data\.test: has no labels.*set data\.test=null.*tools/test_cls\.py"):
        build_splits(values.data, Path())
