"""A server on this machine for downloads, and archives to be served."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> content), and those of `folder` where there is one."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}
        """Path -> where it leads, and further headers of that answer."""
        self.requests: list[tuple[str, str | None]] = []
        """Paths, and the ranges that were asked for."""
        self.cut: int | None = None
        """Bytes an answer holds at most, whatever it announces."""
        self.announces = True
        """Whether answers say how long they are."""
        self.ranges = True
        """Whether it sends parts of files."""
        self.failures = 0
        """So many requests are answered with `status`."""
        self.status = 503

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def asked(self) -> list[str]:
        """The paths of the requests."""
        return [path for path, _ in self.requests]

    def find(self, path: str) -> bytes | None:
        name = path.partition("?")[0].removeprefix("/")
        file = self.folder / name if self.folder is not None else None
        return self.files.get(name) if file is None or not file.is_file() else file.read_bytes()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        data = self.server.find(self.path)
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(self.server.status)
        elif self.path in self.server.redirects:
            target, headers = self.server.redirects[self.path]
            self.answer(302, b"", {"Location": target, **headers})
        elif data is None:
            self.send_error(404)
        elif wanted and self.server.ranges:
            start = int(wanted[6:-1])
            if start >= len(data):
                self.send_error(416)
                return
            self.answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.answer(200, data, {})

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.announces:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.server.cut])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path | None = None) -> Iterator[Server]:
    """The server, running."""
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for member in members:
            file.addfile(member)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
    return buffer.getvalue()
