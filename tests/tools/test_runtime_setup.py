"""The rehearsal with the largest batch, and compiled regions."""

from __future__ import annotations

import pytest
import torch

from configs.loading import load_config
from datasets.build import build_dataset
from datasets.loader import train_loader
from detection.model import build_detector
from tools.runtime.setup import compile_regions, rehearse


def test_rehearsal_takes_the_largest_batch_and_leaves_nothing(tiny_config, tmp_path, monkeypatch):
    """Images of 48x64 and 64x48 may come together: 64x64. 4 images in 2 parts: 2 at a time."""
    config = load_config(tiny_config, ["train.batch_size=4", "train.accumulate=2"])
    dataset = build_dataset(config.data, "train", tmp_path)
    detector = build_detector(config.model, dataset.class_names).train()
    seen = []
    real = detector.forward
    monkeypatch.setattr(detector, "forward", lambda batch, **options: seen.append(batch) or real(batch, **options))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    rehearse(detector, dataset, config, torch.device("cpu"))
    assert [tuple(batch.images.shape) for batch in seen] == [(2, 3, 64, 64)]
    assert seen[0].boxes.shape == (2, 8, 4)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.slow
def test_compiled_regions_compute_the_same(tiny_config, tmp_path):
    config = load_config(tiny_config)
    dataset = build_dataset(config.data, "train", tmp_path)
    batch = next(iter(train_loader(dataset, config.data, batch_size=2)))
    torch.manual_seed(0)
    detector = build_detector(config.model, dataset.class_names).train()
    names = list(detector.state_dict())
    results = []
    for compiled in (False, True):
        if compiled:
            compile_regions(detector)
        detector.zero_grad()
        losses = detector(batch, seed=0, iteration=0)
        sum(losses.values()).backward()
        results.append((losses, [parameter.grad.norm() for parameter in detector.parameters()]))
    assert list(detector.state_dict()) == names
    for name, value in results[0][0].items():
        assert value.item() == pytest.approx(results[1][0][name].item(), rel=1e-3, abs=1e-4)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(a, b, rtol=2e-2, atol=1e-3)
