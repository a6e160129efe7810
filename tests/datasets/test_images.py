"""Image files of every kind become uint8 RGB; broken ones are named. Pillow writes and judges."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs.errors import UserError
from datasets import complaints, images
from datasets.images import MAX_PIXELS, image_file_size, read_image


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
def test_exif_rotation_unless_the_stored_size_is_declared(
    tmp_path: Path, picture: Image.Image, orientation: int
) -> None:
    path = tmp_path / "image.jpg"
    _save_rotated(path, picture, orientation)
    turned = orientation >= 5
    shown = (48, 32) if turned else (32, 48)
    for declared, expected in [
        (None, shown), (shown, shown), ((32, 48), (32, 48)),
        ((99, 77), shown), ((77, 99), (32, 48)), ((77, 77), shown),  # of a copy: its longer side tells
    ]:  # fmt: skip
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


def test_a_png_whose_parts_end_beyond_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48)).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    path.write_bytes(data[:start] + (2**31 - 2).to_bytes(4, "big") + data[start + 4 :])
    for read in (read_image, image_file_size):
        with pytest.raises(UserError, match=r"a\.png: cannot be read as an image: a part of it ends beyond the file"):
            read(path)


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


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


def _with_orientation(path: Path, picture: Image.Image, orientation: int, place: str) -> None:
    """Save a picture with a note about its orientation, in EXIF, in XMP, or in EXIF as a long number."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(path.suffix, {})
    if place == "xmp":
        picture.save(path, xmp=XMP % orientation, **options)
    elif place == "long":
        entry = struct.pack("<HHII", 0x0112, 4, 1, orientation)  # type 4: LONG
        data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
        picture.save(path, exif=data, **options)
    else:
        picture.save(path, exif=exif, **options)


@pytest.mark.parametrize(
    ("suffix", "place"),
    [
        *((suffix, "exif") for suffix in (".jpg", ".png", ".webp", ".tif")),
        (".jpg", "xmp"),
        (".webp", "xmp"),
        (".jpg", "long"),
    ],
)
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_one_for_size_and_pixels(
    tmp_path: Path, picture: Image.Image, suffix: str, place: str, orientation: int
) -> None:
    path = tmp_path / f"image{suffix}"
    _with_orientation(path, picture, orientation, place)
    with Image.open(path) as opened:
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    stored = np.asarray(picture)
    for declared in (None, (32, 48), (48, 32), (99, 77), (77, 99)):
        is_stored = shown.shape != stored.shape and declared in ((32, 48), (77, 99))
        expected = stored if is_stored else shown
        image = read_image(path, declared)
        assert image.shape[:2] == image_file_size(path, declared) == expected.shape[:2]
        assert np.abs(image.astype(int) - expected).mean() < 4
    half = read_image(path, divisor=2)
    if suffix == ".jpg":
        shown = shown.reshape(shown.shape[0] // 2, 2, shown.shape[1] // 2, 2, 3).mean((1, 3))
    assert half.shape == shown.shape
    assert np.abs(half - shown).mean() < 4


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path, picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data, payload = buffer.getvalue(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(payload)) + b"eXIf" + payload + struct.pack(">I", zlib.crc32(b"eXIf" + payload))
    path = tmp_path / "image.png"
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert image_file_size(path) == read_image(path).shape[:2] == (48, 32)


def _png(width: int, height: int, text: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    note = chunk(b"zTXt", b"note\0\0" + zlib.compress(text)) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes((width + 1) * min(height, 100))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + note + pixels + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(_png(20_000, 20_000))
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("decoded"))
    for read in (read_image, image_file_size):
        with pytest.raises(UserError, match=r"huge\.png: is 20000 wide and 20000 high: more than 250 million pixels"):
            read(path)
    path.write_bytes(_png(0, 30))
    with pytest.raises(UserError, match=r"huge\.png: is 0 wide and 30 high: it has no pixels"):
        image_file_size(path)


def test_files_without_pixels_without_an_end_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(_png(0, 10))
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, image_file_size):
        with pytest.raises(UserError, match=r"none\.png: is 0 wide and 10 high: it has no pixels"):
            read(tmp_path / "none.png")
        with pytest.raises(UserError, match=r"pipe\.png: cannot read the image: it is no file \(a pipe, a socket or a"):
            read(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.write(_png(4, 3))
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"large\.png: has 1099511627776 bytes, more than 2147483648: is it an image\?"):
        read_image(tmp_path / "large.png")


def test_limits_of_pillow_do_not_end_what_opencv_reads(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(_png(15_000, 15_000))  # Pillow refuses from 179 million pixels
    assert image_file_size(path) == (15_000, 15_000)
    assert MAX_PIXELS > 15_000**2
    path.write_bytes(_png(40, 30, text=bytes(1 << 21)))  # Pillow refuses texts of more than a megabyte
    assert image_file_size(path) == read_image(path).shape[:2] == (30, 40)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a Git LFS pointer: run git lfs pull"),
        (b"", "it is empty"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    for read in (read_image, image_file_size):
        with pytest.raises(UserError, match=rf"image\.jpg: cannot be read as an image: {said}"):
            read(path)


def test_sixteen_bits_of_low_range_are_told_once(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(complaints, "_told", set())
    dark = np.linspace(0, 4095, 30 * 40).reshape(30, 40).astype(np.uint16)
    for name, pixels in (("bright.png", dark * 16), ("dark.png", dark), ("dark.tif", dark)):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (30, 40, 3)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "dark.png: has 16 bits for each channel, but no pixel above 4095" in message


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((30, 40), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float\.tif: its pixels are floating-point numbers"):
        read_image(tmp_path / "float.tif")
