"""Downloads of weights from a server on this machine: names, checksums, cuts, mistakes, a machine without network."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import fetch as module
from backbones.fetch import fetch, is_name, locate
from backbones.pretrained import load_backbone_weights
from backbones.zoo import build_backbone
from configs.downloads import ATTEMPTS
from configs.errors import UserError
from tests.serving import Server, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server in place of all publishers', and an empty cache."""
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    with serving() as server:
        for variable, _ in module.BASES.values():
            monkeypatch.setenv(variable, server.url)
        yield server


DATA = np.random.default_rng(0).bytes(100_000)


def test_names_and_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path))
    for variable, _ in module.BASES.values():
        monkeypatch.delenv(variable, raising=False)
    found = locate("torchvision://resnet50-0676ba61.pth")
    assert found.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert found.path == tmp_path / "torchvision" / "resnet50-0676ba61.pth"
    assert found.checksum == ("sha256", "0676ba61")
    found = locate(Path("detectron2://COCO-Detection/x/1/model_final_f97cb7.pkl"))  # one slash is left of two
    assert found.url == "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/x/1/model_final_f97cb7.pkl"
    assert found.name == "detectron2://COCO-Detection/x/1/model_final_f97cb7.pkl"
    assert found.checksum == ("md5", "f97cb7")
    assert locate("hf://me/repo/a b.pt").url == "https://huggingface.co/me/repo/resolve/main/a%20b.pt"
    assert locate("hf://me/repo@v1.0/sub/a.pt").url == "https://huggingface.co/me/repo/resolve/v1.0/sub/a.pt"
    one, other = (locate(f"https://example.org/{folder}/a.pt?x=1").path for folder in "ab")
    assert one.name == other.name == "a.pt"
    assert one != other
    assert [is_name(text) for text in ("runs/a.pt", "C:/a.pt", "hf://a/b/c", "torchvision:IMAGENET1K_V1")] == [
        False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://me/repo", "write hf://owner/repo/file"),
        ("torchvision://../../x.pth", "leads out of the folder"),
        ("detectron2://a/..\\..\\x.pkl", "leads out of the folder"),
        ("https://example.org", "names no file"),
        ("torchvision://resnet18", "model.weights=torchvision:IMAGENET1K_V1"),
        ("ftp://example.org/a.pt", "write torchvision://"),
    ],
)
def test_bad_names(name, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        locate(name)


def test_a_download_shows_the_licence_and_comes_once(server, capsys):
    server.files["a.pth"] = DATA
    path = fetch("torchvision://a.pth", licence="CC BY 4.0")
    assert path.read_bytes() == DATA
    assert "/a.pth (licence: CC BY 4.0)" in capsys.readouterr().err
    assert fetch("torchvision://a.pth") == path
    assert len(server.requests) == 1
    assert [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")] == ["a.pth"]


def test_without_a_network_nothing_but_the_error_is_said(server, capsys, monkeypatch):
    monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be downloaded .*: get http.* on another machine and put it at /"):
        fetch("torchvision://a.pth", pause=0.0)
    assert capsys.readouterr().err == ""


def test_a_cut_download_goes_on(server):
    server.files["a.pth"] = DATA
    server.cut = 40_000
    assert fetch("torchvision://a.pth", pause=0.0).read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=40000-", "bytes=80000-"]


def test_what_an_earlier_run_left_is_continued(server):
    server.files["a.pth"] = DATA
    part = locate("torchvision://a.pth").path.with_name("a.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:70_000])
    assert fetch("torchvision://a.pth").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["bytes=70000-"]


def test_a_published_checksum_is_compared(server, monkeypatch):
    """At the publisher's address; here the server is made to be it."""
    right = f"model_final_{hashlib.md5(DATA).hexdigest()[:6]}.pkl"
    variable, _ = module.BASES["detectron2"]
    monkeypatch.setitem(module.BASES, "detectron2", (variable, server.url))
    server.files = {right: DATA, "model_final_000000.pkl": DATA}
    assert fetch(f"detectron2://{right}").read_bytes() == DATA
    with pytest.raises(UserError, match=r"the md5 of .* should begin with 000000: the download was removed"):
        fetch("detectron2://model_final_000000.pkl")
    assert not list(locate("detectron2://x").path.parent.glob("model_final_000000*"))


def test_the_hubs_checksum_comes_with_its_redirection(server):
    for file, data in (("right", DATA), ("wrong", DATA[::-1])):
        digest = {"X-Linked-ETag": f'"{hashlib.sha256(DATA).hexdigest()}"'}
        server.redirects[f"/me/repo/resolve/main/{file}.pt"] = f"/cdn/{file}", digest
        server.files[f"cdn/{file}"] = data
    assert fetch("hf://me/repo/right.pt").read_bytes() == DATA
    with pytest.raises(UserError, match=r"the sha256 of .* should begin with"):
        fetch("hf://me/repo/wrong.pt")


@pytest.mark.parametrize(("status", "words"), [(404, "the server answers 404"), (503, "the server answers 503")])
def test_a_server_that_does_not_serve(server, status, words):
    server.failures, server.status = 100, status
    with pytest.raises(UserError) as caught:
        fetch("hf://me/repo/a.pt", pause=0.0)
    assert words in str(caught.value)
    assert len(server.requests) == (1 if status == 404 else ATTEMPTS)


def test_without_network_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError) as caught:
        fetch("hf://me/repo/a.pt", pause=0.0)
    path = tmp_path / "hf" / "me" / "repo" / "a.pt"
    assert f"get http://127.0.0.1:9/me/repo/resolve/main/a.pt on another machine and put it at {path}" in str(
        caught.value
    )
    path.write_bytes(b"by hand")
    assert fetch("hf://me/repo/a.pt") == path


def test_too_large_a_file_is_not_downloaded(server, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 50_000)
    server.files["a.pth"] = DATA
    with pytest.raises(UserError, match="sends more than 50,000 bytes"):
        fetch("torchvision://a.pth")


def test_a_classifier_by_name(server):
    """model.weights takes addresses, and detectron2's ImageNet backbones as detectron2's configs name them."""
    torch.manual_seed(0)
    source = build_backbone("resnet18")
    content = io.BytesIO()
    torch.save(source.state_dict(), content)
    server.files["me/repo/resolve/main/r18.pth"] = content.getvalue()
    net = build_backbone("resnet18")
    load_backbone_weights(net, "resnet18", "hf://me/repo/r18.pth", stride_in_1x1=False)
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)

    names = {"conv1.": "stem.conv1.", "bn1.": "stem.conv1.norm.", "fc.": "stem.fc."}
    theirs = {}
    for key, value in source.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        for old, new in (("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm"), ("layer", "res")):
            key = key.replace(old, new)
        if key.startswith("res"):
            key = f"res{int(key[3]) + 1}{key[4:]}"
            key = key.replace("bn1.", "conv1.norm.").replace("bn2.", "conv2.norm.")
        else:
            old = next(old for old in names if key.startswith(old))
            key = names[old] + key.removeprefix(old)
        theirs[key] = value.numpy()
    server.files["ImageNetPretrained/MSRA/R-18.pkl"] = pickle.dumps({"model": theirs, "__author__": "MSRA"})
    net = build_backbone("resnet18")
    name = "detectron2://ImageNetPretrained/MSRA/R-18.pkl"
    preprocessing = load_backbone_weights(net, "resnet18", name, stride_in_1x1=False)
    assert preprocessing.channel_order == "bgr"
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
