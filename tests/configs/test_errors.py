"""The hint at what was meant."""

from __future__ import annotations

from configs.errors import counted, did_you_mean, examples, nearest


def test_nearest_is_the_most_similar_choice_or_none():
    assert nearest("trian", ["test", "train", "trainval"]) == "train"
    assert nearest("trian", iter(["val", "x"])) is None
    assert nearest("cat", []) is None
    assert nearest(1001, [1000, 2000]) == "1000"


def test_did_you_mean_stands_behind_a_name():
    assert f"no set trian{did_you_mean('trian', ['train'])}: see" == "no set trian (did you mean train?): see"
    assert did_you_mean("trian", ["cat"]) == ""


def test_examples():
    assert examples(["a", 2, "c"]) == "a, 2, c"
    assert examples(range(5)) == "0, 1, 2, 3, 4"
    assert examples(range(6)) == "0, 1, 2, 3, 4, ..."
    assert examples("abc", 2) == "a, b, ..."
    assert examples([]) == ""


def test_counted():
    assert [counted(n, "training image") for n in (0, 1, 2)] == [
        "0 training images",
        "1 training image",
        "2 training images",
    ]
    assert [counted(2, thing) for thing in ("class", "box", "batch", "epoch")] == [
        "2 classes",
        "2 boxes",
        "2 batches",
        "2 epochs",
    ]
    assert counted(12345, "object") == "12,345 objects"
    assert [counted(n, "image", " is", " are") for n in (1, 2)] == ["1 image is", "2 images are"]
