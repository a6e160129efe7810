"""Public data sets: downloaded, verified by checksum, unpacked without leaving the folder.

Which sets there are says `datasets.public_sets`. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from configs import downloads
from configs.errors import UserError
from datasets.public_sets import Archive, PublicSet

_MOST = 1 << 30
"""Bytes that are taken of an archive whose size nobody says."""


def prepare(
    public_set: PublicSet,
    data_root: Path,
    *,
    mirror: str | None = None,
    archives: Path | None = None,
    keep_archives: bool = False,
) -> None:
    """Download, verify and unpack what is not there yet; may be interrupted and called again at any time.

    Args:
        public_set: which.
        data_root: the folder of all data.
        mirror: a URL under which the archives lie by their bare names, in place of the official one.
        archives: a folder that holds the archives already: nothing is downloaded, and they stay there.
        keep_archives: do not remove a downloaded archive after it is unpacked.

    Raises:
        UserError: no connection, too little disk space, a wrong checksum, an archive that would write elsewhere, or a
            part of a set asked for where the whole is.
    """
    folder = data_root / public_set.folder
    todo = [archive for archive in public_set.archives if not is_unpacked(archive, folder, public_set.part)]
    if public_set.part and todo and (data_root / public_set.result).exists():
        raise UserError(
            f"{data_root / public_set.result}: is there already, and is not known to be the {public_set.part} asked "
            "for: remove it, or choose another --data-root"
        )
    check_space(folder, todo, downloads=archives is None)
    folder.mkdir(parents=True, exist_ok=True)
    for archive in todo:
        path = (archives or folder) / archive.name
        if archives is None:
            download(archive, path, mirror=mirror)
        else:
            _check_given(path, archive)
        try:
            unpack(path, folder, keep=public_set.keep, finish=public_set.finish)
        except UserError:
            if archives is None and archive.md5 is None:  # the archive was not verified before: it may be damaged
                path.unlink()
            raise
        _marker(archive, folder).write_text(public_set.part)
        if archives is None and not keep_archives:
            path.unlink()


def plan(
    public_set: PublicSet, data_root: Path, *, mirror: str | None = None, archives: Path | None = None
) -> list[str]:
    """What `prepare` would do, a line for each step; writes nothing."""
    folder = data_root / public_set.folder
    lines = []
    todo = [archive for archive in public_set.archives if not is_unpacked(archive, folder, public_set.part)]
    for archive in public_set.archives:
        if archive not in todo:
            lines.append(f"{archive.name}: is unpacked already")
            continue
        size = "some MB" if archive.size is None else _gigabytes(archive.size)
        have = _bytes_there(folder / archive.name)
        part = f" ({_gigabytes(have)} of it are there)" if have else ""
        source = f"take it from {archives}" if archives else f"download {size}{part} from {_url(archive, mirror)}"
        check = f"md5 {archive.md5}" if archive.md5 else "the files, for no checksum of the archive is published"
        lines.append(f"{archive.name}: {source}")
        lines.append(f"{archive.name}: verify {check}, unpack into {folder}")
    free = shutil.disk_usage(_existing_parent(folder)).free
    needed = _space_needed(folder, todo, downloads=archives is None)
    lines.append(f"disk space: needs about {_gigabytes(needed)}, {_gigabytes(free)} are free")
    return lines


def is_unpacked(archive: Archive, folder: Path, part: str = "") -> bool:
    """Whether an earlier call has finished with this archive, and took the same part of it ("": all)."""
    marker = _marker(archive, folder)
    return marker.is_file() and marker.read_text() == part


def check_space(folder: Path, archives: list[Archive], *, downloads: bool = True) -> None:
    """Raise a UserError where the disk cannot hold what is still to come: the files, and the archives if fetched."""
    needed = _space_needed(folder, archives, downloads=downloads)
    free = shutil.disk_usage(_existing_parent(folder)).free
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
        attempts, pause: see `configs.downloads.download`.

    Raises:
        UserError: no connection, or the checksum differs (the file is removed then).
    """
    if path.is_file():
        _check_md5(path, archive)
        return
    part, url = path.with_name(path.name + ".part"), _url(archive, mirror)
    try:
        downloads.download(
            url, part, limit=archive.size or _MOST, size=archive.size, attempts=attempts, pause=pause, title=path.name
        )
    except downloads.DownloadError as error:
        again = "" if error.final else "call again to continue, or "
        raise UserError(f"{url}: cannot be downloaded: {error}: {again}try --mirror URL") from None
    except OSError as error:
        raise UserError(f"{part}: cannot be written: {error.strerror}") from error
    _check_md5(part, archive)
    os.replace(part, path)


def _check_md5(path: Path, archive: Archive) -> None:
    """Compare a file with its published checksum, if there is one; remove it where it differs."""
    found = archive.md5 and downloads.digest_of(path, "md5")
    if found != archive.md5:
        path.unlink()
        raise UserError(
            f"{path}: its md5 is {found}, but {archive.name} has {archive.md5}: the file was removed, call again"
        )


def _check_given(path: Path, archive: Archive) -> None:
    """The same of a file of the user's, which stays."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file: --archives is the folder that holds {archive.name}")
    found = archive.md5 and downloads.digest_of(path, "md5")
    if found != archive.md5:
        raise UserError(f"{path}: its md5 is {found}, but {archive.name} has {archive.md5}: fetch it again")


# ------------------------------------------------------------------------------------------------ unpacking


def unpack(
    path: Path,
    folder: Path,
    *,
    keep: Callable[[str], str | None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Unpack a tar or zip archive into a folder, after a look at all of its names; files appear when all are unpacked.

    Args:
        path: the archive.
        folder: where to.
        keep: the place of a member in the folder, or None for what is left out; default: all as they are.
        finish: called with the folder of what is unpacked, before it appears.

    Raises:
        UserError: a member would be written outside the folder, or is a link out of it or no ordinary file; nothing is
            written then. Or the archive is broken.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking-"))
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, staging, keep)
        elif tarfile.is_tarfile(path):
            _unpack_tar(path, staging, keep)
        else:
            raise UserError(f"{path}: is neither a tar nor a zip archive")
        if finish is not None:
            finish(staging)
        _merge(staging, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_tar(path: Path, folder: Path, keep: Callable[[str], str | None] | None) -> None:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        for member in members:
            _check_name(member.name, path)
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{path}: {member.name} is no ordinary file: the archive is not what was published")
        for member in tqdm(members, desc=f"unpacking {path.name}", unit="file", disable=None):
            name = member.name if keep is None else keep(member.name)
            if name is None:
                continue
            member.name = name
            if hasattr(tarfile, "data_filter"):  # from 3.11.4; a second lock on the door
                archive.extract(member, folder, filter="data")
            else:
                archive.extract(member, folder)


def _unpack_zip(path: Path, folder: Path, keep: Callable[[str], str | None] | None) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            _check_name(member.filename, path)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{path}: {member.filename} is a link: the archive is not what was published")
        for member in tqdm(members, desc=f"unpacking {path.name}", unit="file", disable=None):
            name = member.filename if keep is None else keep(member.filename)
            if name is None:
                continue
            member.filename = name
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
    """A file that says that the archive is unpacked, and of which part of the set it holds the name."""
    return folder / f".{archive.name}.unpacked"


def _bytes_there(path: Path) -> int:
    """Bytes of the file or of its beginning that are on the disk."""
    for candidate in (path, path.with_name(path.name + ".part")):
        if candidate.is_file():
            return candidate.stat().st_size
    return 0


def _space_needed(folder: Path, archives: list[Archive], *, downloads: bool) -> int:
    """Bytes: the rest of the downloads, and as much again for the files, which compress by next to nothing."""
    sizes = [(archive.size or 0, _bytes_there(folder / archive.name)) for archive in archives]
    return sum(size + (size - min(size, there) if downloads else 0) for size, there in sizes)


def _existing_parent(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
