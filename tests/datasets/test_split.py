"""Dividing by a hash of the name: shares, stability, groups, and small sets."""

from __future__ import annotations

import numpy as np
import pytest

from configs.errors import UserError
from datasets.make_records import make_records
from datasets.split import choose_seed, group_keys, split_parts, split_records


def records_named(names: list[str], labels: list[int] | None = None):
    labels = labels or [1] * len(names)
    return make_records(
        images=[(f"/set/{name}.jpg", name, (10, 20)) for name in names],
        boxes=[(1, 1, 8, 8)] * len(names),
        labels=labels,
        counts=[1] * len(names),
        class_names=[f"class {k}" for k in range(1, max(labels) + 1)],
        source="set",
        annotation_file="{}",
    )


def test_parts_are_disjoint_together_all_and_of_about_their_shares() -> None:
    records = records_named([f"photo_{i}" for i in range(2000)])
    parts = [set(split_records(records, part, [0.7, 0.2, 0.1]).image_ids) for part in ("train", "val", "test")]
    assert set().union(*parts) == set(records.image_ids)
    assert sum(map(len, parts)) == 2000
    # a binomial's standard deviation is at most sqrt(2000 * .7 * .3) = 20.5
    assert [len(part) for part in parts] == pytest.approx([1400, 400, 200], abs=65)


def test_more_images_move_none() -> None:
    names = [f"photo_{i}" for i in range(100)]
    few, many = split_parts(names[:60], [0.8, 0.2]), split_parts(names, [0.8, 0.2])
    assert (few == many[:60]).all()
    assert (split_parts(names, [0.8, 0.2], seed=1) != many).any()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_part_of_a_small_set_is_empty(count: int) -> None:
    for seed in range(30):
        assert set(split_parts([str(i) for i in range(count)], [0.9, 0.1], seed=seed)) == {0, 1}


def test_frames_of_a_video_stay_together() -> None:
    names = [f"clip{clip}_frame{frame:03}" for clip in range(10) for frame in range(20)]
    records = records_named(names)
    train = {name.split("_")[0] for name in split_records(records, "train", 0.6, pattern="(.*)_frame").image_ids}
    val = {name.split("_")[0] for name in split_records(records, "val", 0.6, pattern="(.*)_frame").image_ids}
    assert not train & val
    assert len(train | val) == 10


def test_groups_may_be_folders_below_the_root(tmp_path) -> None:
    paths = [str(tmp_path / "a/1.jpg"), str(tmp_path / "b/1.jpg"), str(tmp_path / "b/2.jpg"), str(tmp_path / "3.jpg")]
    assert group_keys(paths, "^([^/]+)/", tmp_path) == ["a", "b", "b", "3"]
    assert group_keys(paths, None) == ["1", "1", "2", "3"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(", "is not a regular expression"), ("clip[0-9]+", "fits no image's path, for example 1.jpg")],
)
def test_bad_patterns(pattern: str, said: str) -> None:
    with pytest.raises(UserError, match="split_by") as error:
        group_keys(["/x/1.jpg"], pattern)
    assert said in str(error.value)


def test_what_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="cannot be divided into 2 parts: it has 1 image"):
        split_records(records_named(["a"]), "train", 0.8)
    with pytest.raises(UserError, match="write three shares"):
        split_records(records_named(["a", "b"]), "test", 0.8)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 2, 1, 3, 1, 2, 1, 1, 2, 1, 1, 1],  # the third class cannot be in both parts
        [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 2],
        [3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1],
        [1, 2, 3] + [1] * 9,  # many divisions are as good
    ],
)
def test_the_chosen_seed_is_the_first_of_the_best(labels: list[int]) -> None:
    """By the sum of: how far the parts are from their shares of the images, the classes that a part lacks though enough
    groups show them, and how far each part is from its share of each class's images, on average."""
    names = [f"{number}" for number in range(12)]
    records = records_named(names, labels=labels)

    def cost(seed: int) -> float:
        parts = split_parts(names, [0.7, 0.3], seed=seed)
        total = 0.0
        for part, share in ((0, 0.7), (1, 0.3)):
            mine = [label for label, own in zip(labels, parts, strict=True) if own == part]
            total += abs(len(mine) / 12 - share) + len({k for k in (1, 2, 3) if labels.count(k) > 1} - set(mine))
            total += np.mean([abs(mine.count(label) / labels.count(label) - share) for label in (1, 2, 3)])
        return total

    costs = [cost(seed) for seed in range(30)]
    assert choose_seed(records, 0.7, names, tries=30) == int(np.argmin(np.round(costs, 9)))


def test_the_chosen_seed_is_near_the_shares_and_has_each_class_in_both_parts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        names = [f"{rng.integers(1 << 40)}" for _ in range(20)]
        records = records_named(names, labels=[2, 2, 2, *[1] * 17])
        seed = choose_seed(records, 0.8, names)
        parts = split_parts(names, [0.8, 0.2], seed=seed)
        assert 15 <= (parts == 0).sum() <= 17
        assert all(set(records.labels[parts == part]) == {1, 2} for part in (0, 1))
