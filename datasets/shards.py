"""Shards: tar files in WebDataset's layout (`shard_files`), read by position. Imports no torch.

The `webdataset` package reads such files from front to back, which spares slow disks the search for single files, but
then neither the order nor the count of an epoch is exact with several workers and processes, and no run resumes where
it was. Here an index says where each image lies in its tar, so a set of shards is a set like any other: each image once
an epoch, in the order that (seed, epoch) gives. Nothing is ever unpacked.

Shards without an index are read through once at each start (`shard_files.index_shards` writes it). Shards on a server
are copied to this machine when they are first needed, under `configs.files.home`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from configs.downloads import DownloadError, digest_of, download, locked
from configs.errors import UserError, counted
from configs.files import home, replacing
from configs.inputs import open_file
from datasets.folders import ImageFiles, find_class
from datasets.shard_files import BLOCK, Shard, expand, index_name, read_index, scan

_URL = re.compile(r"[a-z][a-z0-9+]+://", re.IGNORECASE)
MAX_COPY = 1 << 37
"""Bytes of a shard that is fetched from a server."""
_NO_SUCH_FILE = (403, 404)
"""What servers answer then; object stores say 403."""


@dataclass(frozen=True)
class Member:
    """A file inside a shard; it is read like a `Path`, by `read_bytes`."""

    shard: Path
    url: str | None
    """Where the shard comes from; None: it is a file of this machine's own."""
    offset: int
    size: int
    """Bytes."""
    name: str
    sha256: str
    """The whole shard's digest, in hexadecimal; empty: not known."""

    def __str__(self) -> str:
        return f"{self.url or self.shard}:{self.name}"

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            UserError: the shard is missing or cannot be had, or is another than that of the index.
        """
        try:
            data = self._read()
        except FileNotFoundError:
            if self.url is None:
                raise UserError(f"{self.shard}: there is no such shard") from None
            fetch(self.url, self.shard, sha256=self.sha256)
            data = self._read()
        except OSError as error:
            raise UserError(f"{self.shard}: cannot read the shard: {error.strerror}") from None
        header = data[:BLOCK]
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.TarError:
            size = -1
        if len(data) != BLOCK + self.size or size != self.size:
            raise UserError(f"{self}: is not where the index says: the shard was changed or cut off: index it anew")
        return data[BLOCK:]

    def _read(self) -> bytes:
        with open_file(self.shard) as file:
            return os.pread(file.fileno(), BLOCK + self.size, self.offset - BLOCK)


@dataclass(frozen=True)
class ShardImages(ImageFiles):
    """The images of a set of shards; `names` are those of the members, `root` the folder of the shards."""

    shards: list[str]
    """Path, or name under `root`, of each tar file on this machine."""
    urls: list[str] | None
    """Where each comes from; None: they are this machine's own."""
    digests: list[str]
    """SHA-256 of each, in hexadecimal; empty where it is not known."""
    shard: np.ndarray
    """(N,) int64: the shard of each image."""
    offsets: np.ndarray
    """(N,) int64: where its content begins, bytes."""
    sizes: np.ndarray
    """(N,) int64: bytes."""

    def path(self, index: int) -> Member:  # type: ignore[override]
        """The file of an image."""
        s = int(self.shard[index])
        name = os.fsdecode(bytes(self.names[index]))
        url = None if self.urls is None else self.urls[s]
        place = int(self.offsets[index]), int(self.sizes[index])
        return Member(self.root / self.shards[s], url, *place, name, self.digests[s])

    def take(self, positions: np.ndarray) -> ShardImages:
        columns = ("names", "labels", "shard", "offsets", "sizes")
        return replace(self, **{name: getattr(self, name)[positions] for name in columns})


# ---------------------------------------------------------------------------------------------- reading


def read_shards(pattern: str, class_names: Sequence[str] | None = None) -> ShardImages:
    """The images of some shards, in the order of the shards.

    Args:
        pattern: a path or URL (http, https, or what fsspec opens, as s3://); `{000000..000127}` counts.
        class_names: the classes in the order of their labels; None: the index's own, else the labels' numbers.

    Raises:
        UserError: a shard is missing, broken, or not that of the index; a sample has no image or no label.
    """
    addresses = expand(pattern)
    names = [address.rsplit("/", 1)[-1] for address in addresses]
    if len(set(names)) < len(names):
        raise UserError(f"{pattern}: several shards have one name")
    is_remote = _URL.match(pattern) is not None
    folder = _copies(addresses[0]) if is_remote else Path(addresses[0]).parent
    index_path = folder / index_name(names[0])
    if is_remote:
        fetch(addresses[0].rsplit("/", 1)[0] + f"/{index_path.name}", index_path, may_lack=True)
    if index_path.is_file():
        own_names, parts = read_index(index_path, names)
    else:
        for name, address in zip(names, addresses, strict=True):
            if is_remote and not (folder / name).is_file():
                fetch(address, folder / name)
        own_names, parts = None, [scan(folder / name) for name in names]
    if is_remote:  # another shard of the same name is another copy
        names = [f"{part.sha256[:8]}{name}" for name, part in zip(names, parts, strict=True)]
    for name, part in zip(names, parts, strict=True):
        _check_length(folder / name, part, is_copy=is_remote)
    return _images(folder, names, addresses if is_remote else None, parts, own_names, class_names)


def _check_length(path: Path, part: Shard, *, is_copy: bool) -> None:
    """See that a shard is as long as the index says; a copy of another one is removed, to be fetched again."""
    length = path.stat().st_size if path.is_file() else None
    if length == part.bytes:
        return
    if is_copy:
        path.unlink(missing_ok=True)
    elif length is None:
        raise UserError(f"{path}: there is no such shard")
    else:
        raise UserError(
            f"{path}: has {length} bytes, its index says {part.bytes}: it was changed or cut off: copy it again, or "
            "index it anew"
        )


def _images(
    folder: Path, names: list[str], urls: list[str] | None, parts: list[Shard], own_names: list[str] | None,
    class_names: Sequence[str] | None,
) -> ShardImages:  # fmt: skip
    labels = [label for part in parts for label in part.labels]
    if not labels:
        raise UserError(f"{folder / names[0]}: holds no image")
    texts = sorted({label for label in labels if isinstance(label, str)})
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    if texts and highest >= 0:
        raise UserError(f"{folder / names[0]}: some labels are numbers, others names, as {texts[0]}")
    own = own_names or texts or [str(k) for k in range(highest + 1)]
    chosen = list(class_names) if class_names is not None else own
    known = own if own_names or texts else chosen
    if highest >= len(known):
        raise UserError(
            f"{folder / names[0]}: a label is {highest}, which needs more than {counted(len(known), 'class')}"
        )
    if own_names or texts:
        new = {name: find_class(name, chosen, str(folder / names[0])) for name in own}
        lookup: dict[int | str, int] = {**new, **{k: new[name] for k, name in enumerate(own)}}
    else:
        lookup = {k: k for k in range(highest + 1)}
    return ShardImages(
        root=folder,
        names=np.array([os.fsencode(name) for part in parts for name in part.names]),
        labels=np.array([lookup[label] for label in labels], np.int64),
        class_names=chosen,
        shards=names,
        urls=urls,
        digests=[part.sha256 for part in parts],
        shard=np.repeat(np.arange(len(parts)), [len(part.names) for part in parts]),
        offsets=np.array([offset for part in parts for offset in part.offsets], np.int64),
        sizes=np.array([size for part in parts for size in part.sizes], np.int64),
    )


# ---------------------------------------------------------------------------------------------- copies


def _copies(address: str) -> Path:
    """Where the shards of a server's folder are copied to."""
    base = address.rsplit("/", 1)[0]
    host = re.sub(r"[^\w.-]", "_", urlsplit(base).netloc)[:60]
    return home() / "shards" / f"{host}-{hashlib.sha256(base.encode()).hexdigest()[:16]}"


def fetch(url: str, path: Path, *, may_lack: bool = False, sha256: str = "") -> None:
    """Copy a file from a server, whole or not at all; of several processes one does it and the others wait.

    Args:
        url: http, https, or what fsspec opens.
        path: the copy. An index is fetched anew each time; another file that is there already is left alone.
        may_lack: do nothing where the server has no such file.
        sha256: what the file must have, in hexadecimal; empty: anything.

    Raises:
        UserError: the server cannot be reached or has no such file, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if path.is_file() and not may_lack:
                return
            with replacing(path) as temporary:
                _copy(url, temporary)
                if sha256 and digest_of(temporary, "sha256") != sha256:
                    raise DownloadError("it is not the file of the index (another SHA-256)")
    except DownloadError as error:
        if error.status not in _NO_SUCH_FILE:
            raise UserError(f"{url}: cannot be copied to {path}: {error}") from None
        if not may_lack:
            raise UserError(f"{url}: there is no such file") from None
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{url}: cannot be copied to {path}: {error}") from None


def _copy(url: str, target: Path) -> None:
    """Make `target` what is behind an address; raises DownloadError, or OSError of the disk."""
    if url.lower().startswith(("http://", "https://")):
        download(url, target, limit=MAX_COPY)
        return
    try:
        import fsspec

        opened: Any = fsspec.open(url, "rb")
        source = opened.open()
    except FileNotFoundError as error:
        raise DownloadError(error, status=404) from None
    except (ImportError, ValueError, OSError) as error:
        raise DownloadError(error) from None
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
