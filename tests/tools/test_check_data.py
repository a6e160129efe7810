"""check_data.py: problems printed, counted and written; exit code 2 for errors; policies; folders without a config."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
import yaml

from configs.errors import UserError
from tests.datasets.conftest import annotation_xml, write_image
from tools import check_data

GOOD = ("cat", (100, 100, 200, 180))


def voc_set(root: Path, objects: dict[str, list], image_set: str = "train") -> Path:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (name, boxes) in enumerate(objects.items()):
        write_image(root / "JPEGImages" / f"{name}.jpg", (480, 640), number + 100 * len(image_set))
        (root / "Annotations" / f"{name}.xml").write_text(annotation_xml(boxes, (480, 640)))
    (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(objects) + "\n")
    return root


def config(tmp_path: Path, **sets: Path) -> Path:
    data = {part: [{"format": "voc", "root": str(root), "image_set": part}] for part, root in sets.items()}
    content = yaml.safe_load(Path("configs/demo.yaml").read_text())
    content["data"] = {**data, "classes": ["cat"]}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(*args: object) -> None:
    check_data.main(check_data.make_parser().parse_args([str(arg) for arg in args]))


def test_a_clean_set_passes(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {"a": [GOOD], "b": [GOOD]})
    run("--cfg", config(tmp_path, train=root), "--json", tmp_path / "p.json")
    assert "no problems" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text()) == []
    run("--cfg", config(tmp_path, train=root), "--json", tmp_path / "p.json")  # its own earlier list may go
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for given in (root / "Annotations" / "a.xml", tmp_path / "coco.json", tmp_path / "deep.json"):
        given.touch()
        before = given.read_bytes()
        with pytest.raises(UserError, match=r"is there already, and is no list of problems"):
            run("--cfg", config(tmp_path, train=root), "--json", given)
        assert given.read_bytes() == before


def test_errors_are_named_counted_and_written(tmp_path: Path, capsys) -> None:
    root = voc_set(
        tmp_path / "v", {"a": [GOOD, ("cat", (200, 100, 100, 180))], "b": [GOOD, ("cat", (600, 9, 700, 99))]}
    )
    voc_set(tmp_path / "v", {"c": [GOOD]}, "val")
    (root / "JPEGImages" / "c.jpg").write_bytes((root / "JPEGImages" / "a.jpg").read_bytes())
    out = tmp_path / "out"
    with pytest.raises(UserError, match="2 errors"):
        run("--cfg", config(tmp_path, train=root, val=root), "--out", out)
    printed = capsys.readouterr().out
    assert f"box-reversed: {root}/Annotations/a.xml object 1 (cat): 199, 99, 100, 180 in 640 x 480: " in printed
    assert "1  warning  box-outside" in printed
    found = {problem["code"]: problem for problem in json.loads((out / "problems.json").read_text())}
    assert set(found) == {"box-reversed", "box-outside", "image-in-two-splits"}
    assert found["image-in-two-splits"]["file"].endswith("c.jpg")
    assert (out / "pictures.jpg").is_file()
    assert len((out / "problems.txt").read_text().splitlines()) == 3


def test_a_policy_takes_errors_out(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {"a": [GOOD, ("cat", (200, 100, 100, 180))]})
    path = config(tmp_path, train=root)
    with pytest.raises(UserError, match="1 error "):
        run("--cfg", path, "--fast")
    run("--cfg", path, "--fast", "--policy", "drop")
    assert "--policy drop takes out 1 object" in capsys.readouterr().out


def test_broken_files_are_told_one_by_one(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {name: [GOOD] for name in "abc"})
    for name in "ab":
        (root / "Annotations" / f"{name}.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"a\.xml: not a valid annotation file.*checked when the files above"):
        run("--cfg", config(tmp_path, train=root), "--json", tmp_path / "p.json")
    assert "2  error    annotation-broken" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "p.json").read_text())) == 2


def test_a_folder_without_a_config(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {"a": [GOOD], "b": [("cat", (100, 100, 100, 180))]})
    with pytest.raises(UserError, match="1 error "):
        run(root)
    assert "box-zero-extent" in capsys.readouterr().out
    for wrong in ([], [root, "--cfg", tmp_path / "c.yaml"]):
        with pytest.raises(UserError, match="give a FOLDER or --cfg"):
            run(*wrong)


def test_what_finding_and_reading_a_folder_met_is_said(tmp_path: Path, capsys) -> None:
    write_image(tmp_path / "images/a.jpg", (48, 64))
    write_image(tmp_path / "images/b.jpg", (48, 64), 1)
    for name, text in {"labels/a.txt": "0 .5 .5 .4 .4\n" * 2, "labels/b.txt": "0 .5 .5 .4 .4\n", "x.names": "cat\n",
                       "train.txt": "images/a.jpg\nimages/z.jpg\n"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    run(tmp_path)
    said = capsys.readouterr().out
    assert "look at    " in said
    assert "train.txt: names images/z.jpg, which is not here" in said
    assert "1 line comes twice in their file" in said


def test_a_folder_is_checked_as_a_config_of_it_is(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {name: [GOOD] for name in "abcd"})
    voc_set(root, {"e": [GOOD], "f": [GOOD, ("cat", (1, 100, 180, 180))]}, "val")
    xml = root / "Annotations" / "d.xml"
    xml.write_text(xml.read_text().replace("size>", "s>"))
    codes = []
    for given in ([root], ["--cfg", config(tmp_path, train=root, val=root)]):
        run(*given, "--fast", "--json", tmp_path / "p.json")
        found = json.loads((tmp_path / "p.json").read_text())
        codes.append([(problem["code"], problem["file"], problem["thing"]) for problem in found])
    assert {code for code, *_ in codes[0]} == {"size-missing", "box-at-edge"}
    assert [item for item in codes[1] if item[0] != "anchors-miss"] == codes[0]
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"a\.xml: not a valid annotation file.*checked when the files above"):
        run(root)
    assert "2  error    annotation-broken" in capsys.readouterr().out


def test_near_pictures_and_anchors(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {"a": [GOOD], "b": [("cat", (100, 100, 110, 109))]})
    picture = cv2.imread(str(root / "JPEGImages" / "a.jpg"))
    cv2.imwrite(str(root / "JPEGImages" / "b.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 40])
    run("--cfg", config(tmp_path, train=root), "--near", "--json", tmp_path / "p.json")
    assert "anchors reach " in capsys.readouterr().out
    found = [problem["code"] for problem in json.loads((tmp_path / "p.json").read_text())]
    assert "image-near" in found
    with pytest.raises(UserError, match="--near compares pictures"):
        run(root, "--near", "--fast")


def test_voc_sets_that_count_from_zero_are_told(tmp_path: Path) -> None:
    path = config(tmp_path, train=voc_set(tmp_path / "v", {"a": [GOOD, ("cat", (0, 100, 180, 180))]}))
    for overrides, expected in (
        ((), {"boxes-from-zero", "box-at-edge"}),
        (("data.train.0.zero_based=true",), {"box-at-edge"}),
    ):
        run("--cfg", path, "--fast", "--json", tmp_path / "p.json", *(("--set", *overrides) if overrides else ()))
        assert {problem["code"] for problem in json.loads((tmp_path / "p.json").read_text())} == expected


def test_what_keeps_a_set_from_being_read_is_written_too(tmp_path: Path, capsys) -> None:
    root = voc_set(tmp_path / "v", {"a": [GOOD]})
    for overrides, code in ((["data.classes=nonsense"], "set-unreadable"), (["data.classes=[dog]"], "class-unknown")):
        with pytest.raises(UserError, match=r"neither a list of names|class cat is not among"):
            run("--cfg", config(tmp_path, train=root), "--json", tmp_path / "p.json", "--set", *overrides)
        assert [problem["code"] for problem in json.loads((tmp_path / "p.json").read_text())] == [code]
        assert f"1  error    {code}" in capsys.readouterr().out
