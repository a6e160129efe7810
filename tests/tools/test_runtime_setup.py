"""The rehearsal with the largest batch, and updates that wait for nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.loading import load_config
from datasets.build import build_dataset
from datasets.loader import train_loader
from detection.model import build_detector
from tools.runtime.ema import Ema
from tools.runtime.optimizer import build_optimizer, set_rate, step_unless
from tools.runtime.setup import rehearse
from tools.runtime.training import LossMonitor
from tools.train_det import backward


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


class _Waits(TorchDispatchMode):
    """Collects the operators whose result the host would have to wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique", "_unique2", "masked_select"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_an_update_waits_for_nothing(tiny_config, tmp_path, optimizer_name):
    """Forward, backward, the check for finite losses, clipping, optimiser, moving average: all on the device."""
    settings = [f"optim.name={optimizer_name}", "optim.clip_norm=1.0", "train.accumulate=2", "train.amp=bf16"]
    config = load_config(tiny_config, settings)
    dataset = build_dataset(config.data, "train", tmp_path)
    batches = iter(train_loader(dataset, config.data, batch_size=2, accumulate=2))
    detector = build_detector(config.model, dataset.class_names).train()
    optimizer = build_optimizer(detector, config.optim)
    ema = Ema(detector, 0.9)
    monitor = LossMonitor(torch.device("cpu"))
    for iteration in range(2):
        step_batches = iter([next(batches), next(batches)])
        with _Waits() as waits:
            set_rate(optimizer, 0.01)
            backward(detector, optimizer, step_batches, monitor, config, torch.device("cpu"), iteration)
            step_unless(optimizer, monitor.finish_step(iteration, detector.parameters(), config.optim.clip_norm))
            ema.update(iteration)
        assert waits.found == []
    with _Waits() as waits:
        monitor.read(str, lambda iteration: 0.01)
    assert waits.found  # the test can fail
