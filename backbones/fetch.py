"""Weights files by name: where each is published, and where it is kept once it was downloaded.

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

import hashlib
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from configs.downloads import DownloadError, digest_of, download, locked
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
_NAME = re.compile(r"(torchvision|detectron2|hf|https?):/+(.+)")


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
    if scheme == "torchvision" and not path.suffix:
        raise UserError(
            f"{text}: no detector of docs/zoo.md, and no file (NAME-HASH.pth): a net's own ImageNet weights are "
            "model.weights=torchvision:IMAGENET1K_V1"
        )
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


def fetch(name: Path | str, *, licence: str = "", pause: float = 1.0) -> Path:
    """The file of a name, downloaded unless it is kept already.

    Args:
        name: see the module's first lines.
        licence: of the weights; shown where they are downloaded.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: it cannot be had: says which file to put where.
    """
    return obtain(locate(name), licence=licence, pause=pause)


def obtain(remote: Remote, *, licence: str = "", pause: float = 1.0) -> Path:
    """The published file, downloaded unless it is kept already; see `fetch`."""
    if remote.path.is_file():
        return remote.path
    part = remote.path.with_name(f"{remote.path.name}.part")
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(remote.path):
            if not remote.path.is_file():  # another process may have been first
                sha256 = download(
                    remote.url, part, limit=MAX_BYTES, pause=pause, title=remote.path.name,
                    announce=lambda: _say_what_comes(remote, licence),
                )  # fmt: skip
                _check(part, remote, remote.checksum or ("sha256", sha256))
                os.replace(part, remote.path)
    except DownloadError as error:
        raise UserError(f"{remote.name}: cannot be downloaded ({error}): {by_hand(remote)}") from None
    except OSError as error:
        raise UserError(
            f"{remote.name}: cannot be written: {error}: set RESIDUAL_DETECTION_HOME to another folder"
        ) from None
    return remote.path


def by_hand(remote: Remote) -> str:
    """What a person without a network does, for a message."""
    return f"get {remote.url} on another machine and put it at {remote.path}"


def _say_what_comes(remote: Remote, licence: str) -> None:
    print(f"downloading {remote.url}" + (f" (licence: {licence})" if licence else ""), file=sys.stderr)


def _check(part: Path, remote: Remote, checksum: tuple[str, str]) -> None:
    """Compare a finished download with its checksum (algorithm, first digits); remove it where they differ."""
    algorithm, beginning = checksum
    found = digest_of(part, algorithm)
    if not found.startswith(beginning):
        part.unlink()
        raise UserError(
            f"{remote.name}: the {algorithm} of {remote.url} is {found}, but should begin with {beginning}: the "
            "download was removed; try again"
        )
