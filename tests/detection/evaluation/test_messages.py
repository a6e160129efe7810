"""Words that several messages share."""

from __future__ import annotations

from detection.evaluation.messages import examples


def test_the_first_values_and_dots_for_the_rest() -> None:
    assert examples(["a", 2, "c"]) == "a, 2, c"
    assert examples(range(5)) == "0, 1, 2, 3, 4"
    assert examples(range(6)) == "0, 1, 2, 3, 4, ..."
    assert examples("abc", 2) == "a, b, ..."
    assert examples([]) == ""
