"""What people give as images: names, refusals, and what comes over the web."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from detection.inputs import download, find_files, image_inputs, is_video, open_video
from tests.detection.made import make_image
from tests.serving import serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as running:
        yield running.url, folder


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"image 0: an array \(4, 5, 3\) of float32: give \(H, W, 3\) uint8 RGB"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"image 0: an array \(2, 4, 5, 3\) of uint8: .*give a list of them"),
        (np.zeros((0, 5, 3), np.uint8), r"image 0: an array \(0, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"image 0: a tensor \(3, 4, 5\) of torch\.float32: give \(3, H, W\) uint8 RGB"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"image 0: a tensor \(4, 5, 3\)"),
        ([None], "image 0: NoneType is not an image"),
    ],
)
def test_what_is_not_an_image_is_refused(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_inputs(value)


def test_arrays_are_rgb_and_grey_ones_are_spread() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    (one,) = image_inputs(grey)
    np.testing.assert_array_equal(one.load(), np.dstack([grey] * 3))
    assert one.size() == (4, 5)
    (tensor,) = image_inputs(torch.from_numpy(make_image(0)).permute(2, 0, 1))
    np.testing.assert_array_equal(tensor.load(), make_image(0))


def test_hidden_files_in_a_folder_are_not_its_images(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden"  # named by the user: its own name does not count
    for name in (
        "a.jpg",
        "._a.jpg",
        ".ipynb_checkpoints/a.jpg",
        "__MACOSX/._a.jpg",
        "__MACOSX/b.jpg",
        "@eaDir/a.jpg/small.jpg",
        "deep/c.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [name for _, name in find_files([str(folder)])] == ["a.jpg", "deep/c.jpg"]
    assert [name for _, name in find_files([str(folder / "._a.jpg")])] == ["._a.jpg"]


def test_videos_are_told_by_their_suffix() -> None:
    assert is_video("a/b.MP4")
    assert is_video("https://x/y.mov?token=1")
    assert not is_video("a.jpg")


def test_an_image_from_the_web(server: tuple[str, Path]) -> None:
    address, folder = server
    Image.fromarray(make_image(1)).save(folder / "a.png")
    (folder / "page.jpg").write_text("<html>not found</html>")
    (one,) = image_inputs(f"{address}/a.png?size=large")
    np.testing.assert_array_equal(one.load(), make_image(1))
    assert one.name == "a.png"
    with pytest.raises(UserError, match=rf"{address}/absent\.png: cannot be fetched: the server answers 404"):
        image_inputs(f"{address}/absent.png")[0].load()
    with pytest.raises(UserError, match=rf"{address}/page\.jpg: cannot be"):
        image_inputs(f"{address}/page.jpg")[0].load()
    with pytest.raises(UserError, match="cannot be fetched"):
        image_inputs("http://127.0.0.1:1/a.png")[0].load()


def test_downloads_are_bounded(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    (folder / "large").write_bytes(bytes(3 * 2**20))
    download(f"{address}/large", tmp_path / "all")
    assert (tmp_path / "all").stat().st_size == 3 * 2**20
    with pytest.raises(UserError, match=r"/large: cannot be fetched: the server sends more than 2,097,152 bytes"):
        download(f"{address}/large", tmp_path / "part", limit=2**21)


def test_videos_and_cameras_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for source, message in (
        (str(tmp_path / "no.mp4"), r"no\.mp4: there is no such video"),
        (str(tmp_path / "text.mp4"), r"text\.mp4: cannot be read as a video"),
        (97, "97: there is no such camera"),
    ):
        with pytest.raises(UserError, match=message), open_video(source):
            pass
