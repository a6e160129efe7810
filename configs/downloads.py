"""The one downloader: a file from a server, continued where it was cut, never longer than it may be.

It is here because every package may import `configs`. Data sets, weights, shards and pictures come by it; each says in
its own words what to do where a file cannot be had.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

ATTEMPTS = 3
"""How often in a row a connection may break without any progress."""
TIMEOUT = 30.0
"""Seconds in which a server must answer, and in which more must come."""
_CHUNK = 1 << 20
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG)
"""Errors of the disk, not of the network: trying again is no use."""


class DownloadError(Exception):
    """Why a file cannot be had, for a message that names it."""

    def __init__(self, reason: object, *, status: int | None = None, final: bool = False) -> None:
        super().__init__(str(reason))
        self.status = status
        """The server's answer, where that is the reason."""
        self.final = final
        """Whether the same again is of no use."""


class _Redirects(HTTPRedirectHandler):
    """Follows redirections, but not from https to http, and keeps the SHA-256 that the Hugging Face Hub says on the
    way."""

    sha256 = ""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The next request."""
        digest = headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            self.sha256 = digest
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"the server leads to an insecure address, {newurl}", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    path: Path,
    *,
    limit: int,
    size: int | None = None,
    attempts: int = ATTEMPTS,
    pause: float = 1.0,
    title: str | None = None,
    announce: Callable[[], None] | None = None,
) -> str:
    """Make `path` the whole file behind an address; what `path` holds already is taken for the file's beginning.

    Args:
        url: http or https.
        path: a file of a provisional name: it is written to as the bytes come.
        limit: bytes; a longer file is refused.
        size: bytes of the file where they are published; else the server's word counts.
        attempts: how often in a row a connection may break without any progress.
        pause: seconds before the second attempt, doubled for each further one.
        title: what the progress bar says; None: no bar.
        announce: called once the server answers with the file, before the bar.

    Returns:
        The file's SHA-256 in hexadecimal as the Hugging Face Hub tells it; other servers tell none: "".

    Raises:
        DownloadError: the file cannot be had, or is too long; what came of it stays, unless it is of another file.
        OSError: the disk is full, or `path` cannot be written.
    """
    redirects = _Redirects()
    opener, failures, begun = build_opener(redirects), 0, _bytes_of(path)
    while size is None or _bytes_of(path) < size:
        done = _bytes_of(path)
        try:
            if _append(url, path, done, opener, limit, size, title, announce if done == begun else None):
                break
            problem = DownloadError("the connection was closed early")
        except HTTPError as error:
            if error.code == 416 and done:  # there is nothing behind what is there: perhaps of another file
                path.unlink()
                begun = 0
                continue
            if error.code < 500 and error.code != 429:
                raise DownloadError(
                    f"the server answers {error.code} {error.reason}", status=error.code, final=True
                ) from None
            problem = DownloadError(f"the server answers {error.code}", status=error.code)
        except ValueError as error:  # no address
            raise DownloadError(error, final=True) from None
        except (HTTPException, OSError) as error:  # URLError, an OSError without number, among them
            if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
                raise
            problem = DownloadError(getattr(error, "reason", None) or error)
        failures = 0 if _bytes_of(path) > done else failures + 1
        if failures >= attempts:
            raise problem
        time.sleep(pause * 2 ** max(0, failures - 1))
    return redirects.sha256


def _append(
    url: str,
    path: Path,
    done: int,
    opener: OpenerDirector,
    limit: int,
    size: int | None,
    title: str | None,
    announce: Callable[[], None] | None,
) -> bool:
    """Add to the file what is missing, from its start where the server cannot go on; whether it is whole."""
    from tqdm import tqdm  # who only asks for names does without

    headers = {"User-Agent": "residual-detection", **({"Range": f"bytes={done}-"} if done else {})}
    with opener.open(Request(url, headers=headers), timeout=TIMEOUT) as response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        start = done if continued else 0
        total = size if size is not None else _announced(response, start)
        if total is not None:
            _check_room(path, total, start, limit)
        if announce is not None:
            announce()
        with (
            path.open("ab" if continued else "wb") as file,
            tqdm(total=total, initial=start, desc=title, unit="B", unit_scale=True, disable=not title or None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                start += len(chunk)
                if start > (limit if total is None else total):
                    path.unlink()
                    raise _too_long(limit if total is None else total)
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or start >= total


def _announced(response: HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file; None: the server does not say."""
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdecimal() else None


def _check_room(path: Path, total: int, start: int, limit: int) -> None:
    """See that a file of `total` bytes, of which `start` are there, is allowed and fits on the disk."""
    if total > limit:
        raise _too_long(limit)
    free = shutil.disk_usage(path.parent).free
    if total - start > free:
        come, there = (f"{count / 1e6:.0f} MB" for count in (total - start, free))
        raise OSError(errno.ENOSPC, f"{come} are still to come, but {there} are free in {path.parent}")


def _too_long(most: int) -> DownloadError:
    return DownloadError(f"the server sends more than {most:,} bytes", final=True)


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def digest_of(path: Path, algorithm: str) -> str:
    """A file's checksum, md5 or sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within this context no other process is at work on the file; where the system has no such locks, any may be."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
