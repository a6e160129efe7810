"""The rehearsal with the largest batch."""

from __future__ import annotations

import torch

from configs.loading import load_config
from datasets.build import build_dataset
from detection.model import build_detector
from tools.runtime.setup import rehearse


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
