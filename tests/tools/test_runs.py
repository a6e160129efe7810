"""The table of runs: values by hand, formats, figures side by side, mistakes in one line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import UserError
from tests.tools.runtime.test_curves import write
from tools import runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs at different depths: a detector's, with its config, and a classifier's without."""
    first = write(tmp_path / "a")
    (first / "config.yaml").write_text(
        "# Command:   tools/train_det.py --cfg 'my photos.yaml' --out a\ntrain: {best_metric: coco.AP}\n"
    )
    second = [
        {"iteration": 5, "split": "train", "loss": 2.0, "seconds": 1000.0},
        {"iteration": 5, "split": "test", "top1_error": 0.25, "top5_error": 0.125, "loss": 1.0, "images": 7},
        {"iteration": 9, "split": "train", "loss": 1.0, "seconds": 500.0},
        {"iteration": 9, "split": "test", "top1_error": 0.5, "top5_error": 0.0625, "loss": 2.0, "images": 7},
    ]
    write(tmp_path / "deeper/b|c", second)
    return tmp_path


def table(capsys, *arguments: object) -> list[dict[str, str]]:
    runs.main(runs.make_parser().parse_intermixed_args([*map(str, arguments), "--format", "csv"]))
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_values_by_hand(folder, capsys):
    """Time: 10 iterations of 2 s and 10 of 1 s; 5 of 1000 s and 4 of 500 s."""
    first, second = table(capsys, folder)
    assert first == {
        "run": str(folder / "a"), "config": "my photos.yaml", "state": "stopped", "iteration": "20",
        "best": "coco.AP 0.2 at 20", "last": "0.2", "other figures": "voc12.mAP 0.5, train.loss 0.75",
        "training time": "0:00:30",
    }  # fmt: skip
    assert second == {
        "run": str(folder / "deeper/b|c"), "config": "", "state": "stopped", "iteration": "9",
        "best": "top1_error 0.25 at 5", "last": "0.5", "other figures": "top5_error 0.0625, train.loss 1",
        "training time": "1:56:40",
    }  # fmt: skip


def test_figures_that_are_asked_for(folder, capsys):
    first, second = table(capsys, folder / "a", folder / "deeper", folder, "--metric", "loss", "voc12.mAP")
    assert (first["best loss"], first["last loss"]) == ("0.9 at 20", "0.9")
    assert (first["best voc12.mAP"], second["best voc12.mAP"]) == ("0.5 at 20", "")
    assert (second["best loss"], second["last loss"]) == ("1 at 5", "2")


def test_formats(folder, capsys):
    runs.main(runs.make_parser().parse_args([str(folder)]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert {line.index(word) for line, word in zip(lines, ("state", "stopped", "stopped"), strict=True)} == {
        lines[0].index("state")
    }
    runs.main(runs.make_parser().parse_args([str(folder), "--format", "markdown"]))
    lines = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in lines} == {9}
    assert "b&#124;c" in lines[3]


def test_plot(folder, capsys):
    runs.main(runs.make_parser().parse_args([str(folder), "--plot", str(folder / "both.png")]))
    with Image.open(folder / "both.png") as image:  # a panel for coco.AP, one for top1_error
        assert image.height > 800
    assert "both.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: is not a folder"),
        (["empty"], "empty: holds no run"),
        (["a", "--metric", "voc12.mAp"], r"did you mean voc12\.mAP\?"),
        (["a", "--plot", "a/metrics.jsonl"], "metrics.jsonl"),
    ],
)
def test_mistakes(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        runs.main(runs.make_parser().parse_args(arguments))


def test_a_damaged_run_is_passed_over(folder, capsys, caplog):
    with (folder / "a/metrics.jsonl").open("r+") as file:
        file.write("x")
    (folder / "deeper/b|c/config.yaml").write_text("# Command: train_det.py --cfg 'b.yaml\ntrain: {}\n")
    runs.main(runs.make_parser().parse_args([str(folder)]))
    out = capsys.readouterr().out
    assert "b|c" in out
    assert f"{folder}/a" not in out
    assert "line 1: is not a line of figures" in caplog.text
    assert caplog.text.count("passed over") == 1
