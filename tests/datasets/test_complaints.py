"""What decoders say on the error stream is heard, and nothing else is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.complaints import heard
from datasets.images import read_image


def test_without_an_error_stream_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(path)
    with heard():  # what it opens would take the place of the closed stream
        pass
    kept = os.dup(2)
    os.close(2)
    try:
        assert read_image(path).shape == (3, 4, 3)
        with heard() as complaints:
            pass
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert complaints == []


def test_what_others_write_while_a_decoder_is_heard_stays_on_the_error_stream(capfd) -> None:
    with heard() as complaints:
        os.write(
            2, b"GET / 200\nCorrupt JPEG data: premature end of data segment\nlibpng warning: iCCP: known profile\n"
        )
        with heard() as inner:
            os.write(2, b"[ERROR:0@1.2] global grfmt.cpp:1 damaged\n")
    assert complaints == ["Corrupt JPEG data: premature end of data segment", "grfmt.cpp:1 damaged"]
    assert inner == []
    assert capfd.readouterr().err == "GET / 200\n"
