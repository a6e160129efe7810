"""ImageNet as printed: the archives in their published form, unpacked by the printed commands, then the docs' commands.

The images are 30 full-size photos of ImageNet, one of a class, and Tiny-ImageNet's with their boxes, as official XML.
Only lengths, batches and numbers of proposals are smaller than in the configs: sizes of nets and images are theirs.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from backbones.classification import build_classifier
from configs.classification import ClassificationConfig
from configs.loading import load_config
from tests.commands import ROOT, printed_commands
from tools import prepare_data, pretrain, test_cls, test_loc, train_loc

pytestmark = pytest.mark.slow
SCRIPTS = {"pretrain.py": pretrain, "test_cls.py": test_cls, "train_loc.py": train_loc, "test_loc.py": test_loc}
SMALL = {
    "pretrain.py": ["train.batch_size=2"],
    "train_loc.py": ["train.batch_size=2", "test.validation_view=center", "test.view=center"],
    "test_cls.py": ["data.test_scales=[224,256]"],
    "test_loc.py": ["test.scales=[224,256]", "test.proposals=3", "test.crops=2"],
}
ONE_STEP = ["schedule.iterations=1", "schedule.milestones=[]"]
FEW_PROPOSALS = ["model.rcnn.proposals_per_image=8", "model.rcnn.rois_per_image=2", "test.proposals=2"]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar file, compressed as its name says."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            add(archive, name, content)


def xml(wnid: str, name: str, size: tuple[int, int], box: tuple[int, ...]) -> bytes:
    """As ImageNet's, pixels from 0 and both ends included."""
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><folder>{wnid}</folder><filename>{name}</filename><size><width>{size[1]}</width><height>{size[0]}"
        f"</height><depth>3</depth></size><object><name>{wnid}</name><bndbox>{corners}</bndbox></object></annotation>"
    ).encode()


class Images:
    """What the archives are made of: for each class images, (H, W) and boxes."""

    def __init__(self, data_dir: Path) -> None:
        self.of: dict[str, list[tuple[bytes, tuple[int, int], tuple[int, ...]]]] = {}
        with zipfile.ZipFile(data_dir / "tiny_imagenet_20.zip") as archive:
            for wnid in archive.read("wnids.txt").decode().split():
                for line in archive.read(f"train/{wnid}/{wnid}_boxes.txt").decode().splitlines()[:4]:
                    name, *box = line.split()
                    content = archive.read(f"train/{wnid}/images/{name}")
                    self.of.setdefault(wnid, []).append((content, (64, 64), tuple(map(int, box))))
        for folder in sorted(path for path in (data_dir / "imagenet_sample_100").iterdir() if path.is_dir())[:30]:
            (path,) = folder.glob("*.JPEG")
            content = path.read_bytes()
            width, height = Image.open(io.BytesIO(content)).size
            box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
            self.of.setdefault(folder.name, []).insert(0, (content, (height, width), box))
        self.wnids = sorted(self.of)


@pytest.fixture(scope="module")
def tree(data_dir, tmp_path_factory) -> Path:
    """A --data-root whose ILSVRC folder the printed commands have filled."""
    root = tmp_path_factory.mktemp("imagenet")
    folder = root / "ILSVRC"
    folder.mkdir()
    images = Images(data_dir)
    numbers = {wnid: int(n) for n, wnid in enumerate(np.random.default_rng(0).permutation(images.wnids), 1)}
    train, boxes = {}, {}
    for wnid, items in images.of.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as inner:
            for number, (content, size, box) in enumerate(items[:3]):
                add(inner, f"{wnid}_{number}.JPEG", content)
                if number < 2:  # a part of the training images has boxes
                    boxes[f"{wnid}/{wnid}_{number}.xml"] = xml(wnid, f"{wnid}_{number}", size, box)
        train[f"{wnid}.tar"] = buffer.getvalue()
    held = [(wnid, images.of[wnid][-1]) for wnid in images.wnids[::20]]
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": item[0] for n, (_, item) in enumerate(held, 1)}
    val_boxes = {
        f"val/ILSVRC2012_val_{n:08d}.xml": xml(wnid, f"ILSVRC2012_val_{n:08d}", size, box)
        for n, (wnid, (_, size, box)) in enumerate(held, 1)
    }
    synsets = np.array(
        [(number, wnid) for wnid, number in numbers.items()], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    savemat(root / "meta.mat", {"synsets": synsets})
    kit = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{numbers[wnid]}\n" for wnid, _ in held).encode()
    tar(folder / "ILSVRC2012_img_train.tar", train)
    tar(folder / "ILSVRC2012_img_val.tar", val)
    tar(folder / "ILSVRC2012_img_test_v10102019.tar", {f"test/{k.replace('val', 'test')}": v for k, v in val.items()})
    tar(folder / "ILSVRC2012_bbox_train_v2.tar.gz", boxes)
    tar(folder / "ILSVRC2012_bbox_val_v3.tgz", val_boxes)
    tar(
        folder / "ILSVRC2012_devkit_t12.tar.gz",
        {f"{kit}/ILSVRC2012_validation_ground_truth.txt": truth, f"{kit}/meta.mat": (root / "meta.mat").read_bytes()},
    )
    with redirect_stdout(io.StringIO()) as printed:
        prepare_data.main(prepare_data.make_parser().parse_args(["imagenet", "--data-root", str(root)]))
    block = printed.getvalue().split("and run there\n\n")[1].split("\n\nAfterwards")[0]
    subprocess.run(["bash", "-ec", block], cwd=folder, check=True, capture_output=True)
    return root


def run(command: str, root: Path) -> None:
    """A printed command in this process: one process, and the small settings."""
    words = [word for word in shlex.split(command) if not word.startswith("--nproc")]
    script = next(Path(word).name for word in words if word.startswith("tools/"))
    given = words[words.index(f"tools/{script}") + 1 :]
    given = [str(ROOT / word) if word.startswith("configs/") else word for word in given]
    settings = [*SMALL[script], "data.num_workers=0", *(ONE_STEP if script.startswith(("pretrain", "train")) else [])]
    if script == "pretrain.py":
        config = load_config(given[given.index("--cfg") + 1], [], ClassificationConfig)
        settings += ["train.recalibrate_images=2"] if config.train.recalibrate else []
        settings += ["data.mean_images=4"] if isinstance(config.data.mean, str) else []
    settings += FEW_PROPOSALS if "loc_rcnn" in command and script == "train_loc.py" else []
    at = given.index("--set") + 1 if "--set" in given else len(given)
    given[at:at] = settings if "--set" in given else ["--set", *settings]
    module = SCRIPTS[script]
    module.main(module.make_parser().parse_args([*given, "--data-root", str(root), "--device", "cpu"]))


def commands(page: str, part: str = "") -> list[str]:
    """The commands of a page of the docs, or of its part under a heading, that run on ImageNet."""
    text = (ROOT / "docs" / page).read_text()
    text = text.split(f"## {part}\n")[1].split("\n## ")[0] if part else text
    return [command for command in dict.fromkeys(printed_commands(text)) if "configs/imagenet_" in command]


def save_random(path: Path, config: str, wnids: list[str]) -> None:
    """A checkpoint of a config's net, untrained."""
    values = load_config(ROOT / "configs" / f"{config}.yaml", [], ClassificationConfig)
    torch.manual_seed(len(str(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1, "kind": "classifier", "config": values.model_dump(mode="json"), "class_names": wnids,
        "preprocessing": {"mean": [123.675, 116.28, 103.53], "std": [1.0, 1.0, 1.0], "channel_order": "rgb"},
        "model": build_classifier(values.model, len(wnids)).state_dict(),
    }  # fmt: skip
    torch.save(content, path)


def test_the_printed_commands_from_archives_to_localisation_and_submissions(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wnids = sorted(path.name for path in (tree / "ILSVRC/Data/CLS-LOC/train").iterdir())
    assert len(wnids) == 50  # 20 and 30

    printed = commands("localisation.md", "On ImageNet")
    assert [command.split("tools/")[1].split(" ")[0] for command in printed][:4] == [
        "pretrain.py", "train_loc.py", "train_loc.py", "test_loc.py",
    ]  # fmt: skip
    for command in printed:
        run(command, tree)
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    assert metrics["images"] == 3
    assert 0 <= metrics["top5_error"] <= 1
    output = capsys.readouterr().out
    assert "to train on" in output
    assert "n01440764" in output

    for command in commands("pretraining.md"):
        if "test_cls" in command:
            run(command, tree)
    assert "3 images (val), 10crop" in capsys.readouterr().out

    # both submissions, after the same networks
    lines = (tmp_path / "results/submission.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(len(line.split()) == 25 for line in lines)
    numbers = {int(fields[0]) for line in lines for fields in [line.split()]}
    assert numbers <= set(range(1, 51))


def test_the_six_nets_of_table_5_are_one_command(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wnids = sorted(path.name for path in (tree / "ILSVRC/Data/CLS-LOC/train").iterdir())
    (command,) = [each for each in commands("paper.md") if "test_cls.py" in each and each.count("last.pt") == 6]
    for word in shlex.split(command):
        if word.endswith("last.pt"):
            save_random(tmp_path / word, Path(word).parent.name.removesuffix("_second"), wnids)
    run(command, tree)
    assert "3 images (val), multiscale, scores of 6 nets averaged" in capsys.readouterr().out
    (test_set,) = re.findall(r"--set (\"data\.test=.*\")", (ROOT / "docs/classification.md").read_text())
    run(f"{command} --out results --set {test_set}", tree)
    lines = (tmp_path / "results/submission.txt").read_text().splitlines()
    assert [len(set(line.split())) for line in lines] == [5] * 3
