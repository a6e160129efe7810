"""Image files of every kind become uint8 RGB; broken ones are named. Pillow writes and judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from datasets.images import image_file_size, read_image


@pytest.fixture
def picture() -> Image.Image:
    """32 high, 48 wide: red at the upper left, green at the upper right, blue below."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:] = (220, 20, 20), (20, 220, 20), (20, 20, 220)
    return Image.fromarray(pixels)


KINDS = [
    *((".png", mode) for mode in ("RGB", "L", "RGBA", "P", "LA", "1", "I;16")),
    *((".jpg", mode) for mode in ("RGB", "L", "CMYK")),
    *((".bmp", mode) for mode in ("RGB", "L", "P", "1")),
    *((".webp", mode) for mode in ("RGB", "RGBA")),
    *((".tif", mode) for mode in ("RGB", "L", "RGBA", "CMYK", "I;16")),
]


@pytest.mark.parametrize(("suffix", "mode"), KINDS)
def test_every_kind_becomes_rgb(tmp_path: Path, picture: Image.Image, suffix: str, mode: str) -> None:
    path = tmp_path / f"image{suffix}"
    grey = np.asarray(picture.convert("L"))
    source = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
    source.save(path, **options.get(suffix, {}))
    expected = np.stack([grey] * 3, axis=2) if mode == "I;16" else np.asarray(source.convert("RGB"))
    image = read_image(path)
    assert image.shape == (32, 48, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= (6 if suffix == ".jpg" else 1)


def _save_rotated(path: Path, picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_only_where_the_rotated_size_is_declared(
    tmp_path: Path, picture: Image.Image, orientation: int
) -> None:
    path = tmp_path / "image.jpg"
    _save_rotated(path, picture, orientation)
    turned = orientation >= 5
    shown = (48, 32) if turned else (32, 48)
    for declared, expected in [(None, shown), (shown, shown), ((32, 48), (32, 48)), ((99, 77), (32, 48))]:
        assert read_image(path, declared).shape[:2] == expected
        assert image_file_size(path, declared) == expected


def test_exif_rotation_turns_the_right_way(tmp_path: Path, picture: Image.Image) -> None:
    path = tmp_path / "image.jpg"
    _save_rotated(path, picture, 6)  # to be shown turned by 90 degrees clockwise
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(read_image(path, (48, 32)).astype(int) - expected).mean() < 3
    assert np.abs(read_image(path, (32, 48)).astype(int) - np.asarray(picture)).mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_image_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"broken{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match=f"broken{suffix}") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_truncation_shows_behind_an_embedded_thumbnail(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    small, path = tmp_path / "thumbnail.jpg", tmp_path / "image.jpg"
    Image.fromarray(noise[:10, :10]).save(small)
    Image.fromarray(noise).save(path, comment=small.read_bytes())  # holds a whole JPEG with an end marker
    whole = path.read_bytes()
    assert read_image(path).shape == (60, 80, 3)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=r"image\.jpg"):
        read_image(path)


def test_whole_jpeg_without_its_last_bytes_or_with_rubbish_behind_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    data = path.read_bytes()
    expected = read_image(path)
    for variant in (data + b"rubbish", data + b"\0" * 9):
        path.write_bytes(variant)
        assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0 short"])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"image\.jpg"):
        read_image(path)
    with pytest.raises(UserError, match=r"image\.jpg"):
        image_file_size(path)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"nowhere\.jpg"):
        image_file_size(tmp_path / "nowhere.jpg")
