"""Which changes of a config go on with a training, and which make it another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import parse_config
from configs.messages import dotted_names
from datasets.cifar import ImageArrays
from datasets.folders import ImageFiles
from datasets.make_records import make_records
from datasets.records import Records
from tests.datasets.conftest import write_image
from tests.detection.made import VALUES
from tools.runtime.resume import MAY_CHANGE, data_state, refuse_another_training, say_what_changed

PATH = Path("run/last.pt")
STORED = parse_config(VALUES, [], DetectionConfig, "made").model_dump(mode="json")


def compare(*overrides: str, stored: dict | None = None, before=("a", "b"), now=("a", "b")) -> None:
    config = parse_config(VALUES, list(overrides), DetectionConfig, "made")
    refuse_another_training(PATH, STORED if stored is None else stored, config, list(before), list(now))


def test_the_same_config_is_silent(capsys):
    compare()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.iterations=9", "resumed with schedule.iterations 9 (before: 4)"),
        ("optim.lr=0.5", "resumed with optim.lr 0.5 (before: 0.002)"),
        ("data.num_workers=1", "resumed with data.num_workers 1 (before: 4)"),
        ("test.score_thresh=0.5", "resumed with test.score_thresh 0.5 (before: 0.05)"),
        ("train.best_metric=loss", "resumed with train.best_metric loss (before: voc12.mAP)"),
        ("data.val=[{format: voc, root: y}]", "resumed with data.val [{"),
    ],
)
def test_what_may_change_is_said(override, said, capsys):
    compare(override)
    shown = capsys.readouterr().out
    assert shown.startswith(said)
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=4", "was trained with train.batch_size 2, the config now says 4: set it back to resume"),
        ("seed=1", "was trained with seed 0, the config now says 1"),
        ("model.box.pool_size=4", "model.box.pool_size 2, the config now says 4"),
        ("optim.momentum=0.8", "optim.momentum 0.9"),
        ("data.min_size=50", "data.min_size 48"),
        ("model.anchors.sizes=[16]", r"model.anchors.sizes \[16, 32\]"),
        ("train.alternating={}", "train.alternating None, the config now says a section"),
    ],
)
def test_what_makes_another_training_is_refused(override, words):
    with pytest.raises(UserError, match=rf"^run/last\.pt: .*{words}.*") as error:
        compare(override)
    assert "start a new run with --init-from" in str(error.value)


@pytest.mark.parametrize("now", ["{a: b, c: d}", "{a: b}", "{}"])
@pytest.mark.parametrize("before", [{"a": "b", "c": "d"}, {"a": "b"}, {}])
def test_each_key_of_a_table_of_the_users_own_counts(before: dict, now: str) -> None:
    stored = {**STORED, "data": {**STORED["data"], "rename_classes": before}}
    if yaml.safe_load(now) == before:
        compare(f"data.rename_classes={now}", stored=stored)
        return
    with pytest.raises(UserError, match=r"was trained with data\.rename_classes \{.*, the config now says \{"):
        compare(f"data.rename_classes={now}", stored=stored)


def test_options_of_another_version_are_no_change(capsys):
    train = {key: value for key, value in STORED["train"].items() if key != "patience"}
    compare(stored={**STORED, "train": {**train, "gone": 3}})
    assert capsys.readouterr().out == ""


def test_other_classes_are_named():
    with pytest.raises(UserError, match=r"trained on other classes than the data's \(b, c differ\)"):
        compare(now=("a", "c"))
    with pytest.raises(UserError, match=r"\(their order differs\)"):
        compare(now=("b", "a"))


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_every_option_that_may_change_is_there(name):
    assert any(name in set(dotted_names(schema)) for schema in (DetectionConfig, ClassificationConfig))


def test_the_objects_of_a_very_large_set_are_not_touched(monkeypatch) -> None:
    """They lie in a file that is mapped: what is looked at counts as the process's memory."""

    def state(boxes: list, counts: list[int]) -> dict[str, str]:
        images = [(f"{number}.png", number, (40, 50)) for number in range(2)]
        return data_state(make_records(
            images=images, boxes=boxes, labels=[1] * len(boxes), counts=counts, class_names=["cat"], source="set",
            annotation_file="{}",
        ))  # fmt: skip

    one, moved = [(1, 2, 20, 30), (3, 4, 20, 30)], [(1, 2, 20, 30), (5, 4, 20, 30)]
    assert state(one, [1, 1]) != state(moved, [1, 1])
    monkeypatch.setattr("tools.runtime.resume.SUMMARY_LIMIT", 1)
    assert state(one, [1, 1]) == state(moved, [1, 1])
    assert state(one, [1, 1]) != state(one, [2, 0])


def test_a_set_that_was_edited_is_told_apart(tmp_path: Path, capsys) -> None:
    """Boxes, flags and images; not by where it lies."""

    def records(folder: str, box=(1, 2, 20, 30), seed: int = 0) -> Records:
        path = write_image(tmp_path / folder / "a.png", (40, 50), seed)
        return make_records(
            images=[(str(path), "a", (40, 50))], boxes=[box], labels=[1], counts=[1], class_names=["cat"],
            source="set", annotation_file="{}",
        )  # fmt: skip

    before = data_state(records("one"))
    assert data_state(records("two")) == before
    moved, other = data_state(records("three", (1, 2, 21, 30))), data_state(records("four", seed=1))
    assert (moved["annotations"] != before["annotations"], moved["images"] == before["images"]) == (True, True)
    assert (other["annotations"] == before["annotations"], other["images"] != before["images"]) == (True, True)
    say_what_changed(Path("last.pt"), before, before)
    for silent in (None, {}):  # checkpoints that do not say
        say_what_changed(Path("last.pt"), silent, before)
    assert capsys.readouterr().out == ""
    say_what_changed(Path("last.pt"), before, moved)
    assert "the annotations of the training set have changed since last.pt was written" in capsys.readouterr().out

    def files(folder: str, names=("a.png", "b.png"), seed: int = 0) -> dict[str, str]:
        for name in names:
            write_image(tmp_path / folder / name, (40, 50), seed)
        return data_state(ImageFiles(tmp_path / folder, np.array(names, "S"), np.array([0, 1]), ["x", "y"]))

    before = files("five")
    assert files("six") == before
    assert files("seven", ("a.png", "c.png"))["annotations"] != before["annotations"]
    assert files("eight", seed=1)["images"] != before["images"]
    pixels = ImageArrays(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ["a", "b"])
    assert data_state(pixels)["annotations"] != data_state(replace(pixels, labels=pixels.labels[::-1]))["annotations"]


def test_a_checkpoint_with_a_key_s_old_name_resumes_in_silence(capsys, caplog):
    """Its owner cannot rename what it holds."""
    stored = {**STORED, "test": dict(STORED["test"]), "model": {**STORED["model"], "box": dict(STORED["model"]["box"])}}
    stored["model"]["box"]["nms_thresh"] = stored["test"].pop("nms_thresh")
    compare(stored=stored)
    assert (capsys.readouterr().out, caplog.text) == ("", "")
    compare("test.nms_thresh=0.7", stored=stored)
    assert "resumed with test.nms_thresh 0.7 (before: " in capsys.readouterr().out
