"""What a folder lists: nothing hidden, no pipe, no GIF, and links as what they lead to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import complaints
from datasets.collect import images_below
from datasets.folders import read_folders
from datasets.images import read_image
from datasets.listing import list_files, list_images


def test_listing_passes_over_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/x.JPG", "a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "b/Thumbs.db", "b/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b" / "x.JPG"]
    assert list_images(tmp_path, recursive=False) == [tmp_path / "a.png"]


def test_listing_passes_over_and_names_what_is_no_file_and_gifs(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(complaints, "_told", set())
    (tmp_path / "set/a").mkdir(parents=True)
    wanted = [tmp_path / "set/a" / name for name in ("file.jpg", "link.png", "lost.png", "loop.png", "plain.JFIF")]
    file, link, lost, loop, plain = wanted
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(plain, "JPEG")
    file.touch()
    link.symlink_to(file)
    lost.symlink_to("nowhere")
    loop.symlink_to(loop)
    os.mkfifo(tmp_path / "set/a/pipe.png")
    (tmp_path / "set/a/link_to_a_pipe.png").symlink_to("pipe.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "set/a/link_to_a_folder.png").symlink_to(tmp_path / "empty")
    for name in ("x.gif", "y.GIF", "z.HEIC"):
        (tmp_path / "set/a" / name).touch()
    for _ in range(2):
        assert list_images(tmp_path) == sorted(wanted)
        assert [read_folders(tmp_path / "set").path(i) for i in range(5)] == sorted(wanted)
        assert images_below(tmp_path) == sorted(wanted)
        assert not list_files(tmp_path, (".txt",))
    assert read_image(plain).shape == (3, 4, 3)
    said = sorted(record.getMessage() for record in caplog.records)
    assert [line.partition(f"{tmp_path}/set/a")[2].partition(", among")[0] for line in said] == [
        "/link_to_a_folder.png: is a link to a folder, and passed over: name the folder itself",
        "/link_to_a_pipe.png: is no file (a pipe, a socket or a device) and is passed over",
        "/pipe.png: is no file (a pipe, a socket or a device) and is passed over",
        ": GIFs are passed over",
        ": HEICs are passed over",
    ]


def test_results_within_a_set_are_no_data(tmp_path: Path, caplog, monkeypatch) -> None:
    """A run's or a prediction's pictures would be images without objects, or others' again."""
    monkeypatch.setattr(complaints, "_told", set())
    results = {
        "runs/mine": ("config.yaml", "metrics.jsonl", "pictures/a.jpg"),
        "found": ("detections.json", "a.jpg"),
        "stopped": ("detections.jsonl", "a.jpg"),
        "look": ("problems.json", "problems.txt", "pictures.jpg"),
    }
    data = {"set": ("detections.json", "b.jpg"), "other": ("config.yaml", "c.jpg"), "": ("a.jpg",)}
    for folder, names in (*results.items(), *data.items()):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text("{}" if folder == "set" else "[]")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "c.jpg", "b.jpg"]
    assert sorted(record.getMessage().partition(": holds results")[0] for record in caplog.records) == sorted(
        str(tmp_path / folder) for folder in results
    )
    assert [path.name for path in list_images(tmp_path / "found")] == ["a.jpg"]  # which was named itself
