"""tools/write_shards.py: a set goes in, shards that a config reads come out; an index for others' shards."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import UserError
from datasets.folders import read_folders
from datasets.shards import read_shards
from tools import write_shards


def run(*arguments: object) -> None:
    write_shards.main(write_shards.make_parser().parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def config(tmp_path: Path, root: Path) -> list[str]:
    """--cfg and --data-root of a config with small sets; the validation set lacks a class."""
    for split, names in (("train", "abc"), ("val", "ac")):
        for number, name in enumerate(names * 2):
            path = tmp_path / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), 20 * number, np.uint8))
    sets = ["data.train={format: folders, root: train}", "data.val={format: folders, root: val}"]
    cfg = root / "configs" / "imagenet_resnet50.yaml"
    return ["--cfg", str(cfg), "--data-root", str(tmp_path), "--set", *sets]


def test_written_and_read(tmp_path, config, capsys) -> None:
    run(*config, "--out", tmp_path / "out", "--per-shard", 4)
    assert "6 images of 3 classes" in capsys.readouterr().out
    images, files = read_shards(str(tmp_path / "out" / "train-{000000..000001}.tar")), read_folders(tmp_path / "train")
    assert images.labels.tolist() == files.labels.tolist() == [0, 0, 1, 1, 2, 2]
    run(*config, "--split", "val", "--out", tmp_path / "out", "--name", "v", "--shuffle", 2)
    val = read_shards(str(tmp_path / "out" / "v-{000000..000000}.tar"))
    assert val.class_names == ["a", "b", "c"]  # the training set's
    assert sorted(val.labels.tolist()) == [0, 0, 2, 2] != val.labels.tolist()


def test_index_alone(tmp_path, config, capsys) -> None:
    run(*config, "--out", tmp_path / "out")
    index = tmp_path / "out" / "train.index.json"
    index.unlink()
    run("--index", tmp_path / "out" / "train-{000000..000000}.tar")
    assert index.is_file()
    assert "6 images" in capsys.readouterr().out


def test_a_set_without_labels_is_refused(tmp_path, config) -> None:
    (tmp_path / "meta.txt").write_text("a\nb\nc\n")
    unlabelled = f"data.test={{format: imagenet_test, root: train/a, meta: {tmp_path / 'meta.txt'}}}"
    with pytest.raises(UserError, match=r"data\.test: has no labels"):
        run(*config, unlabelled, "--split", "test", "--out", tmp_path / "out")


def test_what_is_missing_is_told(tmp_path, config) -> None:
    with pytest.raises(UserError, match="give --cfg and --out, or --index"):
        run("--out", tmp_path)
    with pytest.raises(UserError, match=r"data\.test: the config has no such set"):
        run(*config, "--split", "test", "--out", tmp_path)
