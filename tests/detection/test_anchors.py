from __future__ import annotations

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from configs.detection import AnchorConfig
from detection.anchors import AnchorGenerator, base_anchors

CPU = torch.device("cpu")


def test_areas_and_ratios():
    anchors = base_anchors([128, 256], [0.5, 1.0, 2.0])
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(width * height, torch.tensor([128.0**2, 256.0**2] * 3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 1.0, 1.0, 2.0, 2.0]))


def test_positions_by_hand():
    # One square anchor of 32 pixels on a map of 2 rows and 3 columns with stride 16.
    make = AnchorGenerator(AnchorConfig(sizes=[32], aspect_ratios=[1.0]), [16])
    anchors, _ = make([(2, 3)], CPU)
    centers = ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist()
    assert centers == [[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]]
    middle = AnchorGenerator(AnchorConfig(sizes=[32], aspect_ratios=[1.0], offset=0.5), [16])
    torch.testing.assert_close(middle([(2, 3)], CPU)[0], anchors + 8)


def test_equals_torchvisions():
    sizes = [[32], [64], [128], [256], [512]]
    maps = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    ours, _ = AnchorGenerator(AnchorConfig(sizes=sizes, rounded=True), [8, 16, 32, 64, 96])(maps, CPU)
    theirs = TorchvisionAnchors(tuple((s[0],) for s in sizes), ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, 192, 256), [(192, 256)])
    # torchvision derives the strides from the map sizes: those of the last map differ by axis there.
    features = [torch.zeros(1, 1, *size) for size in maps]
    expected = theirs(images, features)[0]
    count = sum(h * w * 3 for h, w in maps[:4])
    assert torch.equal(ours[:count], expected[:count])


def test_codes_do_not_depend_on_the_padding():
    make = AnchorGenerator(AnchorConfig(sizes=[32, 64], aspect_ratios=[1.0]), [16])
    small_anchors, small = make([(2, 3)], CPU)
    large_anchors, large = make([(4, 7)], CPU)
    assert len(set(large.tolist())) == len(large)
    by_code = dict(zip(large.tolist(), large_anchors.tolist(), strict=True))
    assert [by_code[code] for code in small.tolist()] == small_anchors.tolist()


def test_codes_by_hand():
    """Level, row, column and anchor, each in bits of its own."""
    make = AnchorGenerator(AnchorConfig(sizes=[[32], [64]], aspect_ratios=[0.5, 1.0]), [16, 32])
    codes = make([(2, 3), (1, 2)], CPU)[1]
    assert codes.dtype == torch.int64
    row, column, anchor = 1, 2, 1
    assert codes[(row * 3 + column) * 2 + anchor] == row * 2**18 + column * 2**6 + anchor
    assert codes[2 * 3 * 2 + 3] == 2**30 + 2**6 + 1, "level 1, row 0, column 1, anchor 1"


def test_remembers():
    make = AnchorGenerator(AnchorConfig(), [16])
    assert make([(2, 3)], CPU)[0] is make([(2, 3)], CPU)[0]
    for width in range(3, 3 + 2 * AnchorGenerator.MAX_REMEMBERED):
        make([(1, width)], CPU)
        make([(2, 3)], CPU)
    assert len(make._remembered) == AnchorGenerator.MAX_REMEMBERED
    grids = len(make._grids), make._grids[0, CPU][1].shape[:2]
    assert grids == (1, (2, 2 + 2 * AnchorGenerator.MAX_REMEMBERED))
    last_used = next(reversed(make._remembered))
    assert last_used == (((2, 3),), CPU)


def test_a_cut_of_a_larger_grid_equals_what_is_made_for_the_size():
    config = AnchorConfig(sizes=[[32, 48], [64, 96]], offset=0.5)
    sizes = [[(3, 4), (2, 2)], [(7, 2), (4, 1)], [(2, 9), (1, 5)], [(3, 4), (2, 2)]]
    make = AnchorGenerator(config, [8, 16])
    for size in sizes:
        fresh = AnchorGenerator(config, [8, 16])(size, CPU)
        for ours, expected in zip(make(size, CPU), fresh, strict=True):
            assert torch.equal(ours, expected)


def test_what_was_made_in_inference_mode_can_train_later():
    make = AnchorGenerator(AnchorConfig(), [16])
    with torch.inference_mode():
        anchors, _ = make([(2, 3)], CPU)
    assert not anchors.is_inference()


def test_fitted_strides_are_torchvisions():
    """An image of 96 x 160 pixels: P5 is 3 x 5, P6 2 x 3, so P6's anchors are 48 and 53 pixels apart."""
    maps = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    sizes = [[32], [64], [128], [256], [512]]
    config = AnchorConfig(sizes=sizes, rounded=True, fitted_strides=True)
    ours, _ = AnchorGenerator(config, [4, 8, 16, 32, 64])(maps, CPU)
    theirs = TorchvisionAnchors(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    assert torch.equal(ours, theirs(images, [torch.zeros(1, 1, *size) for size in maps])[0])
    assert ours[-3, 0] - ours[-6, 0] == 53


def test_tensors_without_values_are_not_remembered():
    from torch._subclasses.fake_tensor import FakeTensorMode

    generator = AnchorGenerator(AnchorConfig(sizes=[16, 32]), [16])
    with FakeTensorMode(allow_non_fake_inputs=True):
        generator([(3, 5)], torch.device("cpu"))
    anchors, codes = generator([(3, 5)], torch.device("cpu"))
    assert type(anchors) is torch.Tensor
    assert type(codes) is torch.Tensor
    expected = AnchorGenerator(AnchorConfig(sizes=[16, 32]), [16])([(3, 5)], torch.device("cpu"))
    assert torch.equal(anchors, expected[0])
    assert generator([(3, 5)], torch.device("cpu"))[0] is anchors  # remembered now


def test_each_device_has_anchors_of_its_own():
    make, meta = AnchorGenerator(AnchorConfig(sizes=[16, 32]), [16]), torch.device("meta")
    for width in (5, 6):
        anchors, codes = make([(3, width)], meta)
        assert anchors.device == codes.device == meta
        assert anchors.shape == (3 * width * 6, 4)
    assert make([(3, 5)], CPU)[0].device == CPU
    assert list(make._base_on) == [meta]


def test_a_trace_leaves_nothing_behind(monkeypatch):
    """Its sizes may be symbols."""
    make = AnchorGenerator(AnchorConfig(sizes=[16, 32]), [16])
    expected = AnchorGenerator(AnchorConfig(sizes=[16, 32]), [16])([(3, 5)], CPU)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(a, b) for a, b in zip(make([(3, 5)], CPU), expected, strict=True))
    assert make._grids == make._remembered == {}
