"""The script as a person calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "archives"),
    [
        ("voc2007", ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]),
        ("coco2017", ["train2017.zip", "val2017.zip", "annotations_trainval2017.zip"]),
    ],
)
def test_dry_run_says_what_would_be_done_and_does_nothing(root: Path, tmp_path: Path, name: str, archives) -> None:
    result = call(root, name, "--data-root", str(tmp_path / "data"), "--dry-run", "--mirror", "http://mirror/x/")
    assert result.returncode == 0, result.stderr
    for archive in archives:
        assert f"http://mirror/x/{archive}" in result.stdout
    assert "md5" in result.stdout
    assert "disk space" in result.stdout
    assert not list(tmp_path.iterdir())


def test_imagenet_is_explained(root: Path, tmp_path: Path) -> None:
    result = call(root, "imagenet", "--data-root", str(tmp_path))
    assert result.returncode == 0
    for text in (
        "image-net.org",
        "ILSVRC2012_img_train.tar",
        f"{tmp_path}/ILSVRC/Data/CLS-LOC",
        "bbox_val_v3",
        "${f%.tar}",
        "1,281,167",
    ):
        assert text in result.stdout


def test_imagenet_det_is_explained(root: Path, tmp_path: Path) -> None:
    result = call(root, "imagenet_det", "--data-root", str(tmp_path))
    assert result.returncode == 0
    for text in ("image-net.org", "ILSVRC2017_DET.tar.gz", f"{tmp_path}/ILSVRC/ImageSets/DET", "val1.txt", "20,121"):
        assert text in result.stdout


def test_mistakes_take_one_line(root: Path, tmp_path: Path) -> None:
    result = call(root, "voc2008")
    assert result.returncode == 2
    assert "voc2007" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_download_through_the_script(tmp_path: Path, monkeypatch, capsys) -> None:
    """The whole way in this process with a small set, for the published ones are too large; a folder is the mirror."""
    import hashlib
    import io
    import tarfile

    from datasets.public_sets import PUBLIC_SETS, Archive, PublicSet
    from tools import prepare_data
    from tools.runtime import cli

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("VOCdevkit/VOC2012/readme.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"hello"))
    data = buffer.getvalue()
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "kit.tar").write_bytes(data)
    small = PublicSet(
        (Archive("http://x/kit.tar", len(data), hashlib.md5(data).hexdigest()),), ".", "VOCdevkit/VOC2012"
    )
    monkeypatch.setitem(PUBLIC_SETS, "voc2012", small)

    def run(mirror: str) -> int | str | None:
        arguments = ["voc2012", "--data-root", str(tmp_path / "data"), "--mirror", mirror]
        with pytest.raises(SystemExit) as exit_:
            cli.run(prepare_data.main, prepare_data.make_parser(), arguments)
        return exit_.value.code

    assert run((tmp_path / "mirror").as_uri()) == 0
    assert (tmp_path / "data" / "VOCdevkit" / "VOC2012" / "readme.txt").read_bytes() == b"hello"
    assert f"voc2012 is in {tmp_path}/data/VOCdevkit/VOC2012" in capsys.readouterr().out
