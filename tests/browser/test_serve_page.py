"""The page of `tools/serve.py` in a real browser with a real detector: drop, threshold, table, model, errors, clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.predictor import Predictor
from detection.video import VideoWriter
from tests.detection.made import make_image, save_detector
from tools.runtime import serving
from tools.runtime.serving_schema import Limits

pytestmark = pytest.mark.slow

NAME = "<img src=x onerror=alert(1)>"
PROBE = """
async function probe() {
  const wait = async (what) => { while (!what()) await new Promise((done) => setTimeout(done, 20)); };
  const file = async (path, name, type) => new File([await (await fetch(path)).blob()], name, { type });
  const rows = () => [...document.querySelectorAll("article")].map((one) => one.querySelectorAll("tbody tr").length);
  await wait(() => document.querySelectorAll("option").length === 2);
  await add([await file("photo.png", "<b>photo</b>.png", "image/png")]);
  const photo = entries[0], found = {};
  found.title = document.querySelector("h2").textContent;
  found.boxes = photo.answer.detections.map((one) => one.box);
  found.low = (() => { $("threshold").value = 0.05; $("threshold").oninput(); return rows()[0]; })();
  const pixels = photo.canvas.getContext("2d").getImageData(0, 0, photo.canvas.width, photo.canvas.height).data;
  found.drawn = [...Array(pixels.length / 4).keys()].filter((k) => pixels[4 * k] === 0x25 && pixels[4 * k + 1] === 0x63
    && pixels[4 * k + 2] === 0xeb).length;
  $("threshold").value = CUT; $("threshold").oninput();
  found.high = rows()[0];
  $("model").value = "two";
  await $("model").onchange();
  found.model = entries[0].answer.model;
  await add([await file("page.css", "none.png", "image/png"), await file("clip.mp4", "clip.mp4", "video/mp4")]);
  const clip = entries[0].canvas, center = () => clip.getContext("2d").getImageData(3, clip.height - 3, 1, 1).data[3];
  await wait(() => !entries[0].picture || center() > 0);
  found.frames = entries[0].answer.frames.length;
  found.error = entries[1].error;
  found.shown = document.querySelector(".error").textContent;
  found.images = document.querySelectorAll("img, b").length;
  found.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.download = !$("download").disabled;
  $("threshold").value = CUT - 0.01; $("threshold").oninput();
  return found;
}
probe().catch((error) => ({ failed: String(error.stack) })).then((found) =>
  fetch("done", { method: "POST", body: JSON.stringify(found) }));
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return path


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(save_detector(tmp_path / "w.pt", names=("red", NAME)), device="cpu", threshold=0.05)


@pytest.fixture
def cut(predictor: Predictor) -> float:
    """A threshold that some of the photo's detections pass and others do not."""
    return round(float(np.median(predictor(make_image(2, (60, 90)))[0].scores)), 2)


class Visit:
    """A server whose page has a script more and the files that it drops; and what that script found.

    The page waits for a picture that comes when the script is done: only then does the browser take its own picture.
    """

    def __init__(self) -> None:
        self.address = ""
        self.found: dict[str, Any] = {}
        self.done = threading.Event()

    def get(self, handler: serving.Handler, path: str) -> None:
        if path == "/hold.png":
            self.done.wait(120)
            path = "/photo.png"
        GET(handler, path)

    def post(self, handler: serving.Handler, path: str) -> None:
        if path != "/done":
            return POST(handler, path)
        self.found.update(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        self.done.set()
        return handler._send_json({})


GET, POST = serving.Handler._get, serving.Handler._post


@pytest.fixture
def visit(tmp_path: Path, predictor: Predictor, cut: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    page = tmp_path / "page"
    shutil.copytree(serving.PAGE, page)
    text = (page / "page.html").read_text()
    more = '<img hidden src="hold.png"><script src="probe.js"></script></body>'
    (page / "page.html").write_text(text.replace("</body>", more))
    (page / "probe.js").write_text(PROBE.replace("CUT", str(cut)))
    Image.fromarray(make_image(2, (60, 90))).save(page / "photo.png")
    with VideoWriter(page / "clip.mp4", 10) as video:
        for number in range(3):
            video.write(make_image(number, (48, 64)))
    visit = Visit()
    monkeypatch.setattr(serving, "PAGE", page)
    kinds = {"/probe.js": "text/javascript", "/photo.png": "image/png", "/clip.mp4": "video/mp4"}
    monkeypatch.setattr(serving, "FILES", {**serving.FILES, **{path: (path[1:], kind) for path, kind in kinds.items()}})
    monkeypatch.setattr(serving.Handler, "_get", lambda handler, path: visit.get(handler, path))
    monkeypatch.setattr(serving.Handler, "_post", lambda handler, path: visit.post(handler, path))
    with serving.Server(("127.0.0.1", 0), {"one": predictor, "two": predictor}, Limits()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        visit.address = f"http://127.0.0.1:{server.server_port}/"
        yield visit
        server.shutdown()
        thread.join()


def browse(chromium: str, profile: Path, address: str, size: str, picture: Path) -> None:
    """Open the page, and take its picture once it is there."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", f"--window-size={size}", "--hide-scrollbars", f"--screenshot={picture}", address,
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=180, check=True)


@pytest.mark.parametrize("size", ["1300,1400", "500,1400"])
def test_page_in_a_browser(
    chromium: str, visit: Visit, predictor: Predictor, cut: float, size: str, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    browse(chromium, tmp_path / "profile", visit.address, size, picture)
    found = visit.found
    assert "failed" not in found, found
    expected = predictor(make_image(2, (60, 90)))[0]
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-3)
    assert found["low"] == len(expected)
    assert found["high"] == (expected.scores >= cut).sum() < found["low"]
    assert found["drawn"] > 50  # the first class's colour
    assert found["title"].startswith("<b>photo</b>.png")
    assert found["images"] == 1  # the held one: names are text, whatever they look like
    assert found["model"] == "two"
    assert found["frames"] == 3
    assert found["error"] == "the file: cannot be read as an image: unknown format or damaged header"
    assert found["shown"] == found["error"]
    assert found["sideways"] <= 0
    assert found["download"]
    with Image.open(picture) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
