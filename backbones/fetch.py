"""Weights files by name: where each is published, where it is kept, and its download.

| name | file |
|---|---|
| `torchvision://FILE.pth` | of torchvision's models |
| `detectron2://PATH.pkl` | of detectron2's zoo, `detectron2://ImageNetPretrained/MSRA/R-50.pkl` among them |
| `hf://OWNER/REPO/FILE`, `hf://OWNER/REPO@REVISION/FILE` | of the Hugging Face Hub |
| `https://...` | any |

Files are kept under `$RESIDUAL_DETECTION_HOME` (default `~/.cache/residual-detection`) for ever; a file that was put
there by hand is taken as it is. A download is continued where it was cut, compared with the checksum that torchvision
and detectron2 publish in their files' names and the Hub beside its files, and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from configs.errors import UserError
from configs.files import home

BASES = {
    "torchvision": ("RESIDUAL_DETECTION_TORCHVISION_URL", "https://download.pytorch.org/models"),
    "detectron2": ("RESIDUAL_DETECTION_DETECTRON2_URL", "https://dl.fbaipublicfiles.com/detectron2"),
    "hf": ("HF_ENDPOINT", "https://huggingface.co"),
}
"""Scheme -> the environment variable that names another server, and the publisher's. Another server's files are one's
own affair: they are not compared with the published checksums."""
MAX_BYTES = 8 << 30
"""A larger file is no detector's, and is not downloaded."""
ATTEMPTS = 3
"""How often in a row a connection may break without any progress."""
_NAME = re.compile(r"(torchvision|detectron2|hf|https?):/+(.+)")
_CHUNK = 1 << 20
_TIMEOUT = 30.0


class Remote(NamedTuple):
    """A published file."""

    name: str
    """As it was given."""
    url: str
    path: Path
    """Where it is kept."""
    checksum: tuple[str, str] | None
    """Algorithm and the first digits of the sum, where they are published."""


def is_name(weights: Path | str) -> bool:
    """Whether this is a file's name in the sense of this module and not a path. (`Path` makes one slash of two.)"""
    return _NAME.fullmatch(os.fspath(weights)) is not None


def locate(name: Path | str) -> Remote:
    """Where the file of a name is published and kept.

    Raises:
        UserError: no such form of a name, or one that leads out of the cache.
    """
    match = _NAME.fullmatch(os.fspath(name))
    if match is None:
        raise UserError(f"{name}: write torchvision://..., detectron2://..., hf://owner/repo/file or https://...")
    scheme, rest = match.groups()
    text = f"{scheme}://{rest}"
    if scheme in ("http", "https"):
        file = PurePosixPath(unquote(urlsplit(text).path)).name
        if not file:
            raise UserError(f"{text}: names no file")
        folder = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Remote(text, text, home() / "url" / folder / _safe(file, text), None)
    variable, published = BASES[scheme]
    base = (os.environ.get(variable) or published).rstrip("/")
    path = home() / scheme / _safe(rest, text)
    if scheme == "hf":
        return Remote(text, f"{base}/{_hub_path(rest, text)}", path, None)
    checksum = _published_checksum(scheme, path.name) if base == published else None
    return Remote(text, f"{base}/{quote(rest)}", path, checksum)


def _hub_path(rest: str, name: str) -> str:
    """OWNER/REPO[@REVISION]/FILE as the Hub's address of the file."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/(.+)", rest)
    if match is None:
        raise UserError(f"{name}: write hf://owner/repo/file or hf://owner/repo@revision/file")
    return f"{match[1]}/resolve/{match[2] or 'main'}/{quote(match[3])}"


def _safe(relative: str, name: str) -> Path:
    """A relative path that stays where it is joined to."""
    parts = PurePosixPath(relative.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or any(":" in part or "\0" in part for part in parts):
        raise UserError(f"{name}: leads out of the folder that weights are kept in")
    return Path(*parts)


def _published_checksum(scheme: str, file: str) -> tuple[str, str] | None:
    """torchvision's names end in the beginning of the SHA-256, detectron2's in that of the MD5."""
    if scheme == "torchvision" and (match := re.search(r"-([0-9a-f]{8,64})\.pth$", file)):
        return "sha256", match[1]
    if scheme == "detectron2" and (match := re.search(r"_([0-9a-f]{6})\.pkl$", file)):
        return "md5", match[1]
    return None


class _Redirects(HTTPRedirectHandler):
    """Follows redirections, but not from https to http, and keeps the SHA-256 that the Hub says on the way."""

    sha256: str | None = None

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The next request."""
        digest = headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            self.sha256 = digest
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise HTTPException(f"the server leads to an insecure address, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(name: Path | str, *, licence: str = "", pause: float = 1.0) -> Path:
    """The file of a name, downloaded unless it is kept already.

    Args:
        name: see the module's first lines.
        licence: of the weights; shown where they are downloaded.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: it cannot be had: says which file to put where.
    """
    remote = locate(name)
    if remote.path.is_file():
        return remote.path
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(remote.path):
            if not remote.path.is_file():  # another process may have been first
                print(f"downloading {remote.url}" + (f" (licence: {licence})" if licence else ""), file=sys.stderr)
                part = remote.path.with_name(f"{remote.path.name}.part")
                redirects = _Redirects()
                _download(remote, part, pause, build_opener(redirects))
                _check(part, remote, remote.checksum or ("sha256", redirects.sha256 or ""))
                os.replace(part, remote.path)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error}: set RESIDUAL_DETECTION_HOME to another folder") from None
    return remote.path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; where the system has no such locks (Windows), any number."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(remote: Remote, part: Path, pause: float, opener: OpenerDirector) -> None:
    """Makes `part` the whole file, going on where an earlier attempt ended."""
    failures = 0
    while True:
        done = part.stat().st_size if part.exists() else 0
        try:
            if _append(remote, part, done, opener):
                return
            reason: object = "the connection was closed early"
        except HTTPError as error:
            if error.code == 416 and done:  # there is nothing behind what is there: perhaps of another file
                part.unlink()
                continue
            if error.code < 500 and error.code != 429:
                raise _unavailable(remote, f"the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code}"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
        progress = part.exists() and part.stat().st_size > done
        failures = 0 if progress else failures + 1
        if failures >= ATTEMPTS:
            raise _unavailable(remote, reason)
        time.sleep(pause * 2 ** max(0, failures - 1))


def _append(remote: Remote, part: Path, done: int, opener: OpenerDirector) -> bool:
    """Adds to `part` what is missing, anew where the server cannot go on; whether the file is whole."""
    from tqdm import tqdm  # the benchmark reads names here, and does without

    request = Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})

    with opener.open(request, timeout=_TIMEOUT) as response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        start = done if continued else 0
        total = _total_size(response, start)
        _check_size(remote, total, start)
        with (
            part.open("ab" if continued else "wb") as file,
            tqdm(total=total, initial=start, desc=remote.path.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > MAX_BYTES:
                    raise _unavailable(remote, f"it is larger than {MAX_BYTES >> 30} GiB")
    return total is None or part.stat().st_size >= total


def _total_size(response: HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file; None: the server does not say."""
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdecimal() else None


def _check_size(remote: Remote, total: int | None, start: int) -> None:
    if total is None:
        return
    if total > MAX_BYTES:
        raise _unavailable(remote, f"it is larger than {MAX_BYTES >> 30} GiB")
    free = shutil.disk_usage(remote.path.parent).free
    if total - start > free:
        raise UserError(
            f"{remote.name}: {(total - start) / 1e6:.0f} MB are still to come, but {free / 1e6:.0f} MB are free in "
            f"{remote.path.parent}: set RESIDUAL_DETECTION_HOME to another disk"
        )


def _check(part: Path, remote: Remote, checksum: tuple[str, str]) -> None:
    """Compares a finished download with its checksum (algorithm, first digits); removes it where they differ."""
    algorithm, beginning = checksum
    if not beginning:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(beginning):
        part.unlink()
        raise UserError(
            f"{remote.name}: the {algorithm} of {remote.url} is {found}, but should begin with {beginning}: the "
            "download was removed; try again"
        )


def _unavailable(remote: Remote, reason: object) -> UserError:
    return UserError(
        f"{remote.name}: cannot be downloaded ({reason}): get {remote.url} on another machine and put it at "
        f"{remote.path}"
    )
