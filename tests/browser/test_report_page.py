"""The report page in a real browser: parts, pictures, sorting, no request to the network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.evaluation.evaluate import evaluate
from detection.evaluation.report import SECTIONS, Run, write_report
from tools.benchmarks.synthetic import IMAGE_SIZE, make_set

pytestmark = pytest.mark.slow

PROBE = """<script>window.addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)];
  const rows = () => all("table.sortable tbody tr");
  const column = (n) => rows().map((row) => row.cells[n].dataset.value ?? row.cells[n].innerText);
  const before = column(2);
  all("table.sortable th")[2].click();
  const down = column(2);
  all("table.sortable th")[2].click();
  const found = {
    sections: all("section").map((part) => [part.id, part.getBoundingClientRect().height]),
    plots: all("img.plot").map((image) => [image.complete, image.naturalWidth, image.getBoundingClientRect().width]),
    shots: all("svg.shot").length,
    photographs: all("svg.shot image").length,
    boxes: all("svg.shot rect[class]").map((box) => getComputedStyle(box).stroke).length,
    unseen: all("svg.shot rect[class]").filter((box) => getComputedStyle(box).stroke === "none").length,
    cut: all("svg.shot text").filter((word) => {
      const own = word.getBoundingClientRect(), picture = word.ownerSVGElement.getBoundingClientRect();
      return own.right > picture.right + 1 || own.left < picture.left - 1;
    }).length,
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length,
    before, down, up: column(2), title: document.title,
  };
  document.body.innerHTML = "<pre id=probe></pre>";
  document.getElementById("probe").textContent = JSON.stringify(found);
});</script>"""
"""Asks the loaded page about itself and leaves the answer in place of the page, where --dump-dom finds it."""


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return path


def browse(chromium: str, profile: Path, *arguments: str, size: str = "1300,2000") -> str:
    """Standard output of a headless browser with a fresh profile and a window of that width and height."""
    profile.mkdir()
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", f"--window-size={size}", "--hide-scrollbars", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def write_page(folder: Path, runs: int) -> Path:
    """A report of made-up runs with noise for photographs."""
    truth, found = make_set("voc", images=60, classes=6, objects=200, detections=900, seed=4)
    rng = np.random.default_rng(0)
    for name in truth.image_ids[:50]:
        noise = rng.integers(0, 255, (*IMAGE_SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.jpg", quality=40)
    metrics = evaluate(truth, found)
    return write_report(folder / "report", truth, [Run(f"run {n}", found, metrics) for n in range(runs)], images=folder)


def probe(chromium: str, page: Path, profile: Path, size: str) -> dict[str, Any]:
    """What the page says about itself in a window of that size."""
    probed = page.with_name("probed.html")
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    probed.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom = browse(chromium, profile, "--virtual-time-budget=10000", "--dump-dom", probed.as_uri(), size=size)
    answer = dom.split('<pre id="probe">')[1].split("</pre>")[0]
    return json.loads(answer.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.parametrize("runs", [1, 2])
def test_page_in_a_browser(chromium: str, tmp_path: Path, runs: int) -> None:
    page = write_page(tmp_path, runs)
    found = probe(chromium, page, tmp_path / "profile", "1300,2000")

    assert found["title"] == ("run 0 on synthetic" if runs == 1 else "run 0 and run 1 on synthetic")
    assert [name for name, _ in found["sections"]] == [name for name in SECTIONS if name != "training"]
    assert all(height > 80 for _, height in found["sections"])
    assert len(found["plots"]) == 4 + runs
    assert all(complete and natural > 200 and shown > 200 for complete, natural, shown in found["plots"])
    assert found["shots"] == runs * 48
    assert 0 < found["photographs"] <= found["shots"]
    assert found["boxes"] > 100
    assert found["unseen"] == 0
    assert found["sideways"] <= 0  # nothing is wider than the window
    assert found["cut"] == 0
    assert found["requests"] == 0
    values = list(map(float, found["before"]))
    assert list(map(float, found["down"])) == sorted(values, reverse=True)
    assert list(map(float, found["up"])) == sorted(values)


def test_page_at_the_width_of_a_phone(chromium: str, tmp_path: Path) -> None:
    """Tables and plots scroll by themselves, the page does not; plots stay large enough to be read."""
    found = probe(chromium, write_page(tmp_path, 2), tmp_path / "profile", "500,1000")  # Chromium's narrowest
    assert found["sideways"] <= 0
    assert all(shown >= 440 for _, _, shown in found["plots"])
    assert found["cut"] == 0


def test_page_is_painted(chromium: str, tmp_path: Path) -> None:
    page = write_page(tmp_path, 1)
    picture = tmp_path / "page.png"
    browse(chromium, tmp_path / "profile", f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colors = np.unique(pixels, axis=0)
    assert len(colors) > 200
    for name, color in {"paper": (255, 255, 255), "ground": (243, 244, 246), "first run": (37, 99, 235)}.items():
        assert (pixels == color).all(axis=1).sum() > 50, name
