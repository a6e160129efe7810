"""The files of VOC sets, each looked at by itself: with image sets, and beside the images; of a folder and a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.detection import SourceConfig
from datasets.layouts import find_layout
from datasets.lint import Problem
from datasets.lint_voc import lint_voc, lint_voc_files
from tests.datasets.conftest import annotation_xml, write_image

BOXES = [("cat", (5, 5, 20, 20))]


def told(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.code, Path(problem.file).name) for problem in problems}


def test_each_file_of_a_voc_folder_is_looked_at_by_itself(write_voc) -> None:
    root = write_voc({name: ((30, 40), [("cat", (5, 5, 20, 20))]) for name in "abcdefg"})
    assert lint_voc_files(root, ["train"]) == []
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").unlink()
    (root / "JPEGImages" / "c.jpg").unlink()
    xml = root / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>C:\\\\x\\\\other.jpg</filename>"))
    (root / "Annotations" / "e.xml").write_text("<annotation><filename>e.jpg</filename></annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\nd\ne\nf\n")
    found = {(problem.code, Path(problem.file).name) for problem in lint_voc_files(root, ["train"])}
    assert found == {
        ("annotation-broken", "a.xml"), ("annotation-missing", "b.xml"), ("image-missing", "c"),
        ("filename-differs", "d.xml"), ("size-missing", "e.xml"), ("image-lonely", "g.jpg"),
        ("annotation-lonely", "g.xml"),
    }  # fmt: skip


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """Annotations beside the images a to e; c's is of d, e has none, and one without an image."""
    for name in "abcde":
        write_image(tmp_path / f"{name}.png", (30, 40), ord(name))
    for name in ("a", "b", "c", "d", "z"):
        (tmp_path / f"{name}.xml").write_text(annotation_xml(BOXES, (30, 40)))
    (tmp_path / "a.xml").write_text("<annotation><object>")
    xml = tmp_path / "c.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>d.png</filename>"))
    return tmp_path


PAIRED = {("annotation-broken", "a.xml"), ("filename-differs", "c.xml")}


def test_annotations_beside_their_images(loose: Path) -> None:
    layout = find_layout(loose)
    lonely = {("annotation-missing", "e.png"), ("annotation-lonely", "z.xml")}
    assert told(lint_voc(layout.parts, Path("/"), whole=layout.root)) == PAIRED | lonely


def test_a_config_says_what_images_without_annotation_are(loose: Path) -> None:
    """What no source takes is not told: another one may."""
    source = SourceConfig(format="voc", root=loose.name, images=loose.name)
    assert told(lint_voc({"train": [source]}, loose.parent)) == PAIRED | {("annotation-missing", "e.png")}
    source = source.model_copy(update={"unlabelled": "empty"})
    assert told(lint_voc({"train": [source]}, loose.parent)) == PAIRED


def test_image_sets_of_a_folder_and_of_a_config(write_voc) -> None:
    root = write_voc(dict.fromkeys("abcdef", ((30, 40), BOXES)))
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Main/val.txt").write_text("c\nd\n")
    for name in "ace":
        (root / "Annotations" / f"{name}.xml").write_text("<annotation><object>")
    (root / "Annotations/d.xml").unlink()
    layout = find_layout(root)
    assert layout.parts["val"][0].image_set == "val"
    broken = {("annotation-broken", f"{name}.xml") for name in "ac"}
    found = told(lint_voc(layout.parts, Path("/"), whole=layout.root))
    assert {("image-lonely", "f.jpg"), ("annotation-lonely", "f.xml")} < found
    assert {problem for problem in found if "lonely" not in problem[0]} == broken | {
        ("annotation-broken", "e.xml"), ("annotation-missing", "d.xml")
    }  # fmt: skip
    sources = {name: [SourceConfig(format="voc", root=str(root), image_set=name)] for name in ("train", "val")}
    assert told(lint_voc(sources, Path("/"))) == broken | {("annotation-missing", "d.xml")}
    (root / "ImageSets/Main/val.txt").unlink()
    (root / "JPEGImages/a.jpg").unlink()
    layout = find_layout(root)
    assert layout.parts["all"][0].image_set is None
    assert ("image-missing", "a") in told(lint_voc(layout.parts, Path("/"), whole=layout.root))
    coco = SourceConfig(format="coco", images="i", annotations="a.json")
    assert lint_voc({"train": [coco]}, Path("/")) == []
