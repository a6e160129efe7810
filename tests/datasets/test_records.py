"""Flat arrays: subsets, joins and class maps equal the plain per-image way."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from datasets import records as module
from datasets.make_records import make_records
from datasets.records import Records, has_extent, join


def _records(counts: list[int], names=("a", "b", "c"), first_id: int = 0, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    total = sum(counts)
    low = rng.uniform(0, 50, (total, 2))
    return make_records(
        images=[(f"/x/{i}.jpg", first_id + i, (100 + i, 120)) for i in range(len(counts))],
        boxes=list(np.concatenate([low, low + rng.uniform(5, 40, (total, 2))], axis=1)),
        labels=list(rng.integers(1, len(names) + 1, total)),
        counts=counts,
        class_names=list(names),
        source="s",
        annotation_file="/x/{}.xml",
        difficult=list(rng.random(total) < 0.3),
    )


def _objects(records: Records, i: int) -> list[tuple]:
    """Image i's objects as plain tuples."""
    part = records.objects(i)
    fields = (records.boxes, records.labels, records.area, records.difficult, records.annotation_ids)
    names = [records.class_names[label - 1] for label in records.labels[part]]
    numbers = range(len(records.labels))[part]
    return [(name, *(f[m].tolist() for f in fields)) for name, m in zip(names, numbers, strict=True)]


counts_lists = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@given(counts_lists, st.data())
def test_subset_is_the_images_objects(counts: list[int], data) -> None:
    records = _records(counts)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    part = records.subset(chosen)
    assert part.image_ids.tolist() == chosen
    for new, old in enumerate(chosen):
        assert _objects(part, new) == _objects(records, old)
        assert part.image_size(new) == records.image_size(old)


@given(counts_lists, counts_lists)
def test_join_is_one_after_the_other(first: list[int], second: list[int]) -> None:
    parts = [_records(first), _records(second, first_id=100, seed=1)]
    joined = join(parts)
    assert len(joined) == len(first) + len(second)
    flat = [(part, i) for part in parts for i in range(len(part))]
    for i, (part, k) in enumerate(flat):
        # all but the annotation id, which is given anew
        assert [item[:-1] for item in _objects(joined, i)] == [item[:-1] for item in _objects(part, k)]
        assert joined.image_ids[i] == part.image_ids[k]
    assert joined.annotation_ids.tolist() == list(range(1, len(joined.labels) + 1))


def test_join_tells_equal_ids_apart() -> None:
    joined = join([_records([1, 0]), _records([2, 1])])
    assert joined.image_ids.tolist() == ["1/0", "1/1", "2/0", "2/1"]
    assert join([_records([1, 0])]).image_ids.tolist() == [0, 1]


@given(counts_lists, st.permutations(["a", "b", "c"]), st.sets(st.sampled_from(["a", "b", "c"]), min_size=1))
def test_with_classes_keeps_names_and_drops_the_rest(counts, order, keep) -> None:
    records = _records(counts)
    kept = [name for name in order if name in keep]
    mapped = records.with_classes(kept, known=order)
    for i in range(len(records)):
        old = [(item[0], item[1]) for item in _objects(records, i) if item[0] in keep]
        assert [(item[0], item[1]) for item in _objects(mapped, i)] == old


def test_unknown_class_names_everything() -> None:
    records = _records([0, 2], names=("cat", "persn"))
    m = int(np.argmax(records.labels == 2))
    with pytest.raises(UserError) as error:
        records.with_classes(["cat", "person"])
    assert f"/x/1.xml object {m} (persn): class persn is not among the 2 classes" in str(error.value)
    assert "did you mean person?" in str(error.value)
    # a class that is listed but never annotated is nobody's mistake
    assert records.subset([0]).with_classes(["x"]).class_names == ["x"]


def test_rename_may_merge_classes() -> None:
    records = _records([3, 3])
    merged = records.with_classes(["ab", "c"], rename={"a": "ab", "b": "ab"})
    assert merged.labels.tolist() == [1 if label < 3 else 2 for label in records.labels]
    assert merged.category_ids.tolist() == [1, 3]


def test_classes_that_a_file_lacks_have_ids_of_their_own() -> None:
    """One id for all, which a file may have too, made the scores of one class another's."""
    records = replace(_records([1], names=("a", "b")), category_ids=np.array([-1, 7]))
    names = ["x", "b", "y", "a"]
    assert records.with_classes(names).category_ids.tolist() == [-2, 7, -3, -1]
    texts = replace(records, category_ids=np.array(["n1", "-1"]))
    assert texts.with_classes(names).category_ids.tolist() == ["-2", "-1", "-3", "n1"]


def test_target_follows_the_contract() -> None:
    records = make_records(
        images=[("a", "a", (30, 40))],
        boxes=[(-3, 2, 50, 40), (5, 5, 6, 20), (39.5, 3, 60, 9), (1, 1, 3, 3)],
        labels=[1, 1, 1, 2],
        counts=[4],
        class_names=["x", "y"],
        source="s",
        annotation_file="{}",
    )
    target = records.target(0)
    # clipped; one pixel wide: left out; half a pixel left after clipping: left out
    assert target.boxes.tolist() == [[0, 2, 40, 30], [1, 1, 3, 3]]
    assert target.labels.tolist() == [1, 2]
    assert (target.boxes.dtype, target.labels.dtype, target.area.dtype) == (np.float32, np.int64, np.float32)
    assert records.target(0, (10, 20)).boxes.tolist() == [[0, 2, 20, 10], [1, 1, 3, 3]]  # the decoded image counts
    assert records.trainable().tolist() == [True, False, False, True]


def test_extent_is_robust_to_rounding() -> None:
    x = np.array([181.3, 0.1, 7.7])
    boxes = np.stack([x, x, x + 1.0, x + 9], axis=1)
    assert not has_extent(boxes).any()
    boxes[:, 2] += 0.01
    assert has_extent(boxes).all()


def test_annotations_need_neither_torch_nor_albumentations(root) -> None:
    names = "target records voc coco yolo class_lists images resize detection samplers generated download build"
    modules = ", ".join(f"datasets.{name}" for name in names.split())
    code = f"import sys, {modules}; print([n for n in ('torch', 'albumentations') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_arrays_hold_no_python_objects() -> None:
    records = _records([2, 0, 3])
    for name, value in vars(records).items():
        if isinstance(value, np.ndarray):
            assert value.dtype != object, name
    assert np.array_equal(pickle.loads(pickle.dumps(records)).boxes, records.boxes)


def _by_hand(form=None, **flags) -> Records:
    """Two images, 100 x 120 and 30 x 40 (H, W), with two objects and one."""
    return make_records(
        images=[("/x/a.jpg", "a", (100, 120)), ("/x/b.jpg", "b", (30, 40))], boxes=[(1, 2, 20, 30)] * 3,
        labels=[2, 1, 2], counts=[2, 1], class_names=["cat", "dog", "cow"], source="s", annotation_file="{}",
        form=form, **flags,
    )  # fmt: skip


def test_counts_classes_and_limits_by_hand() -> None:
    records = _by_hand()
    assert records.object_counts().tolist() == [1, 2, 0]
    assert records.image_of_object().tolist() == [0, 0, 1]
    assert records.classes_of_images().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert records.classes_of_images(np.array([True, False, True])).tolist() == [[0, 2], [1, 2]]
    assert records.limits().tolist() == [[120, 100, 120, 100]] * 2 + [[40, 30, 40, 30]]
    assert records.limits(np.array([1])).tolist() == [[40, 30, 40, 30]]
    assert list(replace(records, image_paths=["y", "z"]).image_paths) == ["y", "z"]


def test_what_trains() -> None:
    records = _by_hand(iscrowd=[True, False, False], difficult=[False, True, False])
    assert records.trainable().tolist() == [False, True, True]
    assert records.trainable(train_difficult=False).tolist() == [False, False, True]
    outside = replace(records, boxes=records.boxes + np.array([[0] * 4, [120, 0, 120, 0], [19, 0, 0, 0]]))
    assert outside.trainable().tolist() == [False] * 3


def test_join_keeps_the_form_that_all_have() -> None:
    renamed = {"image_ids": np.array(["c", "d"])}
    for one, other, expected in (("voc", "voc", "voc"), ("voc", "coco", None), (None, "coco", None)):
        assert join([_by_hand(one), replace(_by_hand(other), **renamed)]).form == expected
    assert join([_by_hand("voc"), _by_hand("voc")]).form is None  # the ids are new ones


def test_parts_hold_all_objects_in_order(monkeypatch) -> None:
    monkeypatch.setattr(module, "_IMAGES", 2)
    records = _records([2, 0, 3, 1, 4])
    found = [(objects.start, objects.stop, images.tolist()) for objects, images in records.parts()]
    assert found == [(0, 2, [0, 0]), (2, 6, [2, 2, 2, 3]), (6, 10, [4, 4, 4, 4])]
