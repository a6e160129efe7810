"""Downloads of public data sets: resumed after a cut, verified by checksum, unpacked without leaving the folder.

Imports neither torch nor the rest of the project but its error class.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from configs.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Archive:
    """One published file."""

    url: str
    size: int
    """Bytes."""
    md5: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class PublicSet:
    """A data set that can be had without an account."""

    archives: tuple[Archive, ...]
    folder: str
    """Where the archives are unpacked, relative to the data root."""
    result: str
    """What is there afterwards, relative to the data root."""


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"

PUBLIC_SETS = {
    "voc2007": PublicSet(
        (
            Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
            Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
        ),
        folder=".",
        result="VOCdevkit/VOC2007",
    ),
    "voc2012": PublicSet(
        (Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),),
        folder=".",
        result="VOCdevkit/VOC2012",
    ),
    "coco2014": PublicSet(
        (
            Archive(f"{_COCO}/annotations/annotations_trainval2014.zip", 252872794, "0a379cfc70b0e71301e0f377548639bd"),
            Archive(f"{_COCO}/zips/val2014.zip", 6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
            Archive(f"{_COCO}/zips/train2014.zip", 13510573713, "0da8c0bd3d6becc4dcb32757491aca88"),
        ),
        folder="coco",
        result="coco/train2014, coco/val2014, coco/annotations",
    ),
    "coco2017": PublicSet(
        (
            Archive(f"{_COCO}/annotations/annotations_trainval2017.zip", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
            Archive(f"{_COCO}/zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
            Archive(f"{_COCO}/zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
        ),
        folder="coco",
        result="coco/train2017, coco/val2017, coco/annotations",
    ),
}


def prepare(public_set: PublicSet, data_root: Path, *, mirror: str | None = None, keep_archives: bool = False) -> None:
    """Download, verify and unpack what is not there yet; may be interrupted and called again at any time.

    Args:
        public_set: which.
        data_root: the folder of all data.
        mirror: a URL under which the archives lie by their bare names, in place of the official one.
        keep_archives: do not remove an archive after it is unpacked.

    Raises:
        UserError: no connection, too little disk space, a wrong checksum, or an archive that would write elsewhere.
    """
    folder = data_root / public_set.folder
    todo = [archive for archive in public_set.archives if not is_unpacked(archive, folder)]
    check_space(folder, todo)
    folder.mkdir(parents=True, exist_ok=True)
    for archive in todo:
        path = folder / archive.name
        download(archive, path, mirror=mirror)
        unpack(path, folder)
        _marker(archive, folder).touch()
        if not keep_archives:
            path.unlink()


def plan(public_set: PublicSet, data_root: Path, *, mirror: str | None = None) -> list[str]:
    """What `prepare` would do, a line for each step; writes nothing."""
    folder = data_root / public_set.folder
    lines = []
    for archive in public_set.archives:
        if is_unpacked(archive, folder):
            lines.append(f"{archive.name}: is unpacked already")
            continue
        have = _bytes_there(folder / archive.name)
        part = f" ({_gigabytes(have)} of it are there)" if have else ""
        lines.append(f"{archive.name}: download {_gigabytes(archive.size)}{part} from {_url(archive, mirror)}")
        lines.append(f"{archive.name}: verify md5 {archive.md5}, unpack into {folder}")
    todo = [archive for archive in public_set.archives if not is_unpacked(archive, folder)]
    free = shutil.disk_usage(_existing_parent(folder)).free
    lines.append(f"disk space: needs about {_gigabytes(_space_needed(folder, todo))}, {_gigabytes(free)} are free")
    return lines


def is_unpacked(archive: Archive, folder: Path) -> bool:
    """Whether an earlier call has finished with this archive."""
    return _marker(archive, folder).exists()


def check_space(folder: Path, archives: list[Archive]) -> None:
    """Raise a UserError where the disk cannot hold what is still to come."""
    needed, free = _space_needed(folder, archives), shutil.disk_usage(_existing_parent(folder)).free
    if needed > free:
        raise UserError(
            f"{folder}: needs about {_gigabytes(needed)} of disk space, {_gigabytes(free)} are free: "
            "choose another disk with --data-root"
        )


# ------------------------------------------------------------------------------------------------ download


def download(archive: Archive, path: Path, *, mirror: str | None = None, attempts: int = 5, pause: float = 2.0) -> None:
    """The verified file at `path`; what an earlier attempt has left in `path`.part is continued.

    Args:
        archive: what to fetch.
        path: where to.
        mirror: see `prepare`.
        attempts: how often in a row a connection may break without any progress.
        pause: seconds before the second attempt, doubled for each further one.

    Raises:
        UserError: no connection, or the checksum differs (the file is removed then).
    """
    if path.is_file():
        _check_md5(path, archive)
        return
    part = path.with_name(path.name + ".part")
    url, failures = _url(archive, mirror), 0
    while (done := _bytes_there(path)) < archive.size:
        try:
            _fetch(url, part, done, archive)
        except HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise UserError(f"{url}: the server answers {error.code} {error.reason}: try --mirror URL") from error
            reason: object = f"the server answers {error.code}"
        except _TooLong:
            part.unlink()
            raise UserError(
                f"{url}: sends more than the {archive.size} bytes of {archive.name}: another file: try --mirror URL"
            ) from None
        except (URLError, HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
                raise UserError(f"{part}: cannot be written: {error.strerror}") from error
            reason = getattr(error, "reason", None) or error
        else:
            reason = "the connection was closed early"
        if _bytes_there(path) >= archive.size:
            break
        failures = 0 if _bytes_there(path) > done else failures + 1
        if failures >= attempts:
            raise UserError(f"{url}: cannot be downloaded: {reason}: call again to continue, or try --mirror URL")
        time.sleep(pause * 2 ** max(0, failures - 1))
    _check_md5(part, archive)
    os.replace(part, path)


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG)
"""Errors of the disk, not of the network: trying again is no use."""


class _TooLong(Exception):
    """A server sends more than the file has."""


def _fetch(url: str, part: Path, done: int, archive: Archive) -> None:
    """Append to `part` what is missing; begin anew where the server cannot continue."""
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urlopen(request, timeout=_TIMEOUT) as response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        start = done if continued else 0
        with (
            part.open("ab" if continued else "wb") as file,
            tqdm(total=archive.size, initial=start, desc=archive.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(_CHUNK):
                start += len(chunk)
                if start > archive.size:
                    raise _TooLong
                file.write(chunk)
                bar.update(len(chunk))


def _check_md5(path: Path, archive: Archive) -> None:
    """Compare a file with its published checksum; remove it where it differs."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        path.unlink()
        raise UserError(
            f"{path}: its md5 is {found}, but {archive.name} has {archive.md5}: the file was removed, call again"
        )


# ------------------------------------------------------------------------------------------------ unpacking


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder, after a look at all of its names; files appear when all are unpacked.

    Raises:
        UserError: a member would be written outside the folder, or is a link out of it or no ordinary file; nothing is
            written then. Or the archive is broken.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking-"))
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, staging)
        elif tarfile.is_tarfile(path):
            _unpack_tar(path, staging)
        else:
            raise UserError(f"{path}: is neither a tar nor a zip archive")
        _merge(staging, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        for member in members:
            _check_name(member.name, path)
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{path}: {member.name} is no ordinary file: the archive is not what was published")
        for member in tqdm(members, desc=f"unpacking {path.name}", unit="file", disable=None):
            if hasattr(tarfile, "data_filter"):  # from 3.11.4; a second lock on the door
                archive.extract(member, folder, filter="data")
            else:
                archive.extract(member, folder)


def _unpack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _check_name(member.filename, path)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{path}: {member.filename} is a link: the archive is not what was published")
        for member in tqdm(members, desc=f"unpacking {path.name}", unit="file", disable=None):
            archive.extract(member, folder)


def _check_name(name: str, archive: Path) -> None:
    """Refuse names that lead out of the folder, on any operating system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise UserError(f"{archive}: {name!r} leads out of the folder: the archive is not what was published")


def _merge(source: Path, target: Path) -> None:
    """Move a tree's files into another tree; both lie on one disk."""
    for directory, _, files in os.walk(source):
        there = target / Path(directory).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in files:
            os.replace(Path(directory) / name, there / name)


# ------------------------------------------------------------------------------------------------ small things


def _url(archive: Archive, mirror: str | None) -> str:
    return f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url


def _marker(archive: Archive, folder: Path) -> Path:
    """An empty file that says that the archive is unpacked."""
    return folder / f".{archive.name}.unpacked"


def _bytes_there(path: Path) -> int:
    """Bytes of the file or of its beginning that are on the disk."""
    for candidate in (path, path.with_name(path.name + ".part")):
        if candidate.is_file():
            return candidate.stat().st_size
    return 0


def _space_needed(folder: Path, archives: list[Archive]) -> int:
    """Bytes: the rest of the downloads, and as much again for the files, which compress by next to nothing."""
    return sum(2 * archive.size - min(archive.size, _bytes_there(folder / archive.name)) for archive in archives)


def _existing_parent(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
