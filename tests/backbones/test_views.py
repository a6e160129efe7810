"""10 crops and the dense test against arithmetic on small asymmetric tensors; the counting of errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.preprocess import Normalize
from backbones.views import ErrorCounter, count_errors, dense_logits, ten_crops, view_scores
from backbones.weights import Preprocessing
from backbones.zoo import build_backbone

PLAIN = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Pixel(nn.Module):
    """Logits: the top left pixel's red, green and blue."""

    def forward(self, x):
        return x[:, :, 0, 0]


class Identity(nn.Module):
    """A "net" whose only stage is the image at stride 2, with a linear classifier."""

    def __init__(self):
        super().__init__()
        self.stage_strides = {"conv1": 2}
        self.fc = nn.Linear(3, 2, bias=True)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]))
            self.fc.bias.copy_(torch.tensor([0.25, -0.5]))

    def forward_stages(self, x, names):
        return dict.fromkeys(names, x[:, :, ::2, ::2])


def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images():
    image = torch.arange(5 * 8).view(1, 1, 5, 8)
    crops = ten_crops(image, 3)
    assert crops.shape == (10, 1, 1, 3, 3)
    top_left = crops[:5, 0, 0, 0, 0].tolist()
    # H = 5, W = 8: rows 0 and 2, columns 0 and 5; centre at (1, 2): 2.5 is rounded to even.
    assert top_left == [0, 5, 2 * 8, 2 * 8 + 5, 1 * 8 + 2]
    assert crops[1, 0, 0].tolist() == [[5, 6, 7], [13, 14, 15], [21, 22, 23]]
    assert crops[6, 0, 0].tolist() == [[7, 6, 5], [15, 14, 13], [23, 22, 21]]
    with pytest.raises(ValueError, match="5x8"):
        ten_crops(image, 6)


def test_ten_crop_scores_are_the_mean_of_ten_softmaxes():
    torch.manual_seed(0)
    images = torch.randint(0, 6, (2, 3, 5, 8), dtype=torch.uint8)
    scores = view_scores(Pixel(), Normalize(PLAIN), [images], "10crop", 3)
    corners = [(y, x) for y in (0, 2) for x in (0, 5)] + [(1, 2)]
    mirrored = [(y, x + 2) for y, x in corners]
    for image, got in zip(images.float(), scores, strict=True):
        expected = torch.stack([image[:, y, x].softmax(0) for y, x in corners + mirrored]).mean(0)
        torch.testing.assert_close(got, expected)


def test_the_dense_test_is_the_mean_over_windows_by_hand():
    """Stride 2, crop 4: windows of 2x2 cells; of 3x5 cells there are 2x4."""
    net = Identity()
    x = torch.randn(1, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    cells = x[0, :, ::2, ::2]
    logits = [net.fc(cells[:, y : y + 2, x0 : x0 + 2].mean((1, 2))) for y in range(2) for x0 in range(4)]
    torch.testing.assert_close(dense_logits(net, x, 4)[0], torch.stack(logits).mean(0))
    # Cells at the border are in fewer windows: this is not the global average.
    assert (dense_logits(net, x, 4)[0] - net.fc(cells.mean((1, 2)))).abs().max() > 1e-3


def test_multiscale_averages_scales_and_mirror_images_after_the_softmax():
    net = Identity()
    rng = torch.Generator().manual_seed(1)
    scales = [torch.randint(0, 4, (2, 3, *size), dtype=torch.uint8, generator=rng) for size in ((4, 6), (6, 9))]
    scores = view_scores(net, Normalize(PLAIN), scales, "multiscale", 4)
    views = [image for scaled in scales for image in (scaled.float(), scaled.float().flip(3))]
    parts = [dense_logits(net, view, 4).softmax(1) for view in views]
    torch.testing.assert_close(scores, torch.stack(parts).mean(0))
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


class TinyVgg(nn.Module):
    """VGG's form with few parameters: a stage at stride 1, pooling, two fully connected layers on 2x2 cells."""

    def __init__(self):
        super().__init__()
        self.stage_strides = {"conv5": 1}
        self.features = nn.Sequential(nn.Identity(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(3 * 2 * 2, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4))

    def forward_stages(self, x, names):
        return dict.fromkeys(names, x)


@torch.no_grad()
def test_fully_connected_layers_slide_as_convolutions():
    """On 2x4 cells after pooling: three windows, each through all layers by itself."""
    torch.manual_seed(0)
    net = TinyVgg().eval()
    x = torch.randn(2, 3, 4, 8)
    cells = net.features[-1](x)
    windows = torch.stack([net.classifier(cells[..., start : start + 2].flatten(1)) for start in (0, 1, 2)])
    torch.testing.assert_close(dense_logits(net, x, 4), windows.mean(0))


@torch.no_grad()
@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("cifar_resnet20", 32)])
def test_at_the_training_size_the_dense_test_is_the_net_itself(name, side):
    torch.manual_seed(0)
    net = build_backbone(name, num_classes=5).eval()
    x = torch.randn(1, 3, side, side)
    torch.testing.assert_close(dense_logits(net, x, side), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_vgg_slides_its_fully_connected_layers():
    """On 7x8 cells after pool5: two windows, each through fc6, fc7 and fc8; on 7x7 the net itself."""
    torch.manual_seed(0)
    net = build_backbone("vgg16", num_classes=4).eval()
    x = torch.randn(1, 3, 224, 256)
    cells = net.features[-1](net.forward_stages(x, ["conv5"])["conv5"])
    assert cells.shape[2:] == (7, 8)
    windows = torch.stack([net.classifier(cells[..., start : start + 7].flatten(1)) for start in (0, 1)])
    torch.testing.assert_close(dense_logits(net, x, 224), windows.mean(0), rtol=1e-4, atol=1e-5)
    square = x[..., :224]
    torch.testing.assert_close(dense_logits(net, square, 224), net(square), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_map_smaller_than_the_window_is_one_window():
    torch.manual_seed(0)
    net = build_backbone("resnet18", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 128)
    torch.testing.assert_close(dense_logits(net, x, 224), net(x), rtol=1e-4, atol=1e-5)


def test_errors_counted_by_hand():
    scores = torch.tensor([
        [0.5, 0.2, 0.1, 0.1, 0.06, 0.03, 0.01],
        [0.5, 0.2, 0.1, 0.1, 0.06, 0.03, 0.01],
        [0.5, 0.2, 0.1, 0.1, 0.06, 0.03, 0.01],
        [0.01, 0.03, 0.06, 0.1, 0.11, 0.2, 0.49],
    ])  # fmt: skip
    counter = ErrorCounter("cpu")
    counter.add(scores[:3], torch.tensor([0, 4, 5]))
    counter.add(scores[3:], torch.tensor([6]))
    result = counter.result()
    assert result["images"] == 4
    assert result["top1_error"] == 2 / 4
    assert result["top5_error"] == 1 / 4
    expected = -torch.tensor([0.5, 0.06, 0.03, 0.49]).log().mean().item()
    assert result["loss"] == pytest.approx(expected, rel=1e-6)


def test_fewer_than_five_classes_have_no_top5_error():
    counter = ErrorCounter("cpu")
    counter.add(torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([0]))
    assert counter.result()["top1_error"] == 1.0
    assert counter.result()["top5_error"] == 0.0


def test_an_ensemble_averages_scores_not_votes():
    """Two nets: on the first image one is sure of class 0 and the other leans to 1; the mean says 0."""

    class Fixed(nn.Module):
        def __init__(self, probabilities):
            super().__init__()
            self.logits = torch.tensor(probabilities).log()

        def forward(self, x):
            return self.logits[x[:, 0, 0, 0].long()]

    nets = [Fixed([[0.9, 0.1], [0.2, 0.8]]), Fixed([[0.4, 0.6], [0.4, 0.6]])]
    images = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    labels = torch.tensor([0, 1])
    members = [(net, Normalize(PLAIN)) for net in nets]
    single = count_errors(members[1:], [([images], labels)], "center", 1, "cpu").result()
    both = count_errors(members, [([images], labels)], "center", 1, "cpu").result()
    assert single["top1_error"] == 0.5
    assert both["top1_error"] == 0.0
    expected = -(torch.tensor([0.65, 0.7]).log().mean().item())
    assert both["loss"] == pytest.approx(expected, rel=1e-6)
