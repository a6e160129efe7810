"""Nested figures flat, differing classes, Markdown tables."""

from __future__ import annotations

from tools.runtime.texts import differing, leaves, markdown_table, net_name


def test_leaves_are_under_dotted_names_in_their_order():
    values = {"b": {"x": 1, "y": {"z": [2]}}, "a": None, "c": {}}
    assert list(leaves(values)) == [("b.x", 1), ("b.y.z", [2]), ("a", None), ("c", {})]


def test_differing_classes():
    assert differing(["cat", "dog"], ["dog", "ant"]) == "ant, cat differ"
    assert differing(["cat", "dog"], ["dog", "cat"]) == "their order differs"
    assert differing(list("abcdef"), []) == "a, b, c, d, e differ"


def test_a_net_without_a_name():
    assert net_name("resnet50") == "resnet50"
    assert net_name({"stages": []}) == net_name(None) == "a net of one's own"


def test_a_table_keeps_its_columns_whatever_cells_hold():
    assert markdown_table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n|---|---|\n| 1 | x&#124;y |"
