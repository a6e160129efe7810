"""Whether outputs are equal: shares of detections and differences of losses, by hand."""

from __future__ import annotations

import pytest
import torch

from configs.errors import UserError
from tools.benchmarks import checks


def image(*rows: tuple[list[float], float, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)


BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("other", "share"),
    [
        (([0.2, 0.0, 10.0, 10.2], 0.5, 1), 1.0),
        (([0.3, 0.0, 10.0, 10.0], 0.5, 1), 0.0),  # a corner is a third of a pixel off
        ((BOX, 0.501, 1), 1.0),
        ((BOX, 0.503, 1), 0.0),
        ((BOX, 0.5, 2), 0.0),
    ],
)
def test_equal_detections(other, share):
    assert checks.agreement([image((BOX, 0.5, 1))], [image(other)], 0.25, 2e-3) == share


def test_shares_count_both_sides_and_all_images():
    """Four of ours, two of them there too; theirs are those two: (2 + 2) / 6."""
    ours = [image((BOX, 0.5, 1), (FAR, 0.4, 1)), image((BOX, 0.5, 1), (FAR, 0.4, 2))]
    theirs = [image((BOX, 0.5, 1), (FAR, 0.4, 1)), image()]
    assert checks.agreement(ours, theirs, 0.25, 2e-3) == pytest.approx(4 / 6)
    assert checks.resemblance(ours, theirs) == pytest.approx(4 / 6)
    assert checks.agreement([image()], [image()], 0.25, 2e-3) == checks.resemblance([image()], [image()]) == 1


def test_resemblance_needs_the_class_and_seven_tenths():
    """10 x 10 against 10 x 14: 0.714; against 10 x 15: 0.667. Scores do not matter."""
    ours = [image((BOX, 0.9, 1))]
    assert checks.resemblance(ours, [image(([0.0, 0.0, 10.0, 14.0], 0.1, 1))]) == 1
    assert checks.resemblance(ours, [image(([0.0, 0.0, 10.0, 15.0], 0.9, 1))]) == 0
    assert checks.resemblance(ours, [image((BOX, 0.9, 2))]) == 0


def test_too_few_equal_detections_are_refused():
    many = [image(*((BOX, k / 100, 1) for k in range(100)))]
    one_off = [image(*((BOX, k / 100, 1 if k else 2) for k in range(100)))]
    assert checks.check_detections("a", "b", many, many) == 1
    assert checks.check_detections("a", "b", one_off, many) == pytest.approx(0.99)
    with pytest.raises(UserError, match=r"detections of a and b only 0\.0% are equal"):
        checks.check_detections("a", "b", [image((FAR, 0.5, 1))], [image((BOX, 0.5, 1))])
    with pytest.raises(UserError, match="b detects nothing: there is nothing to compare a with"):
        checks.check_detections("a", "b", many, [image()])


def test_differences_of_losses_are_relative():
    expected = [{"x": 2.0, "y": 0.0}, {"x": 1.0, "y": 0.0}]
    mine = {"a": [{"x": 2.001, "y": 0.0}], "b": expected}
    assert checks._check_losses(mine, expected, 1e-3, "b") == pytest.approx(5e-4, rel=1e-3)
    with pytest.raises(UserError, match=r"no ratio: x of step 2 is 1\.01 with a and 1 with b"):
        checks._check_losses({"a": [expected[0], {"x": 1.01, "y": 0.0}]}, expected, 1e-3, "b")
    with pytest.raises(UserError, match="y of step 1 is nan"):
        checks._check_losses({"a": [{"x": 2.0, "y": float("nan")}]}, expected, 1e-3, "b")
    with pytest.raises(UserError, match=r"a has the losses \['x'\], b \['x', 'y'\]"):
        checks._check_losses({"a": [{"x": 2.0}]}, expected, 1e-3, "b")
