"""Fonts: DejaVu's own letters, the system's font for others, and one line where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detection import fonts
from detection.drawing import draw_detections


@pytest.fixture(autouse=True)
def fresh_caches():
    fonts.font_file.cache_clear()
    yield
    fonts.font_file.cache_clear()


def test_latin_greek_and_cyrillic_are_dejavus():
    file = fonts.font_file(frozenset("größe ключ Ωmega"))
    assert file is not None
    assert file.name == "DejaVuSans-Bold.ttf"


def test_other_letters_come_from_a_font_of_the_system(tmp_path, monkeypatch, caplog):
    usual = fonts.font_file(frozenset("a"))
    assert usual is not None
    shutil.copy(usual, tmp_path / "NotoSans.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    have = fonts._letters_of

    def letters(path: Path) -> frozenset[str]:
        return frozenset("\u7ea2\u84dd") if path.parent == tmp_path and path.name == "NotoSans.ttf" else have(path)

    monkeypatch.setattr(fonts, "_font_folders", lambda: [tmp_path])
    monkeypatch.setattr(fonts, "_letters_of", letters)
    assert fonts.font_file(frozenset("\u7ea2 \u84dd")) == tmp_path / "NotoSans.ttf"
    assert not caplog.records


def test_no_font_is_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_font_folders", lambda: [tmp_path])
    for _ in range(3):
        picture = draw_detections(
            np.full((60, 100, 3), 128, np.uint8), np.array([[20.0, 30, 60, 50]]), np.array([1]), None, ["\u7ea2\u84dd"]
        )
    assert picture.shape == (60, 100, 3)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "no font on this machine has the letters \u7ea2\u84dd of the classes' names, so pictures" in message
