"""The 20 classes of Tiny-ImageNet: boxes as they come, and what predictors reach that see no pixel."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from configs.localisation import LocalisationSourceConfig
from datasets.localisation import image_labels, read_localisation
from datasets.public_sets import TINY_IMAGENET_20
from tools.runtime.localisation import mean_boxes, trivial_figures


@pytest.fixture(scope="module")
def tiny(data_dir, tmp_path_factory) -> Path:
    """The whole set, unpacked."""
    root = tmp_path_factory.mktemp("tiny")
    with zipfile.ZipFile(data_dir / "tiny_imagenet_20.zip") as archive:
        archive.extractall(root)
    return root


def test_the_twenty_classes_are_those_of_the_figures(tiny):
    wnids = (tiny / "wnids.txt").read_text().split()
    names = dict(line.split("\t") for line in (tiny / "words.txt").read_text().splitlines())
    assert {wnid: names[wnid].split(",")[0] for wnid in wnids} == TINY_IMAGENET_20


def test_the_trivial_predictors_reach_their_published_figures(tiny, caplog):
    """46.6 % with the mean box of the class, 44.3 % with a centred 48x48 box."""
    source = {"format": "tiny_imagenet", "root": str(tiny)}
    with caplog.at_level(logging.WARNING):
        train = read_localisation(LocalisationSourceConfig(**source, split="train"), tiny)
    reports = caplog.text
    val = read_localisation(LocalisationSourceConfig(**source, split="val"), tiny, train.class_names)
    assert np.bincount(image_labels(train)).tolist() == [500] * 20
    assert np.bincount(image_labels(val)).tolist() == [50] * 20
    assert (train.sizes == 64).all()
    figures = trivial_figures(mean_boxes(train), val)
    assert figures["mean_box_error"] == pytest.approx(0.466, abs=0.0005)
    assert figures["centre_box_error"] == pytest.approx(0.443, abs=0.0005)
    # What is dirty is reported once each.
    assert reports.count("read as RGB") == 1
    assert reports.count("at most 1 pixel wide or high") == 1
    without = (train.boxes[:, 2:] <= train.boxes[:, :2]).any(1)
    assert without.sum() == 30
    assert all(len(train.target(int(i))) == 0 for i in np.flatnonzero(without))
