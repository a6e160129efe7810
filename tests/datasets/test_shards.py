"""Shards: the same images, labels and batches as from the folders they were written from; what is broken is told."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs import downloads
from configs.classification import ImageDataConfig, ImageSourceConfig
from configs.errors import UserError
from datasets import shards
from datasets.classification import build_splits, centre_batches, read_set, train_batches
from datasets.folders import read_folders
from datasets.images import image_file_size, read_image
from datasets.shard_files import expand, index_name, scan, write_shards
from datasets.shards import read_shards
from tests.serving import Server, serving

COUNT = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of two classes; the red value is the image's number."""
    for number in range(COUNT):
        path = tmp_path / "images" / ("cat" if number < 6 else "dog") / f"{number}.{'png' if number % 2 else 'jpeg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 30 + number, 3), 10 * number, np.uint8))
    return tmp_path / "images"


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> str:
    """The pattern of four shards of them."""
    images = read_folders(folder)
    paths = list(write_shards(images, tmp_path / "out", "train", per_shard=3, order=np.arange(len(images))))
    assert [path.name for path in paths] == [*(f"train-{i:06}.tar" for i in range(4)), "train.index.json"]
    return str(tmp_path / "out" / "train-{000000..000003}.tar")


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def picture(value: int = 0) -> bytes:
    return cv2.imencode(".jpg", np.full((8, 9, 3), value, np.uint8))[1].tobytes()


def test_patterns() -> None:
    assert expand("a/t-{08..11}.tar") == ["a/t-08.tar", "a/t-09.tar", "a/t-10.tar", "a/t-11.tar"]
    assert expand("{0..1}/{0..1}.tar") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]
    assert expand("one.tar") == ["one.tar"]
    digits = "9" * 5000  # more than Python's int takes
    assert expand(f"{{0..{digits}}}.tar") == [f"{{0..{digits}}}.tar"]
    for pattern in ("{3..1}.tar", "{0..99999999}.tar"):
        with pytest.raises(UserError, match="counts from"):
            expand(pattern)
    assert [index_name(name) for name in ("train-0001.tar", "val.tar", "x_7.tar")] == [
        "train.index.json", "val.index.json", "x.index.json"
    ]  # fmt: skip


def test_the_same_images_as_in_the_folders(folder: Path, written: str) -> None:
    files, images = read_folders(folder), read_shards(written)
    assert (len(images), images.class_names) == (COUNT, ["cat", "dog"])
    assert images.labels.tolist() == files.labels.tolist()
    for i in range(COUNT):
        assert images.path(i).read_bytes() == files.path(i).read_bytes()
        np.testing.assert_array_equal(read_image(images.path(i)), read_image(files.path(i)))
        assert image_file_size(images.path(i)) == (20, image_file_size(files.path(i))[1])
    part = images.take(np.array([7, 2]))
    assert [part.path(i).read_bytes() for i in range(2)] == [files.path(i).read_bytes() for i in (7, 2)]


@pytest.mark.parametrize("reduced", [False, True])
def test_training_is_that_from_the_folders(folder: Path, written: str, reduced: bool) -> None:
    """On any number of processes and workers, and from any iteration: each image once an epoch."""
    common = {"crop_size": 16, "test_resize": 18, "num_workers": 0, "augment": {"crop": "random_resized"}}
    common["reduced_decode"] = reduced

    def batches(source: dict, count: int = 5, workers: int = 0, **options) -> list:
        data = ImageDataConfig.model_validate({**common, "train": source, "num_workers": workers})
        iterator = iter(train_batches(build_splits(data, folder.parent).train, data, batch_size=4, seed=3, **options))
        return [next(iterator) for _ in range(count)]

    ours = {"format": "webdataset", "root": written}
    expected = batches({"format": "folders", "root": "images"})
    same = [
        batches(ours),
        batches(ours, workers=1),
        [*batches(ours, 2), *batches(ours, 3, start_iteration=2)],
    ]
    for found in same:
        assert all(torch.equal(a.images, b.images) for a, b in zip(expected, found, strict=True))
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(expected, found, strict=True))
    halves = [batches(ours, rank=rank, world_size=2) for rank in (0, 1)]
    for a, b, whole in zip(*halves, expected, strict=True):
        assert torch.equal(torch.cat([a.images, b.images]), whole.images)
    seen = torch.cat([batch.index for batch in expected])  # 20 images are two epochs
    assert sorted(seen[:COUNT].tolist()) == sorted(seen[COUNT:].tolist()) == list(range(COUNT))
    data = ImageDataConfig.model_validate({**common, "train": ours, "val": ours})
    val = build_splits(data, folder).val
    assert sorted(torch.cat([b.index for b in centre_batches(val, data, batch_size=3)]).tolist()) == list(range(COUNT))


def test_without_an_index_it_is_the_same(written: str, tmp_path: Path) -> None:
    with_index = read_shards(written)
    (tmp_path / "out" / "train.index.json").unlink()
    images = read_shards(written)
    assert images.class_names == ["0", "1"]  # their names were in the index only
    for name in ("labels", "shard", "offsets", "sizes", "names"):
        np.testing.assert_array_equal(getattr(images, name), getattr(with_index, name))
    assert read_shards(written, ["a", "b", "c"]).class_names == ["a", "b", "c"]
    with pytest.raises(UserError, match="a label is 1, which needs more than 1 class"):
        read_shards(written, ["a"])


def test_classes_by_name(written: str, tmp_path: Path) -> None:
    """A test set takes the training set's order of the classes."""
    assert read_shards(written, ["dog", "fox", "cat"]).labels.tolist() == [2] * 6 + [0] * 4
    with pytest.raises(UserError, match="dog is none of the 1 class"):
        read_shards(written, ["cat"])
    path = tar(tmp_path / "n.tar", ("a.jpg", picture()), ("a.cls", b"dog\n"), ("b.cls", b"cat"), ("b.jpg", picture()))
    images = read_shards(str(path))
    assert (images.class_names, images.labels.tolist()) == (["cat", "dog"], [1, 0])


def test_foreign_shards(tmp_path: Path) -> None:
    """Long names, folders, other members and upper case, as other programs write them."""
    long = f"n01/{'x' * 150}"
    path = tar(
        tmp_path / "f.tar",
        (f"{long}.JPEG", picture(9)), (f"{long}.json", b"{}"), (f"{long}.cls", b"3"), ("._m.jpg", b"?"),
        ("../../out/b.png", picture(8)), ("../../out/b.cls", b"0"),
    )  # fmt: skip
    images = read_shards(str(path))
    assert images.labels.tolist() == [3, 0]
    assert images.path(0).read_bytes() == picture(9)
    assert str(images.path(1)) == f"{path}:../../out/b.png"  # a name, and never a path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"1"), ("a.cls", b"1")], "not next to each other"),
        ([("a.jpg", b"1"), ("a.png", b"1"), ("a.cls", b"1")], "a second image"),
        ([("a.jpg", b"1")], "a has no label"),
        ([("a.cls", b"1"), ("a.txt", b"1")], "a has no image"),
        ([("a.jpg", b"1"), ("a.cls", b"  ")], "is empty"),
        ([("a.jpg", b"1"), ("a.cls", b"1" * 2000)], "has 2000 bytes"),
        ([("a.jpg", b"1"), ("a.cls", b"1"), ("b.jpg", b"1"), ("b.cls", b"cat")], "some labels are numbers"),
        ([], "holds no image"),
    ],
)
def test_broken_samples_are_told(tmp_path: Path, members: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_shards(str(tar(tmp_path / "a.tar", *members)))


def test_links_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match="holds no image"):
        read_shards(str(tmp_path / "l.tar"))


def test_damaged_shards_are_told(written: str, tmp_path: Path) -> None:
    path = Path(expand(written)[1])
    data = path.read_bytes()
    images = read_shards(written)
    for cut in (len(data) - 20 * 512, 1500, 700, 512, 100, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"000001\.tar: (is no whole tar file|is damaged or cut off|0000)"):
            scan(path)
        with pytest.raises(UserError, match="its index says"):
            read_shards(written)
        with pytest.raises(UserError, match="is not where the index says"):
            images.path(4).read_bytes()
    second = int(images.offsets[4])
    path.write_bytes(data[: second - 400] + b"\xff" * 300 + data[second - 100 :])  # its header
    with pytest.raises(UserError, match="is damaged or cut off"):
        scan(path)
    with pytest.raises(UserError, match="is not where the index says"):
        images.path(4).read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="there is no such shard"):
        read_shards(written)
    with pytest.raises(UserError, match="there is no such shard"):
        images.path(4).read_bytes()


def test_zeros_in_the_middle_are_no_end(written: str, tmp_path: Path) -> None:
    """As a bad disk leaves them in place of a header, or the end of the first of two joined tar files."""
    data, path = Path(expand(written)[1]).read_bytes(), tmp_path / "x.tar"
    with tarfile.open(expand(written)[1]) as archive:
        second = archive.getmembers()[2].offset
    for damaged in (data[:second] + bytes(512) + data[second + 512 :], data + data):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="but more follows: it is damaged there, or two tar files were joined"):
            read_shards(str(path), None)
    path.write_bytes(data + bytes(1 << 20))  # of a tape with larger records
    assert len(read_shards(str(path), None)) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [-1, 0, 0]}, {"offsets": [1e3] * 3}, {"sizes": None}, {"labels": [0, True, 0]}, {"names": ["a"]},
        {"sizes": [1 << 40] * 3}, {"bytes": "9"}, {"labels": [-1, 0, 0]},
    ],
)  # fmt: skip
def test_a_broken_index_is_told(written: str, tmp_path: Path, change: dict) -> None:
    index = tmp_path / "out" / "train.index.json"
    content = json.loads(index.read_text())
    content["shards"][0] |= change
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"what it says of train-000000\.tar cannot be"):
        read_shards(written)
    content["shards"] = content["shards"][1:]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not list train-000000\.tar"):
        read_shards(written)


def test_nothing_is_overwritten(folder: Path, written: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already"):
        list(write_shards(read_folders(folder), tmp_path / "out", "train", per_shard=9, order=np.arange(COUNT)))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of tmp_path/out, without ranges."""
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    with serving(tmp_path / "out") as server:
        server.ranges = False
        yield server


def test_over_http_each_shard_is_fetched_once_when_it_is_needed(folder, written, server) -> None:
    source = ImageSourceConfig(format="webdataset", root=server.url + "/train-{000000..000003}.tar")
    images = read_set(source, Path("/nowhere"))
    assert len(images) == COUNT
    assert server.asked == ["/train.index.json"]  # the counts are known without a shard
    files = read_folders(folder)
    for i in (4, 3, 9):
        assert images.path(i).read_bytes() == files.path(i).read_bytes()
    assert server.asked[1:] == ["/train-000001.tar", "/train-000003.tar"]
    read_set(source, Path("/nowhere")).path(4).read_bytes()
    assert server.asked[3:] == ["/train.index.json"]


def test_over_http_another_shard_takes_the_place_of_its_copy(written, server, tmp_path) -> None:
    pattern = server.url + "/train-{000000..000003}.tar"
    read_shards(pattern).path(0).read_bytes()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    images = read_shards(str(tar(tmp_path / "x.tar", ("a.jpg", picture(50)), ("a.cls", b"0"))))
    list(write_shards(images, tmp_path / "out", "train", per_shard=1, order=np.array([0])))
    images = read_shards(server.url + "/train-{000000..000000}.tar")
    assert images.path(0).read_bytes() == picture(50)
    copy = images.path(0).shard
    copy.unlink()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"x" * 10_240)
    with pytest.raises(UserError, match="another SHA-256"):
        images.path(0).read_bytes()
    assert not copy.exists()


def test_over_http_without_an_index(written, server, tmp_path) -> None:
    (tmp_path / "out" / "train.index.json").unlink()
    assert read_shards(server.url + "/train-{000000..000003}.tar").labels.tolist() == [0] * 6 + [1] * 4
    with pytest.raises(UserError, match=r"train-000004\.tar: there is no such file"):
        read_shards(server.url + "/train-{000000..000004}.tar")


def test_a_cut_answer_leaves_no_copy(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    server.files["a.tar"], server.cut = b"123456789", 4
    path = tmp_path / "copies" / "a.tar"
    with pytest.raises(UserError, match=r"cannot be copied to .*: the connection was closed early"):
        shards.fetch(f"{server.url}/a.tar", path)
    server.cut = None
    monkeypatch.setattr(shards, "MAX_COPY", 3)
    with pytest.raises(UserError, match="sends more than 3 bytes"):
        shards.fetch(f"{server.url}/a.tar", path)
    assert [file.name for file in path.parent.iterdir()] == [".a.tar.lock"]


def test_other_places_by_fsspec(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    for path in (tmp_path / "out").iterdir():
        fsspec.filesystem("memory").pipe(f"/bucket/{path.name}", path.read_bytes())
    images = read_shards("memory://bucket/train-{000000..000003}.tar")
    assert images.path(9).read_bytes() == read_shards(written).path(9).read_bytes()
    with pytest.raises(UserError, match="nonsense"):
        read_shards("nonsense://bucket/train.tar")


def test_a_pipe_in_place_of_a_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t-0.tar")
    with pytest.raises(UserError, match=r"t-0\.tar: is no whole tar file \(.*it is no file \(a pipe, a socket or a"):
        scan(tmp_path / "t-0.tar")
