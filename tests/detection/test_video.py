"""Videos: what is written is read again, frame by frame."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from detection.video import VideoReader, VideoWriter
from tests.detection.made import make_image


@pytest.mark.parametrize("library", ["opencv", "av"])
def test_frames_come_back(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RGB in order, odd sides cut to even ones; the error is compression's."""
    if library == "av":
        pytest.importorskip("av")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find(name))
    frames = [np.full((49, 65, 3), color, np.uint8) for color in ((200, 40, 30), (30, 180, 60), (20, 40, 210))]
    path = tmp_path / "deep" / "clip.mp4"
    with VideoWriter(path, 12.5) as writer:
        for frame in frames:
            writer.write(frame)
    assert os.listdir(path.parent) == ["clip.mp4"]
    reader = VideoReader(path)
    assert reader.rate == pytest.approx(12.5)
    assert reader.length == 3
    again = list(reader)
    assert [frame.shape for frame in again] == [(48, 64, 3)] * 3
    for frame, expected in zip(again, frames, strict=True):
        assert np.abs(frame.astype(int) - expected[:48, :64]).mean() < 12


def test_an_error_leaves_the_older_video_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def stop_in_the_middle() -> None:
        with VideoWriter(path, 10) as writer:
            writer.write(make_image(0))
            raise KeyError

    with pytest.raises(KeyError):
        stop_in_the_middle()
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_no_frames_give_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 10):
        pass
    assert os.listdir(tmp_path) == []


def test_what_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such video"):
        VideoReader(tmp_path / "no.mp4")
