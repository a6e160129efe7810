"""Downloads from a server on this machine: cut, continued, begun anew, refused, too long, led elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from urllib.request import Request

import pytest

from configs import downloads
from configs.downloads import DownloadError, digest_of, download
from tests.serving import Server, serving

DATA = bytes(range(256)) * 400


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that has DATA as a.bin."""
    with serving() as server:
        server.files["a.bin"] = DATA
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.bin"


def fetch(server: Server, path: Path, name: str = "a.bin", limit: int = 1 << 20, size: int | None = None) -> str:
    return download(f"{server.url}/{name}", path, limit=limit, size=size, pause=0.0)


def asked_ranges(server: Server) -> list[str | None]:
    return [wanted for _, wanted in server.requests]


@pytest.mark.parametrize("size", [len(DATA), None])  # published, or as the server says
def test_a_cut_download_goes_on(server, path, size):
    server.cut = 40_000
    assert fetch(server, path, size=size) == ""
    assert path.read_bytes() == DATA
    assert asked_ranges(server) == [None, "bytes=40000-", "bytes=80000-"]


def test_a_file_that_is_whole_is_not_asked_for_where_its_size_is_known(server, path):
    path.write_bytes(DATA)
    fetch(server, path, size=len(DATA))
    assert server.requests == []
    fetch(server, path)  # there is nothing behind it: it is fetched anew, for it may be another file
    assert path.read_bytes() == DATA
    assert asked_ranges(server) == [f"bytes={len(DATA)}-", None]


def test_where_the_server_cannot_go_on_it_begins_anew(server, path):
    server.ranges = False
    path.write_bytes(b"x" * 70_000)
    fetch(server, path)
    assert path.read_bytes() == DATA


def test_a_busy_server_is_asked_again_and_one_without_the_file_is_not(server, path):
    server.failures = 2
    fetch(server, path)
    assert path.read_bytes() == DATA
    path.unlink()
    server.requests.clear()
    server.failures = 100
    with pytest.raises(DownloadError, match="the server answers 503") as caught:
        fetch(server, path)
    assert (caught.value.status, caught.value.final, len(server.requests)) == (503, False, downloads.ATTEMPTS)
    server.failures = 0
    with pytest.raises(DownloadError, match="the server answers 404 Not Found") as caught:
        fetch(server, path, "b.bin")
    assert (caught.value.status, caught.value.final, server.asked[downloads.ATTEMPTS :]) == (404, True, ["/b.bin"])


def test_no_server_and_no_address(path):
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:9/a.bin", path, limit=9, pause=0.0)
    for address in ("a.bin", "http://[/a.bin"):
        with pytest.raises(DownloadError) as caught:
            download(address, path, limit=9)
        assert caught.value.final


@pytest.mark.parametrize("announces", [True, False])
def test_a_file_that_is_too_long_is_not_kept(server, path, announces):
    server.announces = announces
    for limit, size in ((50_000, None), (1 << 20, 50_000)):
        with pytest.raises(DownloadError, match="sends more than 50,000 bytes") as caught:
            fetch(server, path, limit=limit, size=size)
        assert caught.value.final
        assert not path.exists()


def test_too_small_a_disk_is_known_before_the_bytes_come(server, path, monkeypatch):
    usage = downloads.shutil.disk_usage(path.parent)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OSError, match="0 MB are still to come, but 0 MB are free"):
        fetch(server, path)
    assert len(server.requests) == 1


def test_the_hubs_checksum_comes_with_its_redirection(server, path):
    server.redirects["/b.bin"] = "/a.bin", {"X-Linked-ETag": f'"{"0123456789abcdef" * 4}"'}
    server.redirects["/c.bin"] = "/a.bin", {"X-Linked-ETag": '"not one"'}
    assert fetch(server, path, "b.bin") == "0123456789abcdef" * 4
    path.unlink()
    assert fetch(server, path, "c.bin") == ""


def test_no_redirection_leads_from_https_to_http():
    handler, headers = downloads._Redirects(), HTTPMessage()
    secure = Request("https://a.example/x")
    with pytest.raises(DownloadError, match="leads to an insecure address, http://b") as caught:
        handler.redirect_request(secure, None, 302, "Found", headers, "http://b.example/x")
    assert caught.value.final
    assert handler.redirect_request(secure, None, 302, "Found", headers, "https://b.example/x") is not None


def test_digests(path):
    path.write_bytes(DATA)
    assert digest_of(path, "md5") == hashlib.md5(DATA).hexdigest()
    assert digest_of(path, "sha256") == hashlib.sha256(DATA).hexdigest()
