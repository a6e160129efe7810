"""Each code of image files with its fixture; what shows the same, exactly or nearly, within and across splits."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datasets.lint_images import lint_images, lint_near, lint_splits
from datasets.make_records import make_records
from datasets.records import Records


def image_set(folder: Path, files: dict[str, tuple[int, int]]) -> Records:
    images: list[tuple[str, str | int, tuple[int, int]]] = [
        (str(folder / name), name, size) for name, size in files.items()
    ]
    return make_records(
        images=images, boxes=[], labels=[], counts=[0] * len(images), class_names=[], source="set", annotation_file="{}"
    )


def test_image_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "good.png")
    picture.save(tmp_path / "again.bmp")  # the same pixels
    picture.rotate(1).save(tmp_path / "size.png")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rng.integers(0, 65535, (40, 60), np.uint16)).save(tmp_path / "deep.png")
    picture.rotate(2).save(tmp_path / "turned.jpg", exif=exif)
    picture.rotate(3).save(tmp_path / "many.tif", save_all=True, append_images=[picture])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 short")
    names = sorted(os.listdir(tmp_path))
    sizes = dict.fromkeys(names, (40, 60)) | {"size.png": (60, 40), "turned.jpg": (60, 40)}
    problems, marks = lint_images(image_set(tmp_path, sizes))
    found = {(problem.code, Path(problem.file).name) for problem in problems}
    assert found == {
        ("image-repeated", "good.png"), ("size-differs", "size.png"), ("image-grey", "grey.png"),
        ("image-cmyk", "cmyk.jpg"), ("image-palette", "palette.png"), ("image-deep", "deep.png"),
        ("image-turned", "turned.jpg"), ("image-animated", "many.tif"), ("image-unreadable", "broken.jpg"),
    }  # fmt: skip
    assert len(marks) == len(names) - 1
    assert "60 x 40, declared 40 x 60" in next(p.value for p in problems if p.code == "size-differs")


def test_the_same_image_in_two_splits_also_through_a_link(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for name, change in (("a.png", 0), ("b.png", 1)):
        Image.fromarray(picture ^ change).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    marks = {
        "train": lint_images(image_set(tmp_path, {"a.png": (40, 60)}))[1],
        "val": lint_images(image_set(tmp_path, {"b.png": (40, 60), "link.png": (40, 60)}))[1],
    }
    (problem,) = lint_splits(marks)
    assert problem.code == "image-in-two-splits"
    assert problem.file.endswith("link.png")
    assert problem.value.endswith("a.png of train")


def test_damage_inside_a_file_is_told_with_its_name(tmp_path: Path, capfd) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        cv2.imwrite(str(tmp_path / name), picture)
    data = bytearray((tmp_path / "b.jpg").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "b.jpg").write_bytes(data)
    problems, _ = lint_images(image_set(tmp_path, dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (64, 64))))
    (problem,) = [problem for problem in problems if problem.code == "image-damaged"]
    assert problem.file.endswith("b.jpg")
    assert "Corrupt JPEG data" in problem.value
    assert capfd.readouterr().err == ""


def test_what_pillow_alone_refuses_is_told(tmp_path: Path) -> None:
    """A text before the pixels with a wrong checksum, which OpenCV passes over."""
    text = PngInfo()
    text.add_text("note", "x")
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path, pnginfo=text)
    data = bytearray(path.read_bytes())
    data[data.index(b"tEXtnote") + len(b"tEXtnote\0x")] ^= 1
    path.write_bytes(data)
    problems, marks = lint_images(image_set(tmp_path, {"a.png": (40, 60)}))
    assert [problem.code for problem in problems] == ["image-damaged"]
    assert problems[0].line().count("Pillow: ") == 1
    assert len(marks) == 1


def test_what_pillow_refuses_and_opencv_reads_is_damaged(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    data, text = (tmp_path / "a.png").read_bytes(), b"zTXta\0\0" + zlib.compress(bytes(1 << 21))
    note = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "a.png").write_bytes(data[:33] + note + data[33:])  # behind the header
    problems, marks = lint_images(image_set(tmp_path, {"a.png": (40, 60)}))
    assert [problem.code for problem in problems] == ["image-damaged"]
    assert "Pillow: Decompressed data too large" in problems[0].line()
    assert len(marks) == 1


def test_nearly_the_same_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (240, 180), interpolation=cv2.INTER_CUBIC)
    other = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (240, 180), interpolation=cv2.INTER_CUBIC)
    brighter = np.clip(picture.astype(int) + 9, 0, 255).astype(np.uint8)
    files = {"a.png": picture, "b.jpg": cv2.resize(picture, (160, 120)), "c.png": other, "d.jpg": brighter}
    for name, pixels in files.items():
        cv2.imwrite(str(tmp_path / name), pixels)
    for name in ("e.png", "f.png"):  # nothing to see
        cv2.imwrite(str(tmp_path / name), np.full((50, 60, 3), 90 + (name == "f.png"), np.uint8))
    names = sorted(os.listdir(tmp_path))
    marks = lint_images(image_set(tmp_path, dict.fromkeys(names, (180, 240))))[1]
    found = lint_near(
        {
            "train": {p: m for p, m in marks.items() if "d." not in p},
            "val": {p: m for p, m in marks.items() if "d." in p},
        }
    )
    assert [(problem.code, Path(problem.file).name) for problem in found] == [
        ("image-near", "b.jpg"), ("image-near", "d.jpg"),
    ]  # fmt: skip
    assert "a.png" in found[0].value
    assert " of train" in found[1].value
