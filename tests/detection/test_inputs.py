"""What people give as images: names, refusals, and what comes over the web."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from detection import inputs as module
from detection.inputs import Video, download, find_files, image_inputs, is_video, open_video
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


def test_a_folder_s_videos_are_passed_over_which_is_said(tmp_path: Path, caplog) -> None:
    for name in ("out", "clips"):
        (tmp_path / name).mkdir()
    for name in ("a.jpg", "out/b.jpg", "out/b.mp4"):
        (tmp_path / name).touch()
    assert [name for _, name in find_files([str(tmp_path)], ignore=tmp_path / "out")] == ["a.jpg"]
    assert caplog.messages == []
    (tmp_path / "clips/c.MOV").touch()
    assert [name for _, name in find_files([str(tmp_path)], ignore=tmp_path / "out")] == ["a.jpg"]
    (message,) = caplog.messages
    assert "1 video is passed over, among them c.MOV: name what is meant" in message
    assert len(find_files([str(tmp_path / "clips/c.MOV"), str(tmp_path / "a.jpg")])) == 2


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


def test_paths_folders_and_patterns(tmp_path: Path) -> None:
    """Each file once; files of one name by their whole paths."""
    for name in ("a/x.png", "a/y.png", "b/x.png", "b/text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b = tmp_path / "a", tmp_path / "b"
    assert find_files([str(a), str(a / "y.png")]) == [(str(a / "x.png"), "x.png"), (str(a / "y.png"), "y.png")]
    whole = [str(tmp_path.resolve() / folder / "x.png").lstrip("/") for folder in "ab"]
    assert [name for _, name in find_files([str(a), str(b)])] == [whole[0], "y.png", whole[1]]
    assert [name for _, name in find_files([f"{tmp_path}/*/y.*"])] == ["y.png"]
    with pytest.raises(UserError, match=r"missing\.png: there is no such image or folder"):
        find_files([str(tmp_path / "missing.png")])
    with pytest.raises(UserError, match="no images here"):
        find_files([f"{tmp_path}/*.gif"])


def test_links_that_lead_nowhere_are_among_a_folders_files(tmp_path: Path) -> None:
    """Else nobody would hear of them: who reads them says what is wrong."""
    for name, target in (("lost.png", "nowhere"), ("loop.png", "loop.png")):
        (tmp_path / name).symlink_to(target)
    assert [name for _, name in find_files([str(tmp_path)])] == ["loop.png", "lost.png"]


def test_pil_images_of_16_bits_and_with_transparency() -> None:
    deep = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    (one,) = image_inputs(deep)
    assert one.load()[0, :, 0].tolist() == [0, 0, 1, 255]
    (clear,) = image_inputs(Image.new("RGBA", (5, 4), (10, 20, 30, 0)))
    assert clear.load().tolist() == [[[10, 20, 30]] * 5] * 4


def test_frames_are_numbered(monkeypatch) -> None:
    frames = [make_image(0), make_image(1)]
    found = list(Video("film.mp4", "/films/film.mp4", frames).inputs())
    assert [(one.name, one.path, one.frame) for one in found] == [
        ("film.mp4#000000", "/films/film.mp4", 0), ("film.mp4#000001", "/films/film.mp4", 1),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[1].load(), frames[1])
    monkeypatch.setattr(module, "VideoReader", lambda source: [source])
    for name, expected in ((None, "camera2"), ("door", "door")):
        with open_video(2, name) as video:
            assert (video.name, video.path, video.reader) == (expected, None, [2])
    with open_video("/films/film.mp4") as video:
        assert (video.name, video.path, video.reader) == ("film.mp4", "/films/film.mp4", ["/films/film.mp4"])
