"""browse_data.py: the sheet holds the samples as the training sees them, and the numbers are those of the set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import UserError
from tools import browse_data


def run(*words: object) -> None:
    browse_data.main(browse_data.make_parser().parse_args([str(word) for word in words]))


def test_sheet_and_numbers(tiny_config: Path, tmp_path: Path, capsys) -> None:
    run("--cfg", tiny_config, "--out", tmp_path / "a.png", "--set", "data.augment.hflip=0")
    said = capsys.readouterr().out
    assert "set        train: 6 images" in said
    counts = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith(("  red", "  blue"))}
    assert counts == {"red": ["6", "in", "6"], "blue": ["3", "in", "3"]}  # every second image has both
    assert "of which little can be learned: red (6), blue (3)" in said
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 3 * 480 + 4 * 8  # three in a row, 8 pixels between them
    run("--cfg", tiny_config, "--out", tmp_path / "b.png", "--set", "data.augment.hflip=1")
    mirrored = cv2.imread(str(tmp_path / "b.png"))
    assert picture.shape == mirrored.shape
    assert (picture != mirrored).mean() > 0.05


def test_the_test_set_is_not_augmented(tiny_config: Path, tmp_path: Path) -> None:
    pictures = []
    for epoch in (0, 1):
        out = tmp_path / f"{epoch}.png"
        run("--cfg", tiny_config, "--split", "test", "--epoch", epoch, "--count", 1, "--out", out)
        pictures.append(cv2.imread(str(out)))
    assert np.array_equal(*pictures)


def test_histogram() -> None:
    lines = browse_data.histogram(np.array([[4.0, 4], [5, 5], [16, 16], [7.9, 7.9]]))
    assert [line.split()[4] for line in lines] == ["3", "0", "1"]  # 4 to 8, 8 to 16, 16 to 32
    assert lines[0].count("#") == 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "val"], "data.val: lists no source"),
        (["--count", "0"], "give at least 1"),
        (["--out", "a.txt"], "a sheet is a .png"),
    ],
)
def test_mistakes(tiny_config: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        run("--cfg", tiny_config, *words)
    assert said in str(error.value)
