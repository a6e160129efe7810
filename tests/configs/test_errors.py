"""The hint at what was meant."""

from __future__ import annotations

import logging

from configs.errors import (
    MESSAGE_LIMIT,
    PrintableFilter,
    UserError,
    counted,
    did_you_mean,
    examples,
    nearest,
    printable,
)


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


def test_messages_are_safe_to_print():
    assert str(UserError("a\x1b[31m\tb\n\udcff")) == "a\\x1b[31m\tb\n\\udcff"
    assert str(UserError(7)) == "7"
    assert str(UserError()) == ""


def test_long_messages_are_cut_in_their_middle():
    assert printable("a" * 20, 20) == "a" * 20
    assert printable("a" * 30 + "b" * 30, 21) == "a" * 8 + " ... " + "b" * 8
    assert len(str(UserError("x" * 9999))) <= MESSAGE_LIMIT


def test_a_logger_s_messages_are_made_printable_and_go_on(caplog):
    logger = logging.getLogger("tests.errors")
    logger.addFilter(PrintableFilter())
    logger.warning("class %s: 100%%", "\x1b[2J")
    assert caplog.messages == ["class \\x1b[2J: 100%"]


def test_escaped_characters_count_for_the_limit():
    assert len(printable("\x1b" * 1500)) <= MESSAGE_LIMIT
    assert printable("\x1b" * 10, limit=45) == "\\x1b" * 10
