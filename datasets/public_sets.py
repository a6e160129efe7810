"""The public data sets that can be had without an account: where they lie, how they are checked, what is kept of them.

`datasets.download` fetches and unpacks them. A checksum is the authors' own or, where they state none, that of a
library (COCO: pytorchcocotools; Tiny-ImageNet: Avalanche). GitHub packs BCCD's archive anew at each call, so its files
are compared with the hash of their tree in git. Imports only the standard library.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from configs.errors import UserError
from configs.files import read_lines, write_text


@dataclass(frozen=True)
class Archive:
    """One published file."""

    url: str
    size: int | None
    """Bytes; None: not published."""
    md5: str | None
    """None: there is no published one."""
    saved_as: str | None = None
    """The file's name, where it is not the URL's last part."""

    @property
    def name(self) -> str:
        return self.saved_as or self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class PublicSet:
    """A data set that can be had without an account."""

    archives: tuple[Archive, ...]
    folder: str
    """Where the archives are unpacked, relative to the data root."""
    result: str
    """What is there afterwards, relative to the data root."""
    part: str = ""
    """Name of the part of the set that is kept; "": all of it."""
    keep: Callable[[str], str | None] | None = None
    """The place of a member of the archives in the folder, or None for what is left out; default: all as they are."""
    finish: Callable[[Path], None] | None = None
    """Called with the folder of what was unpacked, before it appears; raises a UserError where it is not complete."""


# ------------------------------------------------------------------------------------------------ Tiny-ImageNet

TINY = "tiny-imagenet-200"
TINY_IMAGENET_20 = {
    "n01443537": "goldfish", "n01784675": "centipede", "n02002724": "black stork", "n02123045": "tabby",
    "n02231487": "walking stick", "n02410509": "bison", "n02669723": "academic gown", "n02814533": "beach wagon",
    "n02909870": "bucket", "n03026506": "Christmas stocking", "n03255030": "dumbbell", "n03584254": "iPod",
    "n03770439": "miniskirt", "n03937543": "pill bottle", "n04070727": "refrigerator", "n04259630": "sombrero",
    "n04398044": "teapot", "n04532670": "viaduct", "n07615774": "ice lolly", "n07871810": "meat loaf",
}  # fmt: skip
"""The classes that this project's figures on Tiny-ImageNet are of, unless they say otherwise."""


def of_the_twenty(member: str) -> str | None:
    """The member, if one of the 20 classes or the whole set needs it; the validation images are sorted out later."""
    parts = PurePosixPath(member).parts
    if len(parts) > 1 and parts[1] == "test":
        return None
    return member if len(parts) < 3 or parts[1] != "train" or parts[2] in TINY_IMAGENET_20 else None


def keep_the_twenty(folder: Path) -> None:
    """Leave of the unpacked validation set and of the lists what belongs to the 20 classes.

    Raises:
        UserError: a class does not have its 500 or 50 images.
    """
    root = folder / TINY
    listed = root / "val/val_annotations.txt"
    lines = [line for line in read_lines(listed, "file of boxes") if line.strip()]
    ours = [line for line in lines if line.split("\t")[1] in TINY_IMAGENET_20]
    for line in set(lines) - set(ours):
        (root / "val/images" / line.split("\t")[0]).unlink()
    write_text(listed, "\n".join(ours) + "\n")
    for name in ("wnids.txt", "words.txt"):
        kept = [line for line in read_lines(root / name, "list of classes") if line[:9] in TINY_IMAGENET_20]
        write_text(root / name, "\n".join(kept) + "\n")
    check_tiny(folder, list(TINY_IMAGENET_20))


def check_tiny(folder: Path, wnids: list[str] | None = None) -> None:
    """See that each class has 500 training and 50 validation images.

    Raises:
        UserError: names the class and both counts.
    """
    root = folder / TINY
    wnids = wnids or [line.strip() for line in read_lines(root / "wnids.txt", "list of classes") if line.strip()]
    labels = [line.split("\t")[1] for line in read_lines(root / "val/val_annotations.txt", "file of boxes") if line]
    for wnid in wnids:
        counts = len(list((root / "train" / wnid / "images").glob("*.JPEG"))), labels.count(wnid)
        if counts != (500, 50):
            raise UserError(
                f"{TINY}: class {wnid} has {counts[0]} training and {counts[1]} validation images, not 500 and 50: the "
                "archive is not what was published"
            )


# ------------------------------------------------------------------------------------------------ CIFAR-10


def first_of_cifar10(folder: Path) -> None:
    """Replace the unpacked batches by the first 4,000 training and 1,000 test images as PNG files, by class.

    Their names are their numbers in the batches. The cifar5k configs train on them.
    """
    import cv2  # takes a while, and is needed here only

    from datasets.cifar import read_cifar10

    batches = folder / "cifar-10-batches-py"
    for split, count in (("train", 4000), ("test", 1000)):
        images = read_cifar10(batches, split)
        for index in range(count):
            place = folder / split / images.class_names[images.labels[index]]
            place.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / f"{index:05d}.png"), images.images[index][:, :, ::-1])
    shutil.rmtree(batches)


# ------------------------------------------------------------------------------------------------ BCCD

BCCD_COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
BCCD_TREE = "e4ad516b612329e16143e94f47a478d5832395d3"
"""What `git rev-parse <commit>:BCCD` says: a hash of the names and contents of all files."""


def bccd_place(member: str) -> str | None:
    """BCCD_Dataset-<commit>/BCCD/... -> bccd/...; its licence beside them; nothing else."""
    parts = PurePosixPath(member).parts
    if parts[1:] == ("LICENSE",):
        return "bccd/LICENSE"
    rest = "/".join(parts[2:])
    return f"bccd/{rest}" if parts[1:2] == ("BCCD",) and rest and not member.endswith("/") else None


def check_bccd(folder: Path) -> None:
    """Compare the unpacked files with the published commit.

    Raises:
        UserError: they differ.
    """
    found = git_tree(folder / "bccd", leave_out=("LICENSE",))
    if found != BCCD_TREE:
        raise UserError(
            f"bccd: the files' git tree is {found}, not {BCCD_TREE} of commit {BCCD_COMMIT[:7]}: the archive is "
            "damaged or another one: call again"
        )


def git_tree(folder: Path, leave_out: tuple[str, ...] = ()) -> str:
    """The SHA-1 by which git names a folder of ordinary files (git-hash-object, `tree`)."""
    rows = []
    for entry in folder.iterdir():
        if entry.name in leave_out:
            continue
        if entry.is_dir():
            rows.append((f"{entry.name}/", "40000", git_tree(entry)))
        else:
            rows.append((entry.name, "100644", _git_hash("blob", entry.read_bytes())))
    body = b"".join(f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(sha) for name, mode, sha in sorted(rows))
    return _git_hash("tree", body)


def _git_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


# ------------------------------------------------------------------------------------------------ the list

_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
_CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170498071, "c58f30108f718f92721af3b95e74349a"
)
_TINY = Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", 248100043, "90528d7ca1a48142e341f4ef8d21d0de")
_BCCD = Archive(
    f"https://github.com/Shenggan/BCCD_Dataset/archive/{BCCD_COMMIT}.zip", None, None, f"BCCD_Dataset-{BCCD_COMMIT}.zip"
)


def _coco_set(result: str, *archives: tuple[str, int | None, str]) -> PublicSet:
    found = tuple(Archive(f"{_COCO}/{place}", size, md5) for place, size, md5 in archives)
    return PublicSet(found, folder="coco", result=result)


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
    "coco2014": _coco_set(
        "coco/train2014, coco/val2014, coco/annotations",
        ("annotations/annotations_trainval2014.zip", 252872794, "0a379cfc70b0e71301e0f377548639bd"),
        ("zips/val2014.zip", 6645013297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
        ("zips/train2014.zip", 13510573713, "0da8c0bd3d6becc4dcb32757491aca88"),
    ),
    "coco2017": _coco_set(
        "coco/train2017, coco/val2017, coco/annotations",
        ("annotations/annotations_trainval2017.zip", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        ("zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
        ("zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    ),
    "coco_test2015": _coco_set(
        "coco/test2015, coco/annotations",
        ("annotations/image_info_test2015.zip", None, "d9616c9742182f530e2e6d8c6ccd916a"),
        ("zips/test2015.zip", None, "65562e58af7d695cc47356951578c041"),
    ),
    "coco_test2017": _coco_set(
        "coco/test2017, coco/annotations",
        ("annotations/image_info_test2017.zip", None, "85da7065e5e600ebfee8af1edb634eb5"),
        ("zips/test2017.zip", 6646970404, "77ad2c53ac5d0aea611d422c0938fb35"),
    ),
    "cifar10": PublicSet((_CIFAR10,), folder=".", result="cifar-10-batches-py"),
    "cifar10_5k": PublicSet(
        (_CIFAR10,), folder="cifar10_lossless_5k", result="cifar10_lossless_5k", finish=first_of_cifar10
    ),
    "tiny_imagenet": PublicSet((_TINY,), folder=".", result=TINY, finish=check_tiny),
    "tiny_imagenet_20": PublicSet(
        (_TINY,), folder=".", result=TINY, part="20 classes", keep=of_the_twenty, finish=keep_the_twenty
    ),
    "bccd": PublicSet((_BCCD,), folder=".", result="bccd", keep=bccd_place, finish=check_bccd),
}  # fmt: skip
"""By the names that `tools/prepare_data.py` takes."""
