"""Pictures: colours where boxes are, nothing where none are, all sizes and names."""

from __future__ import annotations

import numpy as np
import pytest

from detection.drawing import class_color, draw_detections, sheet

GREY = np.full((60, 100, 3), 128, np.uint8)


def draw(boxes, labels, scores=None, names=("a", "b"), image=GREY, **options) -> np.ndarray:
    boxes, labels = np.array(boxes, float).reshape(-1, 4), np.array(labels, int)
    return draw_detections(image, boxes, labels, scores, names, **options)


def test_box_lines_have_the_class_colour_and_the_inside_stays():
    picture = draw([[20, 25, 80, 50]], [2], np.array([0.9]))
    assert tuple(picture[40, 20]) == tuple(picture[40, 80]) == tuple(picture[50, 50]) == class_color(2)
    assert (picture[30:45, 60:75] == 128).all()
    assert (picture[52:, :] == 128).all()
    assert (GREY == 128).all()  # the given image is not drawn on


def test_name_stands_above_and_inside_where_there_is_no_room():
    above = draw([[20, 25, 80, 50]], [1])
    assert (above[12:24, 20:40] != 128).any()
    at_the_edges = draw([[0, 0, 100, 60]], [1])
    assert (at_the_edges[2:14, 2:14] != 128).any()
    assert at_the_edges.shape == GREY.shape


def test_ground_truth_is_dashed_white_and_named_only_where_it_was_missed():
    found = draw([[20, 25, 80, 50]], [1], np.array([0.9]), truth_boxes=np.array([[20.0, 25, 80, 50]]), truth_labels=[1])
    missed = draw([], [], np.array([]), truth_boxes=np.array([[20.0, 25, 80, 50]]), truth_labels=np.array([1]))
    line = missed[38:50, 20].astype(int)
    assert (line == 255).all(axis=1).any()
    assert (line < 128).all(axis=1).any()  # the gaps
    white = (missed > 230).all(axis=2)
    assert white[8:24].sum() > 60  # its name's chip
    assert (found[8:24] > 230).all(axis=2).sum() < white[8:24].sum()


def test_scale_enlarges_picture_and_boxes():
    picture = draw([[20, 25, 80, 50]], [1], scale=3)
    assert picture.shape == (180, 300, 3)
    assert tuple(picture[110, 60]) == class_color(1)


def test_no_objects_gives_the_image():
    np.testing.assert_array_equal(draw([], [], np.array([])), GREY)


@pytest.mark.parametrize("name", ["ключ", "größe", "a" * 200, ""])
@pytest.mark.parametrize("box", [[-20, -5, 300, 200], [99, 59, 100, 60], [0, 0, 1, 1]])
def test_any_name_and_box_can_be_drawn(name, box):
    picture = draw([box], [1], np.array([1.0]), names=(name,))
    assert picture.shape == GREY.shape
    assert picture.dtype == np.uint8
    assert (picture != 128).any()


def test_non_contiguous_images_are_taken():
    image = np.full((3, 60, 100), 128, np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(draw([[5, 5, 50, 50]], [1], image=image), draw([[5, 5, 50, 50]], [1]))


def test_colours_of_the_first_classes_differ():
    colours = np.array([class_color(label) for label in range(1, 21)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() > 40
    assert all(class_color(label) == class_color(label) for label in (1, 80))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_sheet_holds_all_pictures(count):
    pictures = [np.full((30 + 10 * (i % 3), 60, 3), (10 * i, 255 - 10 * i, 7), np.uint8) for i in range(count)]
    whole = sheet(pictures, cell_width=60, gap=4)
    for picture in pictures:
        assert (whole == picture[0, 0]).all(axis=2).any()
    assert (whole[0] == 255).all()
    assert (whole[-1] == 255).all()


def test_names_never_hide_small_objects():
    """Chips are at least as large as these objects: whatever place they take, half of each object stays visible."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 1, (40, 2)) * (180, 130)
    boxes = np.concatenate((small, small + rng.uniform(6, 14, (40, 2))), axis=1)
    boxes = np.concatenate((boxes, [[10, 10, 190, 140]]))
    labels, scores = np.ones(41, int), np.linspace(0.9, 0.5, 41)
    image = np.full((150, 200, 3), 128, np.uint8)
    named = draw(boxes, labels, scores, image=image, names=("person",))
    bare = draw_detections(image, boxes, labels, scores, ("person",), names=False)
    changed = (named != bare).any(axis=2)
    assert changed.sum() > 200, "some names are written"
    for x1, y1, x2, y2 in boxes[:40]:
        inside = changed[int(np.ceil(y1)) : int(y2), int(np.ceil(x1)) : int(x2)]
        assert inside.mean() < 0.6  # whole pixels of fractional boxes


def test_a_name_that_fits_nowhere_is_left_out():
    """A picture full of one small object: its name would hide it."""
    image = np.full((16, 16, 3), 128, np.uint8)
    args = ([[2, 2, 14, 14]], [1], np.array([0.9]))
    np.testing.assert_array_equal(
        draw(*args, image=image, names=("person",)),
        draw_detections(image, np.array(args[0], float), np.array([1]), args[2], ("person",), names=False),
    )


def test_thickness_is_relative_to_the_pictures_size():
    def line_width(size: int, thickness: float) -> int:
        image = np.full((size, size, 3), 128, np.uint8)
        box = np.array([[0.25, 0.25, 0.75, 0.75]]) * size
        picture = draw_detections(image, box, np.array([1]), None, ("a",), names=False, thickness=thickness)
        return int((picture[size // 2, : size // 2] != 128).any(axis=1).sum())

    assert line_width(440, 1) == 2
    assert line_width(1760, 1) == 8
    assert line_width(1760, 2) == 16
    assert line_width(440, 0.5) == 1


@pytest.mark.parametrize("size", [(4000, 1), (1, 4000), (3000, 60)])
def test_strips_are_not_enlarged_beyond_a_bound(size):
    picture = draw([[0, 0, 1, 1]], [1], image=np.full((*size, 3), 128, np.uint8), scale=480)
    assert max(picture.shape[:2]) == max(size)
    overview = sheet([picture, GREY, picture])
    assert overview.shape[0] * overview.shape[1] < 4e6
    small = draw([[0, 0, 1, 1]], [1], image=np.full((100, 10, 3), 128, np.uint8), scale=48)
    assert small.shape == (2000, 200, 3)


def test_a_strip_that_is_drawn_smaller_keeps_a_row() -> None:
    assert draw([], [], image=np.zeros((2, 20_000, 3), np.uint8), scale=0.02).shape == (1, 400, 3)
