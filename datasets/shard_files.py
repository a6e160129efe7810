"""The tar files of a set of shards, and the index beside them: what they hold, and the writing of both.

A sample is what has one key, the member's path up to the first dot of its last part: `00000017.jpg` and `00000017.cls`,
next to each other (WebDataset's layout). The index, `NAME.index.json` beside `NAME-000000.tar`, is written with the
shards. Imports no torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.downloads import digest_of
from configs.errors import UserError
from configs.files import read_json, replacing, write_text
from configs.inputs import open_file
from datasets.columns import Rows
from datasets.folders import ImageFiles
from datasets.listing import IMAGE_SUFFIXES

_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
MAX_SHARDS = 100_000
MAX_MEMBER = 1 << 30
"""Bytes. No image file is larger."""
MAX_LABEL = 1 << 10
"""Bytes of a .cls member."""
BLOCK = 512
"""Bytes of a member's header."""


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
    """The tar file's digest, in hexadecimal; empty: not known."""


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
            if os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK):
                raise UserError(f"{path}: is damaged or cut off at byte {end}: make or copy it again")
            file.seek(end)
            while part := file.read(1 << 20):
                if part.count(0) < len(part):  # tarfile takes a header of zeros for the end
                    raise UserError(
                        f"{path}: ends at byte {end}, but more follows: it is damaged there, or two tar files were "
                        "joined: make or copy it again"
                    )
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


# ---------------------------------------------------------------------------------------------- the index


def read_index(path: Path, names: list[str]) -> tuple[list[str] | None, list[Shard]]:
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
    if not sound or min([BLOCK, *offsets]) < BLOCK or min([0, *numbers]) < 0 or max([0, *sizes]) > MAX_MEMBER:
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
