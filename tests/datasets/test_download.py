"""Downloads from a server on this machine: whole, cut, continued, corrupted, malicious."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs import downloads
from configs.errors import UserError
from datasets import download as module
from datasets.download import download, is_unpacked, plan, prepare, unpack
from datasets.public_sets import Archive, PublicSet
from tests.serving import Server, tar_of, zip_of

DATA = np.random.default_rng(0).bytes(100_000)


def archive(data: bytes = DATA, name: str = "a.tar") -> Archive:
    return Archive(f"http://invalid.invalid/{name}", len(data), hashlib.md5(data).hexdigest())


def fetch(server: Server, path: Path, what: Archive | None = None, **options) -> None:
    download(what or archive(), path, **{"mirror": server.url, "pause": 0.0, **options})


def test_whole_download(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = DATA
    fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["a.tar"]
    assert server.requests == [("/a.tar", None)]
    fetch(server, tmp_path / "a.tar")  # verified, not fetched again
    assert len(server.requests) == 1


def test_cut_connections_are_continued_by_range(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"], server.cut = DATA, 30_000
    fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_later_call_continues(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = DATA
    (tmp_path / "a.tar.part").write_bytes(DATA[:70_000])
    fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["bytes=70000-"]


@pytest.mark.parametrize("part", [b"", DATA[:50_000]])
def test_wrong_content_is_removed(server: Server, tmp_path: Path, part: bytes) -> None:
    server.files["a.tar"] = DATA[:-1] + b"x"
    if part:
        (tmp_path / "a.tar.part").write_bytes(part)
    with pytest.raises(UserError, match=r"a\.tar.*its md5 is .*, but a\.tar has .*: the file was removed, call again"):
        fetch(server, tmp_path / "a.tar")
    assert os.listdir(tmp_path) == []


def test_missing_file_and_dead_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/a\.tar: cannot be downloaded: the server answers 404 Not Found: try"):
        fetch(server, tmp_path / "a.tar")
    assert len(server.requests) == 1
    server.failures = 100
    with pytest.raises(UserError, match=r"cannot be downloaded: the server answers 503: call again to continue"):
        fetch(server, tmp_path / "a.tar", attempts=3)
    assert len(server.requests) == 4
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        fetch(server, tmp_path / "a.tar", attempts=2)


# ------------------------------------------------------------------------------------------------ archives


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "data",
    [
        tar_of({"good.txt": b"1", "../evil.txt": b"2"}),
        tar_of({"good.txt": b"1", "a/../../evil.txt": b"2"}),
        tar_of({"good.txt": b"1", "/tmp/evil.txt": b"2"}),
        tar_of({"good.txt": b"1", "a\\..\\..\\evil.txt": b"2"}),
        tar_of({"good.txt": b"1", "C:/evil.txt": b"2"}),
        tar_of({"good.txt": b"1"}, link("evil", "/etc")),
        tar_of({"good.txt": b"1"}, link("evil", "../..")),
        tar_of({"good.txt": b"1"}, link("evil", "/etc/passwd", tarfile.LNKTYPE)),
        tar_of({"good.txt": b"1"}, link("evil", "", tarfile.FIFOTYPE)),
        tar_of({"good.txt": b"1"}, link("evil", "", tarfile.CHRTYPE)),
        zip_of({"good.txt": b"1", "../evil.txt": b"2"}),
        zip_of({"good.txt": b"1", "/evil.txt": b"2"}),
        zip_of({"good.txt": b"1", "a/b/../../../evil.txt": b"2"}),
        zip_of({"good.txt": b"1"}, link="evil"),
    ],
)
def test_malicious_archives_write_nothing(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    path = tmp_path / "archive"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"evil.*the archive is not what was published"):
        unpack(path, folder)
    assert [str(item.relative_to(tmp_path)) for item in sorted(tmp_path.rglob("*"))] == [
        "archive",
        "deep",
        "deep/folder",
    ]


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_archives_are_merged_into_the_folder(tmp_path: Path, make) -> None:
    path = tmp_path / "archive"
    for files in ({"kit/a.txt": b"1", "kit/sub/b.txt": b"2"}, {"kit/sub/c.txt": b"3", "kit/a.txt": b"new"}):
        path.write_bytes(make(files))
        unpack(path, tmp_path)
    path.unlink()
    found = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"kit/a.txt": b"new", "kit/sub/b.txt": b"2", "kit/sub/c.txt": b"3"}
    assert [p.name for p in tmp_path.iterdir()] == ["kit"]


def test_broken_archives(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    whole = tar_of({"a.txt": DATA, "b.txt": DATA})
    for data in (b"no archive", whole[:150_000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="archive"):
            unpack(path, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["archive"]


# ------------------------------------------------------------------------------------------------ the whole way


@pytest.fixture
def public_set(server: Server) -> PublicSet:
    server.files = {
        "one.tar": tar_of({"kit/a.txt": b"1" * 1000}),
        "two.zip": zip_of({"kit/b.txt": b"2" * 1000}),
    }
    archives = tuple(archive(data, name) for name, data in server.files.items())
    return PublicSet(archives, folder="sets", result="sets/kit")


def test_prepare_downloads_unpacks_and_remembers(server: Server, public_set: PublicSet, tmp_path: Path) -> None:
    lines = plan(public_set, tmp_path, mirror=server.url)
    assert any(f"{server.url}/one.tar" in line for line in lines)
    assert not list(tmp_path.iterdir())  # a plan writes nothing
    assert not server.requests
    prepare(public_set, tmp_path, mirror=server.url)
    assert (tmp_path / "sets" / "kit" / "a.txt").read_bytes() == b"1" * 1000
    assert (tmp_path / "sets" / "kit" / "b.txt").read_bytes() == b"2" * 1000
    assert not (tmp_path / "sets" / "one.tar").exists()
    assert len(server.requests) == 2
    assert all(is_unpacked(item, tmp_path / "sets") for item in public_set.archives)
    prepare(public_set, tmp_path, mirror=server.url)
    assert len(server.requests) == 2
    assert "is unpacked already" in plan(public_set, tmp_path)[0]


def test_interrupted_prepare_goes_on(server: Server, public_set: PublicSet, tmp_path: Path) -> None:
    good = server.files.pop("two.zip")
    with pytest.raises(UserError, match="404"):
        prepare(public_set, tmp_path, mirror=server.url, keep_archives=True)
    server.files["two.zip"] = good
    prepare(public_set, tmp_path, mirror=server.url, keep_archives=True)
    assert server.asked.count("/one.tar") == 1
    assert (tmp_path / "sets" / "one.tar").is_file()
    assert (tmp_path / "sets" / "kit" / "b.txt").is_file()


def test_too_small_a_disk_is_known_before_anything_is_fetched(
    server: Server, public_set: PublicSet, tmp_path: Path, monkeypatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"of disk space, 0\.00 MB are free: choose another disk"):
        prepare(public_set, tmp_path, mirror=server.url)
    assert not server.requests
    assert not list(tmp_path.iterdir())


def test_a_server_that_sends_without_end_is_left(tmp_path: Path, server: Server) -> None:
    server.files["a.tar"] = DATA * 30
    with pytest.raises(UserError, match=r"sends more than 100,000 bytes: try --mirror"):
        download(archive(), tmp_path / "a.tar", mirror=server.url, attempts=1, pause=0.0)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_ends_a_download_at_once(tmp_path: Path, server: Server, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_append", full)
    with pytest.raises(UserError, match=r"a\.tar\.part: cannot be written: No space left on device"):
        download(archive(), tmp_path / "a.tar", mirror=server.url, pause=1000.0)
