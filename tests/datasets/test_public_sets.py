"""The published sets: their checksums, and the way from archives in their published form to what the configs expect."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets import public_sets
from datasets.classification import read_set
from datasets.download import plan, prepare
from datasets.folders import FETCHED
from datasets.public_sets import (
    BCCD_COMMIT,
    BCCD_TREE,
    PUBLIC_SETS,
    TINY,
    TINY_IMAGENET_20,
    PublicSet,
    git_tree,
)
from datasets.voc import read_voc
from tests.serving import Server, tar_of, zip_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def published(server: Server, name: str, content: bytes) -> PublicSet:
    """The set, its archive's size and checksum replaced by those of a small archive that the server has."""
    public_set = PUBLIC_SETS[name]
    (archive,) = public_set.archives
    server.files[archive.name] = content
    if archive.md5 is not None:
        archive = replace(archive, size=len(content), md5=hashlib.md5(content).hexdigest())
    return replace(public_set, archives=(archive,))


def test_checksums() -> None:
    archives = {item.name: item for public_set in PUBLIC_SETS.values() for item in public_set.archives}
    assert {name: item.md5 for name, item in archives.items() if "VOC" in name} == {
        "VOCtrainval_06-Nov-2007.tar": "c52e279531787c972589f7e41ab4ae64",
        "VOCtest_06-Nov-2007.tar": "b6e924de25625d8de591ea690078ad9f",
        "VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd",
    }
    # torchvision's for CIFAR-10, Avalanche's for Tiny-ImageNet
    assert archives["cifar-10-python.tar.gz"].md5 == "c58f30108f718f92721af3b95e74349a"
    assert archives["tiny-imagenet-200.zip"].md5 == "90528d7ca1a48142e341f4ef8d21d0de"
    assert len({item.md5 for item in archives.values()}) == len(archives) == 16
    assert all(len(item.md5) == 32 and item.size % 512 == 0 for name, item in archives.items() if name.endswith(".tar"))
    assert [name for name, item in archives.items() if item.md5 is None] == [f"BCCD_Dataset-{BCCD_COMMIT}.zip"]


def test_git_trees_are_gits(tmp_path: Path) -> None:
    """A folder whose name is the beginning of a file's: git sorts it as name/."""
    for name, text in (("a/x.txt", "1"), ("a/deep/y.txt", ""), ("a.txt", "2"), ("a-b", "3"), ("LICENSE", "4")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def git(*arguments: str) -> str:
        command = ["git", f"--git-dir={tmp_path}/.git", f"--work-tree={tmp_path}/set", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    assert git_tree(tmp_path / "set") == git("write-tree")
    assert git_tree(tmp_path / "set", leave_out=("LICENSE",)) != git("write-tree")


# ------------------------------------------------------------------------------------------------ CIFAR-10


def cifar10_archive() -> tuple[bytes, np.ndarray, list[int]]:
    """cifar-10-python.tar.gz with 5 x 900 training and 1,100 test images; the training images and labels in order."""
    rng = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    buffer, planes, labels = io.BytesIO(), [], []
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as file:
        for name in names:
            count = 1100 if name == "test_batch" else 900
            data, own = rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()
            planes, labels = (planes, labels) if name == "test_batch" else ([*planes, data], [*labels, *own])
            content = pickle.dumps({b"data": data, b"labels": own}, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), np.concatenate(planes), labels


def test_cifar10_and_its_first_images(server: Server, tmp_path: Path) -> None:
    content, planes, labels = cifar10_archive()
    pixels = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    prepare(published(server, "cifar10", content), tmp_path, mirror=server.url)
    config = load_config(CONFIGS / "cifar_resnet20.yaml", [], ClassificationConfig)
    whole = read_set(config.data.train, tmp_path)
    assert (whole.images == pixels).all()
    assert whole.labels.tolist() == labels

    prepare(published(server, "cifar10_5k", content), tmp_path, mirror=server.url)
    assert sorted(path.name for path in (tmp_path / "cifar10_lossless_5k").iterdir() if path.is_dir()) == [
        "test",
        "train",
    ]
    config = load_config(CONFIGS / "cifar5k_resnet20.yaml", [], ClassificationConfig)
    first, test = read_set(config.data.train, tmp_path), read_set(config.data.test, tmp_path)
    assert (len(first), len(test)) == (4000, 1000)
    order = np.argsort(labels[:4000], kind="stable")  # by class, and in a class by number
    assert (first.images == pixels[:4000][order]).all()
    assert first.labels.tolist() == sorted(labels[:4000])


# ------------------------------------------------------------------------------------------------ Tiny-ImageNet

WNIDS = ["n01443537", "n01629819", "n01784675"]  # the second is not one of the 20


def tiny_archive(images: int = 500) -> bytes:
    """tiny-imagenet-200.zip with three classes."""
    files = {f"{TINY}/wnids.txt": "".join(f"{wnid}\n" for wnid in reversed(WNIDS)).encode()}
    files[f"{TINY}/words.txt"] = b"n00001740\tentity\n" + "".join(f"{wnid}\tx, y\n" for wnid in WNIDS).encode()
    rows, picture = [], cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    for wnid in WNIDS:
        names = [f"{wnid}_{number}.JPEG" for number in range(images)]
        files |= {f"{TINY}/train/{wnid}/images/{name}": picture for name in names}
        files[f"{TINY}/train/{wnid}/{wnid}_boxes.txt"] = "".join(f"{name}\t0\t1\t62\t63\n" for name in names).encode()
    for number in range(3 * 50):
        files[f"{TINY}/val/images/val_{number}.JPEG"] = picture
        rows.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t1\t62\t63\n")
    files[f"{TINY}/val/val_annotations.txt"] = "".join(rows).encode()
    files[f"{TINY}/test/images/test_0.JPEG"] = picture
    return zip_of(files)


def test_tiny_imagenet_whole_and_twenty_classes(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(public_sets, "TINY_IMAGENET_20", {wnid: "" for wnid in WNIDS if wnid in TINY_IMAGENET_20})
    content = tiny_archive()
    whole = published(server, "tiny_imagenet", content)
    twenty = published(server, "tiny_imagenet_20", content)
    config = load_config(CONFIGS / "tiny_imagenet_resnet18.yaml", [], ClassificationConfig)

    prepare(twenty, tmp_path, mirror=server.url)
    for source, count in ((config.data.train, 500), (config.data.val, 50)):
        images = read_set(source, tmp_path)
        assert images.class_names == [WNIDS[0], WNIDS[2]]
        assert np.bincount(images.labels).tolist() == [count, count]
    assert len(list((tmp_path / TINY / "val/images").iterdir())) == 100
    assert (tmp_path / TINY / "wnids.txt").read_text().split() == [WNIDS[2], WNIDS[0]]
    assert not (tmp_path / TINY / "test").exists()
    assert "unpacked already" in plan(twenty, tmp_path)[0]
    assert "download" in plan(whole, tmp_path)[0]

    prepare(whole, tmp_path, mirror=server.url)  # the others join them
    assert np.bincount(read_set(config.data.train, tmp_path).labels).tolist() == [500] * 3
    assert np.bincount(read_set(config.data.val, tmp_path).labels).tolist() == [50] * 3
    with pytest.raises(UserError, match=r"tiny-imagenet-200: is there already, and is not known to be the 20 classes"):
        prepare(twenty, tmp_path, mirror=server.url)


def test_too_few_images_are_another_archive(server: Server, tmp_path: Path) -> None:
    whole = published(server, "tiny_imagenet", tiny_archive(images=3))
    with pytest.raises(UserError, match="class n01784675 has 3 training and 50 validation images, not 500 and 50"):
        prepare(whole, tmp_path, mirror=server.url)
    assert not (tmp_path / TINY).exists()


# ------------------------------------------------------------------------------------------------ BCCD


def bccd_archive(extra: str = "") -> bytes:
    xml = """<annotation><size><width>640</width><height>480</height><depth>3</depth></size><object><name>RBC</name>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""
    top = f"BCCD_Dataset-{BCCD_COMMIT}"
    return zip_of(
        {
            f"{top}/": b"", f"{top}/LICENSE": b"MIT", f"{top}/export.py": b"", f"{top}/dataset/BCCD/x.txt": b"",
            f"{top}/BCCD/": b"", f"{top}/BCCD/Annotations/a.xml": xml.encode(),
            f"{top}/BCCD/JPEGImages/a.jpg": cv2.imencode(".jpg", np.zeros((480, 640, 3), np.uint8))[1].tobytes(),
            f"{top}/BCCD/ImageSets/Main/trainval.txt": f"a\n{extra}".encode(),
        }
    )  # fmt: skip


def test_bccd_is_checked_by_its_tree_in_git(server: Server, tmp_path: Path, monkeypatch) -> None:
    bccd = published(server, "bccd", bccd_archive())
    server.ranges = False  # as GitHub
    with pytest.raises(UserError, match=rf"git tree is [0-9a-f]{{40}}, not {BCCD_TREE} of commit {BCCD_COMMIT[:7]}"):
        prepare(bccd, tmp_path, mirror=server.url)
    assert not list(tmp_path.iterdir())  # a damaged download is not kept for the next call

    with pytest.raises(UserError) as error:
        prepare(bccd, tmp_path, mirror=server.url)
    monkeypatch.setattr(public_sets, "BCCD_TREE", str(error.value).split("git tree is ")[1][:40])
    prepare(bccd, tmp_path, mirror=server.url)
    assert sorted(path.name for path in (tmp_path / "bccd").iterdir()) == [
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "LICENSE",
    ]
    assert len(read_voc(tmp_path / "bccd", "trainval")) == 1
    server.files[bccd.archives[0].name] = bccd_archive(extra="a")
    with pytest.raises(UserError, match="git tree is"):
        prepare(bccd, tmp_path / "other", mirror=server.url)


def test_archives_that_are_here_already(tmp_path: Path) -> None:
    """Nothing is fetched; a wrong file is refused and stays."""
    folder = tmp_path / "given"
    folder.mkdir()
    content = tar_of({"kit/a.txt": b"1"})
    archive = replace(PUBLIC_SETS["voc2012"].archives[0], size=len(content), md5=hashlib.md5(content).hexdigest())
    public_set = replace(PUBLIC_SETS["voc2012"], archives=(archive,))
    with pytest.raises(UserError, match=r"11-May-2012\.tar: there is no such file: --archives is the folder"):
        prepare(public_set, tmp_path / "data", archives=folder)
    (folder / archive.name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"its md5 is .*, but .* has {archive.md5}: fetch it again"):
        prepare(public_set, tmp_path / "data", archives=folder)
    (folder / archive.name).write_bytes(content)
    lines = plan(public_set, tmp_path / "data", archives=folder)
    assert f"take it from {folder}" in lines[0]
    assert f"needs about {len(content) / 1e6:.2f} MB" in lines[-1]  # for the files alone
    prepare(public_set, tmp_path / "data", archives=folder)
    assert (tmp_path / "data/kit/a.txt").read_bytes() == b"1"
    assert (folder / archive.name).is_file()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("cifar_resnet20", "cifar10"),
        ("cifar5k_resnet20", "cifar10_5k"),
        ("tiny_imagenet_resnet18", "tiny_imagenet"),
        ("imagenet_resnet18", "imagenet"),
    ],
)
def test_a_set_that_is_not_there_names_the_tool(tmp_path: Path, config: str, name: str) -> None:
    source = load_config(CONFIGS / f"{config}.yaml", [], ClassificationConfig).data.train
    with pytest.raises(UserError, match=rf"get it with: python tools/prepare_data\.py {name} --data-root {tmp_path}$"):
        read_set(source, tmp_path)


def test_the_folders_that_are_named_are_those_of_the_sets() -> None:
    assert {folder: name for folder, name in FETCHED.items() if folder != "ILSVRC"} == {
        PUBLIC_SETS[name].result: name for name in ("cifar10", "cifar10_5k", "tiny_imagenet", "bccd")
    }


def test_bccd_that_is_not_there_names_the_tool(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"get it with: python tools/prepare_data\.py bccd --data-root {tmp_path}$"):
        read_voc(tmp_path / "bccd", "trainval")
    (tmp_path / "bccd").mkdir()  # what is there and is not the set is another mistake
    with pytest.raises(UserError, match="a VOC folder holds"):
        read_voc(tmp_path / "bccd", "trainval")
