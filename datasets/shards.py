"""Shards: tar files in WebDataset's layout, read by position. Imports no torch.

A sample is what has one key, the member's path up to the first dot of its last part: `00000017.jpg` and `00000017.cls`,
next to each other. The `webdataset` package reads such files from front to back, which spares slow disks the search for
single files, but then neither the order nor the count of an epoch is exact with several workers and processes, and no
run resumes where it was. Here an index says where each image lies in its tar, so a set of shards is a set like any
other: each image once an epoch, in the order that (seed, epoch) gives. Nothing is ever unpacked.

The index, `NAME.index.json` beside `NAME-000000.tar`, is written with the shards. Shards of others, without one, are
read through once at each start (`index_shards` writes it). Shards on a server are copied to this machine when they are
first needed, under `configs.files.home`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from configs.downloads import DownloadError, digest_of, download, locked
from configs.errors import UserError
from configs.files import home, read_json, replacing, write_text
from configs.inputs import open_file
from datasets.columns import Rows
from datasets.folders import ImageFiles, find_class
from datasets.images import IMAGE_SUFFIXES

_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_URL = re.compile(r"[a-z][a-z0-9+]+://", re.IGNORECASE)
MAX_SHARDS = 100_000
MAX_MEMBER = 1 << 30
"""Bytes. No image file is larger."""
MAX_LABEL = 1 << 10
"""Bytes of a .cls member."""
MAX_COPY = 1 << 37
"""Bytes of a shard that is fetched from a server."""
_NO_SUCH_FILE = (403, 404)
"""What servers answer then; object stores say 403."""
_BLOCK = 512


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
    """Of the whole shard, in hexadecimal; empty: not known."""

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
        header = data[:_BLOCK]
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.TarError:
            size = -1
        if len(data) != _BLOCK + self.size or size != self.size:
            raise UserError(f"{self}: is not where the index says: the shard was changed or cut off: index it anew")
        return data[_BLOCK:]

    def _read(self) -> bytes:
        with open_file(self.shard) as file:
            return os.pread(file.fileno(), _BLOCK + self.size, self.offset - _BLOCK)


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


@dataclass(frozen=True)
class Shard:
    """What one tar file holds: the images' names, places, sizes and labels (numbers, or classes' names)."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[int | str]
    bytes: int
    """Length of the tar file."""
    sha256: str = ""
    """Of the tar file, in hexadecimal; empty: not known."""


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
        own_names, parts = _read_index(index_path, names)
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


def expand(pattern: str) -> list[str]:
    """The paths or URLs that a pattern with `{000..127}` stands for (as many digits as the first number)."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise UserError(f"{pattern}: {found[0]} counts from {first} to {last}")
    begin, end = pattern[: found.start()], pattern[found.end() :]
    return [name for i in range(first, last + 1) for name in expand(f"{begin}{i:0{len(found[1])}}{end}")]


def index_name(shard: str) -> str:
    """The index's file name beside a shard `NAME-000000.tar`."""
    return re.sub(r"[-_.]?\d*\.tar$", "", shard) + ".index.json"


def scan(path: Path) -> Shard:
    """What a tar file holds, by its headers and labels.

    Raises:
        UserError: it is missing, damaged, cut off or compressed, or a sample lacks its image or label or has two.
    """
    samples: dict[str, dict[str, Any]] = {}
    previous = ""
    try:
        with open_file(path) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if not member.isreg() or member.issparse() or member.name.rsplit("/", 1)[-1].startswith("."):
                    continue
                key, suffix = _key(member.name)
                if key in samples and key != previous:
                    raise UserError(f"{path}: the members of {key} are not next to each other, or it comes twice")
                previous = key
                _add(samples.setdefault(key, {}), suffix, member, archive, f"{path}:{member.name}")
            end = archive.offset
        with open_file(path) as file:
            length = os.fstat(file.fileno()).st_size
            if os.pread(file.fileno(), _BLOCK, end) != bytes(_BLOCK):
                raise UserError(f"{path}: is damaged or cut off at byte {end}: make or copy it again")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such shard") from None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: is no whole tar file ({error}); compressed ones cannot be read by position") from None
    for key, sample in samples.items():
        for part, what in (("image", f"image ({', '.join(IMAGE_SUFFIXES)})"), ("label", "label (.cls)")):
            if part not in sample:
                raise UserError(f"{path}: {key} has no {what}")
    images = [sample["image"] for sample in samples.values()]
    return Shard(
        [name for name, _, _ in images], [offset for _, offset, _ in images], [size for _, _, size in images],
        [sample["label"] for sample in samples.values()], length,
    )  # fmt: skip


def _key(name: str) -> tuple[str, str]:
    """(key, suffix with its dot in lower case) of a member."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _add(sample: dict[str, Any], suffix: str, member: tarfile.TarInfo, archive: tarfile.TarFile, where: str) -> None:
    part = "image" if suffix in IMAGE_SUFFIXES else "label" if suffix == ".cls" else None
    if part is None:
        return
    if part in sample:
        raise UserError(f"{where}: the sample has a second {part}")
    if member.size > (MAX_MEMBER if part == "image" else MAX_LABEL):
        raise UserError(f"{where}: has {member.size} bytes: is it an {suffix} file?")
    if part == "image":
        sample[part] = (member.name, member.offset_data, member.size)
        return
    file = archive.extractfile(member)
    text = (file.read() if file else b"").decode("utf-8", "replace").strip()
    if not text:
        raise UserError(f"{where}: is empty: give the class's number or name")
    sample[part] = int(text) if text.isdecimal() and len(text) < 100 else text


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
    if highest >= len(own):
        raise UserError(f"{folder / names[0]}: a label is {highest}, but there are {len(own)} classes")
    chosen = list(class_names) if class_names is not None else own
    if own_names or texts:
        new = {name: find_class(name, chosen, str(folder / names[0])) for name in own}
        lookup: dict[int | str, int] = {**new, **{k: new[name] for k, name in enumerate(own)}}
    elif highest >= len(chosen):
        raise UserError(f"{folder / names[0]}: a label is {highest}, but there are {len(chosen)} classes")
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


# ---------------------------------------------------------------------------------------------- the index


def _read_index(path: Path, names: list[str]) -> tuple[list[str] | None, list[Shard]]:
    """The classes' names and the shards of an index."""
    content = read_json(path, "index of shards")
    if not isinstance(content, dict) or not isinstance(content.get("shards"), list):
        raise UserError(f"{path}: is no index of shards: write it anew with tools/write_shards.py --index")
    class_names = content.get("class_names")
    if class_names is not None and not (isinstance(class_names, list) and all(type(n) is str for n in class_names)):
        raise UserError(f"{path}: class_names is no list of texts")
    rows = Rows(path, content["shards"], "shard", is_whole_file=False)
    place = {name: i for i, name in enumerate(rows.texts("name", "give the tar file's name"))}
    parts = []
    for name in names:
        if name not in place:
            raise UserError(f"{path}: does not list {name}: write it anew with tools/write_shards.py --index")
        parts.append(_listed(rows.items[place[name]], f"{path}: what it says of {name} cannot be: write it anew"))
    return class_names, parts


def _listed(item: dict[str, Any], fault: str) -> Shard:
    columns: list[Any] = [item.get(key) for key in ("names", "offsets", "sizes", "labels")]
    names, offsets, sizes, labels = columns
    kinds = {str}, {int}, {int}, {int, str}
    if not all(isinstance(c, list) and {*map(type, c)} <= kind for c, kind in zip(columns, kinds, strict=True)):
        raise UserError(fault)
    numbers = [*sizes, *(label for label in labels if type(label) is int)]
    sound = len({len(names), len(offsets), len(sizes), len(labels)}) == 1 and type(item.get("bytes")) is int
    if not sound or min([_BLOCK, *offsets]) < _BLOCK or min([0, *numbers]) < 0 or max([0, *sizes]) > MAX_MEMBER:
        raise UserError(fault)
    return Shard(names, offsets, sizes, labels, item["bytes"], str(item.get("sha256", "")))


def index_shards(pattern: str, class_names: Sequence[str] | None) -> Path:
    """Write the index of the shards that a pattern names, all of one folder of this machine; returns its path."""
    paths = [Path(path) for path in expand(pattern)]
    shards = []
    for path in paths:
        part = replace(scan(path), sha256=digest_of(path, "sha256"))
        shards.append({"name": path.name, "images": len(part.names), **vars(part)})
    content = {"class_names": None if class_names is None else list(class_names), "shards": shards}
    index = paths[0].parent / index_name(paths[0].name)
    write_text(index, json.dumps(content))
    return index


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


# ---------------------------------------------------------------------------------------------- writing


def write_shards(images: ImageFiles, folder: Path, name: str, *, per_shard: int, order: np.ndarray) -> Iterator[Path]:
    """Write a set as `NAME-000000.tar`, ... with an index; yields each file as it is done, the index last.

    The members are `00000017.jpg` and `00000017.cls`, numbered as in the set; the files' bytes stay as they are.

    Args:
        images: the set.
        folder: where to; is made.
        name: the shards' name.
        per_shard: images in each.
        order: (N,) int64, the order in which the images are written.

    Raises:
        UserError: an image cannot be read, a file is there already, or cannot be written.
    """
    count = -(-len(order) // per_shard)
    digits = max(6, len(str(count)))
    paths = [folder / f"{name}-{i:0{digits}}.tar" for i in range(count)]
    index = folder / index_name(paths[0].name)
    if there := next((path for path in [*paths, index] if path.exists()), None):
        raise UserError(f"{there}: is there already: remove it, or choose another folder or name")
    for i, path in enumerate(paths):
        with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for position in order[i * per_shard : (i + 1) * per_shard].tolist():
                _write_sample(archive, images, position)
        yield path
    last = paths[-1].name[len(name) + 1 : -4]
    yield index_shards(str(folder / f"{name}-{{{0:0{digits}}..{last}}}.tar"), images.class_names)


def _write_sample(archive: tarfile.TarFile, images: ImageFiles, position: int) -> None:
    path = images.path(position)
    suffix = Path(str(path)).suffix.lower()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the image: {error.strerror}") from None
    label = str(int(images.labels[position])).encode()
    for end, data in ((".jpg" if suffix == ".jpeg" else suffix, content), (".cls", label)):
        member = tarfile.TarInfo(f"{position:08}{end}")  # no time, no owner: the same set gives the same bytes
        member.size, member.mode = len(data), 0o644
        archive.addfile(member, io.BytesIO(data))
