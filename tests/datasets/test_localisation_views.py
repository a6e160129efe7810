"""Random crops that carry boxes along, the test's views, and their loaders."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from configs.localisation import LocalisationDataConfig
from datasets.classification_transforms import random_resized_box
from datasets.localisation_views import (
    LocalisationImages,
    boxes_in_view,
    collate,
    draw_crop,
    evaluation_views,
    make_view,
    train_views,
    visible_share,
)
from datasets.make_records import make_records
from datasets.records import Records

SOURCE = {"format": "tiny_imagenet", "root": "tiny", "split": "train"}


def data_config(**changes: object) -> LocalisationDataConfig:
    values = {"crop_size": 32, "test_resize": 40, "num_workers": 0, **changes}
    values.setdefault("augment", {"crop": "scale_jitter", "scale": [32, 64]})
    return LocalisationDataConfig(train=SOURCE, **values)


def test_boxes_in_a_view_by_hand():
    # A window of 20 x 40 (H x W) at y 10, x 30, seen at 40 x 20: y doubles, x halves.
    boxes = np.array([[34.0, 12.0, 50.0, 28.0], [0.0, 0.0, 30.0, 10.0]])
    window, size = (10, 30, 20, 40), (40, 20)
    assert boxes_in_view(boxes, window, size).tolist() == [[2, 4, 10, 36], [-15, -20, 0, 0]]
    assert boxes_in_view(boxes, window, size, mirror=True)[0].tolist() == [10, 4, 18, 36]
    assert visible_share(np.array([[20.0, 0.0, 40.0, 20.0]]), window).tolist() == [0.25]


def test_a_view_shows_the_box_where_it_says():
    """A coloured object on grey: the box of the view is where the colour is, mirrored or not."""
    image = np.full((60, 90, 3), 100, np.uint8)
    image[20:40, 50:80] = (255, 0, 0)
    for mirror in (False, True):
        view = make_view(image, np.array([[50.0, 20.0, 80.0, 40.0]]), (10, 30, 40, 60), (80, 120), 5, 2, mirror=mirror)
        assert (view.index, view.label, view.original_size) == (5, 2, (60, 90))
        rows, columns = np.nonzero(view.image[..., 0] > 178)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(view.boxes[0], seen, atol=1)
        assert view.frame == (30.0, 10.0, 0.5, 0.5)
        if not mirror:  # the frame leads back
            x, y, sx, sy = view.frame
            back = view.boxes[0] * (sx, sy, sx, sy) + (x, y, x, y)
            assert back.tolist() == [50, 20, 80, 40]


def test_objects_that_a_crop_hardly_shows_are_left_out_unless_it_shows_no_other():
    image = np.zeros((40, 40, 3), np.uint8)
    boxes = np.array([[0.0, 0.0, 20.0, 20.0], [15.0, 0.0, 35.0, 20.0]])
    window = (0, 0, 20, 20)
    kept = make_view(image, boxes, window, (20, 20), 0, 0, min_visible=0.5)
    assert kept.boxes.tolist() == [[0, 0, 20, 20]]
    alone = make_view(image, boxes[1:], window, (20, 20), 0, 0, min_visible=0.5)
    assert alone.boxes.tolist() == [[15, 0, 20, 20]]
    nothing = make_view(image, boxes[1:] + 20, window, (20, 20), 0, 0, min_visible=0.5)
    assert nothing.boxes.shape == (0, 4)


@given(
    st.integers(0, 10_000), st.tuples(st.integers(30, 200), st.integers(30, 200)),
    st.sampled_from(["scale_jitter", "random_resized"]),
)  # fmt: skip
def test_a_crop_lies_inside_and_holds_an_object(seed, size, crop):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.8, 2) * size[::-1]
    boxes = np.array([[*corner, *(corner + 0.2 * np.array(size[::-1]))]])
    data = data_config(augment={"crop": crop, **({"scale": [32, 64]} if crop == "scale_jitter" else {})})
    y, x, height, width = window = draw_crop(size, boxes, data, rng)
    assert 0 <= y <= y + height <= size[0]
    assert 0 <= x <= x + width <= size[1]
    assert visible_share(boxes, window)[0] > 0.2
    if crop == "scale_jitter":
        assert height == width
        shorter = 32 * min(size) / height
        assert 31 <= shorter <= 66, "a 32 crop of an image whose shorter side is 32 to 64"


def test_a_small_object_far_out_draws_the_crop_to_it():
    boxes = np.array([[0.0, 0.0, 2.0, 2.0], [190.0, 90.0, 198.0, 98.0]])
    data = data_config(augment={"crop": "scale_jitter", "scale": [320, 320]})  # windows of 10 x 10 in 100 x 200
    windows = [draw_crop((100, 200), boxes, data, np.random.default_rng(seed)) for seed in range(20)]
    assert all((visible_share(boxes, window) >= 0.5).any() for window in windows)
    assert windows.count((89, 189, 10, 10)) > 10, "the largest one's centre, at most ten draws having missed it"


def test_the_centre_crop_draws_nothing():
    data, rng = data_config(augment={"crop": "centre"}), np.random.default_rng(0)
    before = rng.bit_generator.state
    # 48 x 64 at shorter side 40, crop 32: 32 * 48 / 40 = 38.4 pixels of the image.
    assert draw_crop((48, 64), np.array([[0.0, 0.0, 3.0, 3.0]]), data, rng) == (5, 13, 38, 38)
    assert rng.bit_generator.state == before


def test_ten_windows_are_drawn_at_most_and_one_without_objects():
    values = {"crop": "scale_jitter", "scale": [320, 320], "min_visible": 1.0}  # windows of 10 x 10 in 100 x 200
    data = data_config(augment=values)
    for boxes, tries in ((np.array([[0.0, 0.0, 50.0, 50.0]]), 10), (np.zeros((0, 4)), 1)):
        rng, other = np.random.default_rng(4), np.random.default_rng(4)
        window = draw_crop((100, 200), boxes, data, rng)
        for _ in range(tries):
            drawn = [int(other.integers(low, high)) for low, high in ((320, 321), (0, 91), (0, 191))]
        assert rng.bit_generator.state == other.bit_generator.state
        assert window == ((20, 20, 10, 10) if tries == 10 else (drawn[1], drawn[2], 10, 10))


def test_a_window_has_a_pixel_at_least_and_never_more_than_the_image():
    rng, nothing = np.random.default_rng(0), np.zeros((0, 4))
    large = data_config(augment={"crop": "scale_jitter", "scale": [320, 320]})  # a tenth of the shorter side
    assert draw_crop((2, 3), nothing, large, rng)[2:] == (1, 1)
    whole = data_config(augment={"crop": "scale_jitter", "scale": [32, 32]})
    assert draw_crop((20, 20), nothing, whole, rng) == (0, 0, 20, 20)


def test_random_areas_and_ratios_are_the_classifiers():
    data = data_config(augment={"crop": "random_resized", "area": [0.1, 0.3], "ratio": [0.5, 2.0]})
    rng, other = np.random.default_rng(5), np.random.default_rng(5)
    windows = [draw_crop((60, 90), np.zeros((0, 4)), data, rng) for _ in range(5)]
    assert windows == [random_resized_box((60, 90), other, (0.1, 0.3), (0.5, 2.0)) for _ in range(5)]
    assert any(height != width for _, _, height, width in windows)


def test_half_of_an_object_is_enough_where_the_config_says_so():
    data = data_config(augment={"crop": "scale_jitter", "scale": [32, 32], "min_visible": 0.5})
    boxes = np.array([[-64.0, 0.0, 64.0, 64.0]])  # any window of 64 x 64 at x 0 shows half of it
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    assert draw_crop((64, 64), boxes, data, rng) == (0, 0, 64, 64)
    assert [int(other.integers(low, high)) for low, high in ((32, 33), (0, 1), (0, 1))] == [32, 0, 0]
    assert rng.bit_generator.state == other.bit_generator.state, "the first window will do"


# ---------------------------------------------------------------------------------------------- loaders


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Six images of two sizes; image i has a square of its own grey, of class i % 2."""
    images, boxes = [], []
    for i in range(6):
        size = ((48, 64), (64, 40))[i % 2]
        image = np.zeros((*size, 3), np.uint8)
        image[10:30, 12 : 32 - i] = 100 + 20 * i
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), image)
        images.append((str(path), f"image{i}", size))
        boxes.append((12, 10, 32 - i, 30))
    return make_records(
        images=images, boxes=boxes, labels=[1 + i % 2 for i in range(6)], counts=[1] * 6, class_names=["a", "b"],
        source="six", annotation_file="{}",
    )  # fmt: skip


def take(stream, count: int) -> list:
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def same(a, b) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_training_views_follow_from_the_seed_and_the_iteration(records):
    data = data_config()
    options = {"batch_size": 4, "seed": 3}
    whole = take(train_views(records, data, **options), 4)
    assert whole[0].images.shape == (4, 3, 32, 32)
    assert whole[0].images.dtype == torch.uint8
    assert whole[0].images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(whole[0].labels, whole[0].index % 2)
    resumed = take(train_views(records, data, **options, start_iteration=2), 2)
    workers = take(train_views(records, data_config(num_workers=2), **options), 3)
    assert all(same(a, b) for a, b in zip(whole[2:], resumed, strict=True))
    assert all(same(a, b) for a, b in zip(whole[:3], workers, strict=True))
    halves = [take(train_views(records, data, **options, rank=rank, world_size=2), 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.images for half in halves]), whole[0].images)
    assert not same(whole[0], take(train_views(records, data, batch_size=4, seed=4), 1)[0])
    # The object's grey lies inside its box and nowhere else.
    for batch in whole:
        for image, (x1, y1, x2, y2) in zip(batch.images, batch.boxes[:, 0].round().int().tolist(), strict=True):
            outside = image.clone()
            outside[:, max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = 0
            assert outside.max() == 0
            assert image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() >= 90


def test_evaluation_views_hold_each_image_once_and_lead_back(records):
    data = data_config()
    for scales, expected in (((), [(32, 32)]), ((24, 48), None)):
        seen = []
        for rank in (0, 1):
            for batches in evaluation_views(records, data, scales, batch_size=2, rank=rank, world_size=2):
                assert len(batches) == max(1, len(scales))
                for batch, scale in zip(batches, scales or (None,), strict=True):
                    size = tuple(batch.images.shape[2:])
                    assert size in expected if expected else min(size) == scale
                    x, y, sx, sy = batch.frames[:, None].unbind(-1)
                    scale_back, corner = torch.stack((sx, sy, sx, sy), -1), torch.stack((x, y, x, y), -1)
                    back = (batch.boxes * scale_back + corner)[batch.valid]
                    truth = torch.from_numpy(records.boxes[batch.index.numpy()]).float()
                    shown = truth if scales else back  # the centre crop may cut an object
                    torch.testing.assert_close(back, shown)
                    assert batch.original_sizes.tolist() == records.sizes[batch.index.numpy()].tolist()
                seen += batches[0].index.tolist()
        assert sorted(seen) == list(range(6))


def test_the_centre_crop_by_hand(records):
    batches = list(evaluation_views(records, data_config(), (), batch_size=6))
    ((batch,),) = batches
    # 48 x 64 at shorter side 40, crop 32: a window of 38 x 38 (32 * 48 / 40 = 38.4) at y 5, x 13.
    assert batch.frames[0].tolist() == pytest.approx([13, 5, 38 / 32, 38 / 32])
    x1, y1, x2, y2 = batch.boxes[0, 0].tolist()
    assert (x1, y1, x2, y2) == pytest.approx((0, 5 * 32 / 38, 19 * 32 / 38, 25 * 32 / 38))


def test_ground_truth_is_padded_to_a_power_of_two():
    views = [
        make_view(
            np.zeros((40, 40, 3), np.uint8), np.tile([[1.0, 2.0, 30.0, 20.0]], (n, 1)), (0, 0, 40, 40), (40, 40), n, 0
        )
        for n in (0, 3, 1)
    ]
    batch = collate(views)
    assert batch.boxes.shape == (3, 4, 4)
    assert batch.valid.tolist() == [[False] * 4, [True, True, True, False], [True, False, False, False]]
    assert not batch.boxes[~batch.valid].any()


def test_a_broken_image_is_told_in_one_line(records, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"1\.png"):
            take(train_views(records, data_config(num_workers=workers), batch_size=6, seed=0), 1)


def test_only_objects_of_the_images_own_class_are_shown(records):
    """An image's class is that of its first object; another class's objects in it do not train."""
    both = replace(records, offsets=np.array([0, 2, 3, 4, 5, 6]))  # image 0 has an object of each class
    (view,) = LocalisationImages(both, data_config(), scales=(48,))[0, 0]
    assert view.label == 0
    assert view.boxes.tolist() == [[12, 10, 32, 30]]


def test_what_workers_need_can_be_sent_to_them(records):
    images = LocalisationImages(records, data_config(), seed=3)
    (view,), (other,) = images[2, 1], pickle.loads(pickle.dumps(images))[2, 1]
    assert np.array_equal(view.image, other.image)
    assert np.array_equal(view.boxes, other.boxes)
    (moved,) = LocalisationImages(records, data_config(), seed=3)[3, 1]
    assert not np.array_equal(view.image, moved.image), "another epoch, another crop"


def test_evaluation_takes_images_of_one_size_together_in_order(records):
    batches = list(evaluation_views(records, data_config(), (48,), batch_size=2))
    assert [batch.index.tolist() for (batch,) in batches] == [[0, 2], [4], [1, 3], [5]]  # 48 x 64 before 64 x 40
    (first,) = batches[0]
    assert tuple(first.images.shape[2:]) == (48, 64)
    crops = list(evaluation_views(records, data_config(), (), batch_size=4, rank=1, world_size=2))
    assert [batch.index.tolist() for (batch,) in crops] == [[4, 5]]
