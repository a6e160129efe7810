"""data.on_error: what takes an unreadable image's place, whoever reads; workers that start again at the same batch."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from configs.detection import AugmentConfig, DataConfig
from configs.errors import UserError
from datasets import complaints, failures
from datasets.detection import DetectionDataset
from datasets.detection_loader import train_loader
from datasets.failures import HandedKeys, Tally, WorkerLost, moved
from datasets.loader import make_loader
from datasets.names import Names
from datasets.target import SampleKey


@dataclass(frozen=True)
class _Images:
    """Image i of 10, some of which cannot be read; the number of tries is the size of a file."""

    bad: frozenset[int] = frozenset()
    tries: Path | None = None

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        if self.tries is not None:
            with self.tries.open("a") as file:
                file.write(".")
        if key[1] in self.bad and (self.tries is None or self.tries.stat().st_size < 3):
            raise UserError(f"{key[1]}.png: cannot be read")
        return key


@dataclass(frozen=True)
class _Mortal:
    """Ends its process at an image, as the system does where memory runs out, so often."""

    folder: Path
    times: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        deaths = len(list(self.folder.iterdir()))
        if key[1] == 5 and deaths < self.times:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return key


KEYS = [[(epoch, index), (epoch, index + 1)] for epoch in range(2) for index in range(0, 10, 2)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_next_readable_image_takes_the_place(workers: int, caplog) -> None:
    bad = frozenset({3, 8, 9})
    loader = make_loader(_Images(bad), KEYS, tuple, num_workers=workers, on_error="skip", images=10)
    found = list(loader)
    place = {3: 4, 8: 0, 9: 0}
    assert found == [tuple((epoch, place.get(index, index)) for epoch, index in batch) for batch in KEYS]
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "3.png: cannot be read: another image takes its place (data.on_error=skip); 1 so far"
    assert [line.rpartition("; ")[2] for line in said] == ["1 so far", "2 so far", "4 so far", "6 so far"]


@pytest.mark.parametrize(("on_error", "images"), [("stop", 10), ("skip", None), ("skip", 2)])
def test_otherwise_it_ends_the_run(on_error, images) -> None:
    dataset = _Images(frozenset(range(10)))
    with pytest.raises(UserError, match=r"^0\.png: cannot be read") as error:
        list(make_loader(dataset, KEYS, tuple, num_workers=0, on_error=on_error, images=images))
    assert ("nor can any of the 1 image after it be read" in str(error.value)) == (images == 2)
    assert ("data.on_error=skip passes over" in str(error.value)) == (images == 10)


@pytest.mark.parametrize(("on_error", "tries"), [("stop", 1), ("retry", 3)])
def test_an_image_is_read_again(tmp_path: Path, monkeypatch, on_error, tries: int) -> None:
    monkeypatch.setattr(failures, "PAUSES", (0.0, 0.0, 0.0))
    dataset = _Images(frozenset({0}), tmp_path / "tries")
    loader = make_loader(dataset, [[(0, 0)]], tuple, num_workers=0, on_error=on_error, images=10)
    if on_error == "retry":
        assert list(loader) == [((0, 0),)]
    else:
        with pytest.raises(UserError):
            list(loader)
    assert (tmp_path / "tries").stat().st_size == tries


@pytest.mark.parametrize("on_error", ["skip", "retry"])
def test_workers_start_again_at_the_same_batch(tmp_path: Path, monkeypatch, caplog, capfd, on_error) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))  # torch's own: 5 s
    handler = signal.getsignal(signal.SIGCHLD)
    loader = make_loader(_Mortal(tmp_path, 2), KEYS, tuple, num_workers=2, on_error=on_error, images=10)
    assert list(loader) == [tuple(batch) for batch in KEYS]
    assert "Killed" in caplog.text
    assert caplog.text.count("they start again at the same batch") == 2
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGCHLD) == handler, "torch would raise an error anywhere, within an update too"


def test_workers_that_end_each_time_end_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    loader = make_loader(_Mortal(tmp_path, 99), KEYS, tuple, num_workers=1, on_error="retry", images=10)
    found = []
    with pytest.raises(WorkerLost, match="Killed"):
        found.extend(loader)
    before = 2  # batches before it, which count anew where the process ends before they have come
    assert 1 + failures.RESTARTS <= len(list(tmp_path.iterdir())) <= 1 + failures.RESTARTS + before


def test_keys_whose_batches_have_not_come_are_handed_out_again() -> None:
    keys = HandedKeys([[number] for number in range(6)])
    first = iter(keys)
    assert list(itertools.islice(first, 4)) == [[0], [1], [2], [3]]
    keys.arrived()
    keys.arrived()
    assert list(keys) == [[2], [3], [4], [5]]
    keys.begin()
    assert next(iter(keys)) == [0]


def test_keys_of_every_stage_move() -> None:
    assert moved((3, 8), 4, 10) == (3, 2)
    key = moved(SampleKey(3, 8, (64, 32), 1), 4, 10)
    assert key == SampleKey(3, 2, (64, 32), 1)
    assert isinstance(key, SampleKey)


def test_nothing_is_told_twice(caplog) -> None:
    tally = Tally()
    tally.add(["a"])
    tally.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_detections_batches_with_a_vanished_image(random_records, workers: int) -> None:
    """Equal whoever reads and wherever it begins; the replacement fits into the batch's padded size."""
    records = random_records([(40, 60), (60, 40), (90, 30), (50, 50), (30, 90), (45, 60)])
    Path(records.image_paths[2]).unlink()
    data = DataConfig(train=[], num_workers=workers, on_error="skip", size_divisor=8)
    dataset = DetectionDataset(records, min_sizes=[32, 40], max_size=64, augment=AugmentConfig(), seed=1)

    def batches(start: int, count: int) -> list:
        return list(itertools.islice(train_loader(dataset, data, batch_size=2, seed=3, start_iteration=start), count))

    expected = batches(0, 6)
    assert not any((batch.index == 2).any() for batch in expected)
    for one, other in zip(expected[4:], batches(4, 2), strict=True):
        for name in ("images", "boxes", "labels", "index"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert sum(int((batch.index == 3).sum()) for batch in expected) == 4  # its own showings and those of image 2
    assert sum(batch.to("cpu").replaced for batch in expected) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_damaged_inside_is_named_once(random_records, workers: int, caplog, monkeypatch) -> None:
    """libjpeg says so on the error stream, without a name; here in three epochs, by whatever process reads it."""
    monkeypatch.setattr(complaints, "_told", set())
    records = random_records([(40, 60), (60, 40), (48, 64), (50, 50)])
    damaged = Path(records.image_paths[2]).with_suffix(".jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(damaged, quality=95)
    content = damaged.read_bytes()
    middle = content.index(b"\xff\xda") + 400
    damaged.write_bytes(content[:middle] + b"\xff\xd7" + content[middle + 300 :])
    records = replace(records, image_paths=Names.of([*records.image_paths[:2], str(damaged), records.image_paths[3]]))
    data = DataConfig(train=[], num_workers=workers, size_divisor=8)
    dataset = DetectionDataset(records, min_sizes=[32], max_size=64, augment=AugmentConfig(), seed=1)
    assert len(list(itertools.islice(train_loader(dataset, data, batch_size=2, seed=3), 6))) == 6
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{damaged}: is damaged inside, some pixels may be wrong (Corrupt JPEG data")
