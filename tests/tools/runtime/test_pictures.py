"""Which images are drawn, and under which names."""

from __future__ import annotations

from pathlib import Path

from tools.runtime.pictures import picture_names


def test_no_two_images_share_a_picture():
    paths = [Path("x/a.bmp"), Path("x/a.bmp.png"), Path("y/a.jpg"), Path("y/A.png"), Path("overview.jpg")]
    assert picture_names(paths) == ["a.png", "a.bmp.png", "a-2.png", "A-3.png", "overview-2.png"]
