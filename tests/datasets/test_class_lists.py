"""The class lists against published facts."""

from __future__ import annotations

from datasets.class_lists import CLASS_LISTS, COCO, IMAGENET_DET, IMAGENET_DET_WNIDS, VOC


def test_counts() -> None:
    assert [len(VOC), len(COCO), len(IMAGENET_DET)] == [20, 80, 200]
    for names in CLASS_LISTS.values():
        assert len(set(names)) == len(names)


def test_orders() -> None:
    assert sorted(VOC) == VOC
    assert VOC[0], VOC[14] == ("aeroplane", "person")
    # COCO's ids are sparse: id 90 is the 80th class, id 13 (stop sign) the 12th, for 12 is not used
    assert (COCO[0], COCO[11], COCO[79]) == ("person", "stop sign", "toothbrush")
    assert [name.lower() for name in IMAGENET_DET] == sorted(name.lower() for name in IMAGENET_DET)


def test_imagenet_det_wnids() -> None:
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in IMAGENET_DET_WNIDS)
    # WordNet: a bow is a weapon, a bow tie is worn; persons have no leading digits but zeros
    for wnid, name in [("n02879718", "bow"), ("n02883205", "bow tie"), ("n00007846", "person"), ("n02391049", "zebra")]:
        assert IMAGENET_DET_WNIDS[wnid] == name
