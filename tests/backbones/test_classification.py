"""The input, the loss, the rate's events, and whole checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones.augmentation import MixedLabels
from backbones.classification import (
    Plateau,
    WarmupUntilError,
    build_classifier,
    classification_loss,
    load_classifier,
    measure_mean,
    wrong_answers,
)
from configs.classification import ClassifierConfig
from configs.errors import UserError
from tests.serving import serving

# ------------------------------------------------------------------------------------------------ input


def test_the_mean_image_is_that_of_all_images_whatever_the_batches():
    images = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = measure_mean([images[:3], images[3:4], images[4:]])
    torch.testing.assert_close(mean, images.double().mean(0).float())
    with pytest.raises(ValueError, match="no image"):
        measure_mean([])


# ------------------------------------------------------------------------------------------------ loss


def test_label_smoothing_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log = logits.log_softmax(1)[0]
    expected = -(0.9 + 0.1 / 3) * log[1] - 0.1 / 3 * (log[0] + log[2])
    torch.testing.assert_close(classification_loss(logits, torch.tensor([1]), smoothing=0.1), expected)


def test_mixed_labels_are_soft_labels():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 3])
    mixed = MixedLabels(0.7, torch.tensor([3, 2, 0]))
    soft = 0.7 * F.one_hot(labels, 4).float() + 0.3 * F.one_hot(torch.tensor([3, 2, 0]), 4).float()
    expected = F.cross_entropy(logits, soft, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(logits, labels, smoothing=0.1, mixed=mixed), expected)


def test_the_loss_is_float32_whatever_the_logits():
    logits = torch.randn(3, 4).bfloat16()
    assert classification_loss(logits, torch.tensor([0, 1, 2])).dtype == torch.float32


def test_wrong_answers():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert wrong_answers(logits, torch.tensor([1, 1, 0])).item() == 2


# ------------------------------------------------------------------------------------------------ the rate's events


def test_the_warmup_of_110_layers():
    """0.01 until the training error is below 80 %, then 0.1 (He et al. 2016, Sec. 4.2)."""
    warmup = WarmupUntilError(0.8, 0.1)
    for iteration, error in ((50, 0.89), (100, 0.84), (150, 0.8), (200, 0.79), (250, 0.9)):
        warmup.update(error, iteration)
    assert warmup.event == 200
    rates = [0.1 * warmup.factor(iteration) for iteration in (0, 199, 200, 64000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1])
    # A pure function of the iteration and the event: what has been drawn on before does not matter.
    resumed = WarmupUntilError(0.8, 0.1, event=200)
    assert [resumed.factor(i) for i in range(0, 400, 7)] == [warmup.factor(i) for i in range(0, 400, 7)]
    assert not warmup.waiting
    assert WarmupUntilError(None, 0.1).factor(0) == 1.0


def test_the_plateau_rule_by_hand():
    plateau = Plateau(gamma=0.1, patience=2, threshold=0.01, steps=2)
    errors = [0.5, 0.4, 0.395, 0.396, 0.3, 0.3, 0.3, 0.29, 0.295, 0.299]
    for number, error in enumerate(errors, 1):
        plateau.update(error, 100 * number)
    # 0.395 and 0.396 are no new lowest errors (0.01 is asked for): a step after validation 4; 0.3 after 0.3: at 7.
    assert plateau.events == [400, 700]
    assert plateau.lowest == 0.3
    assert [plateau.factor(i) for i in (0, 399, 400, 699, 700, 10**6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert plateau.finished, "two validations without a lower error after the last step"


def test_a_plateau_that_is_put_back_goes_on_as_if_nothing_had_been():
    errors = [0.5, 0.4, 0.4, 0.4, 0.4, 0.35, 0.36, 0.36, 0.36, 0.36]
    whole, first, second = (Plateau(0.1, 2, 0.001, 3) for _ in range(3))
    for number, error in enumerate(errors):
        whole.update(error, number)
        (first if number < 4 else second).update(error, number)
        if number == 3:
            second.load_state_dict(first.state_dict())
    assert second == whole
    assert whole.events


# ------------------------------------------------------------------------------------------------ checkpoints


def checkpoint(net, **changes):
    return {
        "format": 1,
        "kind": "classifier",
        "config": {"model": {"backbone": "cifar_resnet20", "plain": False}, "data": {"crop_size": 32}},
        "class_names": ["cat", "dog", "fox"],
        "preprocessing": {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "channel_order": "rgb"},
        "model": net.state_dict(),
        **changes,
    }


def test_a_checkpoint_says_what_its_net_is(tmp_path):
    torch.manual_seed(0)
    config = ClassifierConfig(backbone="cifar_resnet20")
    net = build_classifier(config, 3).eval()
    mean_image = torch.rand(3, 32, 32)
    torch.save(checkpoint(net, mean_image=mean_image), tmp_path / "a.pt")
    loaded = load_classifier(tmp_path / "a.pt", ClassifierConfig(backbone="resnet18"))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.net(x), net(x))
    assert not loaded.net.training
    assert loaded.class_names == ["cat", "dog", "fox"]
    assert loaded.crop_size == 32
    assert torch.equal(loaded.normalize.mean_image, mean_image)


def test_a_checkpoint_by_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    net = build_classifier(ClassifierConfig(backbone="cifar_resnet20"), 3)
    torch.save(checkpoint(net), tmp_path / "a.pt")
    with serving(tmp_path) as server:
        loaded = load_classifier(f"{server.url}/a.pt", ClassifierConfig(backbone="resnet18"))
    assert loaded.class_names == ["cat", "dog", "fox"]


def test_a_bare_state_dict_takes_the_config_and_torchvisions_input(tmp_path):
    torch.manual_seed(0)
    net = build_classifier(ClassifierConfig(backbone="resnet18"), 3)
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    loaded = load_classifier(tmp_path / "bare.pth", ClassifierConfig(backbone="resnet18"))
    assert loaded.normalize.preprocessing.mean == (123.675, 116.28, 103.53)
    assert loaded.class_names == []


def test_what_does_not_fit_is_named(tmp_path):
    torch.manual_seed(0)
    net = build_classifier(ClassifierConfig(backbone="cifar_resnet20"), 3)
    content = checkpoint(net)
    del content["model"]["layer2.0.conv1.weight"]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: layer2\.0\.conv1\.weight of cifar_resnet20 is missing"):
        load_classifier(tmp_path / "a.pt", ClassifierConfig(backbone="cifar_resnet20"))
    headless = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
    torch.save(checkpoint(net, model=headless), tmp_path / "b.pt")
    with pytest.raises(UserError, match="has no classifier"):
        load_classifier(tmp_path / "b.pt", ClassifierConfig(backbone="cifar_resnet20"))
