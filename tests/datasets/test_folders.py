"""Readers of labelled image files: which image has which label, and what is said when something is wrong."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from configs.errors import UserError
from datasets.folders import (
    find_class,
    read_folders,
    read_imagenet_val,
    read_tiny_imagenet,
    read_unlabelled,
)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((2, 3, 3), np.uint8))


def pairs(files):
    """Name below the root -> class name."""
    return {str(files.path(i).relative_to(files.root)): files.class_names[files.labels[i]] for i in range(len(files))}


def test_a_folder_for_each_class_at_any_depth(tmp_path):
    for name in ("n02/b.JPEG", "n02/a.png", "n01/images/deep/c.jpg", "n10/x.PNG"):
        touch(tmp_path / name)
    (tmp_path / "n01/notes.txt").write_text("no image")
    touch(tmp_path / ".hidden/y.png")
    touch(tmp_path / "__MACOSX/n02/z.png")
    touch(tmp_path / "n02/._b.png")
    files = read_folders(tmp_path)
    assert files.class_names == ["n01", "n02", "n10"]
    assert pairs(files) == {"n01/images/deep/c.jpg": "n01", "n02/a.png": "n02", "n02/b.JPEG": "n02", "n10/x.PNG": "n10"}
    assert files.labels.dtype == np.int64
    taken = files.take(np.array([3, 0]))
    assert [taken.path(0).name, taken.path(1).name] == ["x.PNG", "c.jpg"]
    assert taken.labels.tolist() == [2, 0]


def test_given_classes_fix_the_labels_and_may_lack_a_folder(tmp_path):
    touch(tmp_path / "cat/a.png")
    touch(tmp_path / "ant/a.png")
    files = read_folders(tmp_path, ["dog", "cat", "ant"])
    assert pairs(files) == {"ant/a.png": "ant", "cat/a.png": "cat"}
    assert sorted(files.labels.tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("make", "classes", "words"),
    [
        ([], None, "has no class folders"),
        (["cat/a.txt"], None, "cat: has no images"),
        (["Train/a.png", "val/a.png"], None, "Train, val are parts of a set, not classes"),
        (["cat/a.png", "dgo/a.png"], ["cat", "dog"], "dgo is none of the 2 classes: did you mean dog?"),
    ],
)
def test_mistakes_name_the_folder(tmp_path, make, classes, words):
    for name in make:
        touch(tmp_path / name) if name.endswith(".png") else None
        (tmp_path / name).parent.mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        read_folders(tmp_path, classes)
    assert words in str(error.value)


def test_a_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: Not a directory$"):
        read_folders(tmp_path / "file")
    with pytest.raises(UserError, match=r"did you mean .*train\?"):
        read_folders(tmp_path / "trian")


# ------------------------------------------------------------------------------------------------ ImageNet's folder


@pytest.mark.parametrize(
    "lines",
    [
        "a b.png n02\nc,1.png n01\n",
        '"a b.png"  n02\n"c,1.png" n01\n',
        "a b.png\tn02\nc,1.png\tn01\n",
        "val/a b.png n02\nC:\\val\\c,1.png n01\n",
        "a b n02\nc,1 n01\n",
        "a b.png n02 1 2 3 4\nc,1.png\tn01\t1\t2\t3\t4\n",
    ],
)
def test_ground_truth_of_names_with_blanks_quotes_and_folders(tmp_path, lines):
    for name in ("a b", "c,1"):
        touch(tmp_path / "val" / f"{name}.png")
    (tmp_path / "val.txt").write_text(lines)
    assert labelled(read_imagenet_val(tmp_path / "val", tmp_path / "val.txt")) == ["n02", "n01"]


def test_links_to_folders_within_a_class_are_told(tmp_path, caplog):
    """One to another class mixed the two, one to the folder above held each image 41 times."""
    for name in ("cat/a.png", "dog/b.png", "more/c.png"):
        touch(tmp_path / "set" / name)
    (tmp_path / "set/more").rename(tmp_path / "more")
    (tmp_path / "set/cow").symlink_to(tmp_path / "more")  # a class of its own
    (tmp_path / "set/cat/inner").symlink_to(tmp_path / "set/dog")
    (tmp_path / "set/dog/loop").symlink_to(tmp_path / "set")
    assert pairs(read_folders(tmp_path / "set")) == {"cat/a.png": "cat", "cow/c.png": "cow", "dog/b.png": "dog"}
    for link in ("cat/inner", "dog/loop"):
        assert f"{tmp_path}/set/{link}: is a link to a folder, and passed over" in caplog.text


@pytest.fixture
def flat(tmp_path):
    """Four validation images in one folder."""
    for number in (1, 2, 3, 4):
        touch(tmp_path / "val" / f"ILSVRC2012_val_0000000{number}.JPEG")
    return tmp_path / "val"


EXPECTED = ["n03", "n01", "n03", "n02"]


def labelled(files):
    return [files.class_names[label] for label in files.labels]


def test_the_development_kits_numbers_mean_what_meta_mat_says(flat, tmp_path):
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("20\n7\n20\n9\n")
    synsets = np.array([(7, "n01"), (9, "n02"), (20, "n03")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    files = read_imagenet_val(flat, truth)
    assert files.class_names == ["n01", "n02", "n03"]
    assert labelled(files) == EXPECTED
    truth.write_text("20\n7\n20\n")
    with pytest.raises(UserError, match="3 lines for 4 images"):
        read_imagenet_val(flat, truth)
    truth.write_text("20\n7\n20\n8\n")
    with pytest.raises(UserError, match="number 8"):
        read_imagenet_val(flat, truth)
    truth.write_text("20\n7\n20\n" + "9" * 5000)  # more digits than Python's int takes
    with pytest.raises(UserError, match=r"ground_truth\.txt: has no line for"):
        read_imagenet_val(flat, truth)
    truth.write_text("20\n7\n20\n9\n")
    (tmp_path / "meta.mat").rename(tmp_path / "meta_clsloc.mat")  # as later kits call it
    assert labelled(read_imagenet_val(flat, truth)) == EXPECTED
    (tmp_path / "meta_clsloc.mat").unlink()
    with pytest.raises(UserError, match=r"meta\.mat: missing"):
        read_imagenet_val(flat, truth)


def test_numbers_do_not_go_with_names_in_another_order(tmp_path):
    savemat(tmp_path / "meta.mat", {"synsets": np.array([(1, "n1")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])})
    (tmp_path / "truth.txt").write_text("1\n1\n1\n")
    for number in (1, 2, 10):
        touch(tmp_path / "val" / f"{number}.JPEG")
    with pytest.raises(UserError, match=r"by name 10\.JPEG comes before 2\.JPEG: rename them with as many digits"):
        read_imagenet_val(tmp_path / "val", tmp_path / "truth.txt")


def test_ground_truth_by_file_name(flat, tmp_path):
    table = tmp_path / "LOC_val_solution.csv"
    wnids = {4: "n02", 3: "n03", 1: "n03", 2: "n01"}
    rows = [f"ILSVRC2012_val_0000000{n},{wnid} 85 1 499 272 {wnid} 1 2 3 4" for n, wnid in wnids.items()]
    table.write_text("\n".join(["ImageId,PredictionString", *rows]))
    assert labelled(read_imagenet_val(flat, table)) == EXPECTED
    text = tmp_path / "val.txt"
    text.write_text("\n".join(f"ILSVRC2012_val_0000000{n}.JPEG {wnid}" for n, wnid in wnids.items()))
    assert labelled(read_imagenet_val(flat, text)) == EXPECTED
    # With the training set's classes the labels are theirs.
    files = read_imagenet_val(flat, text, ["n00", "n01", "n02", "n03"])
    assert files.labels.tolist() == [3, 1, 3, 2]
    text.write_text("ILSVRC2012_val_00000001.JPEG n03\nILSVRC2012_val_00000002.JPEG n01\n")
    with pytest.raises(UserError, match=r"no line for ILSVRC2012_val_00000003\.JPEG"):
        read_imagenet_val(flat, text)
    text.write_text("".join(f"ILSVRC2012_val_0000000{n}.JPEG n0{k}\n" for n, k in ((1, 3), (2, 1), (1, 2))))
    with pytest.raises(UserError, match=r"val\.txt: says twice what ILSVRC2012_val_00000001 shows: n03 and n02"):
        read_imagenet_val(flat, text)
    with pytest.raises(UserError, match="no such ground truth"):
        read_imagenet_val(flat, tmp_path / "absent.txt")


def test_only_images_of_the_flat_folder_count(flat, tmp_path):
    truth = tmp_path / "val.txt"
    truth.write_text("".join(f"ILSVRC2012_val_0000000{n + 1}.JPEG {wnid}\n\n" for n, wnid in enumerate(EXPECTED)))
    (flat / "readme.txt").write_text("no image")
    (flat / "folder.png").mkdir()
    touch(flat / "._ILSVRC2012_val_00000001.JPEG")
    assert labelled(read_imagenet_val(flat, truth)) == EXPECTED
    truth.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"val\.txt: line 1 is not text"):
        read_imagenet_val(flat, truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no images"):
        read_imagenet_val(tmp_path / "empty", truth)


def test_a_meta_file_of_another_kind_is_named(flat, tmp_path):
    truth = tmp_path / "truth.txt"
    truth.write_text("1\n" * 4)
    (tmp_path / "meta.mat").write_bytes(b"no such format")
    with pytest.raises(UserError, match=r"meta\.mat: not the development kit's file"):
        read_imagenet_val(flat, truth)


def test_images_without_labels_are_in_the_order_of_their_names(flat):
    files = read_unlabelled(flat, ["n01", "n02"])
    assert [files.path(index).name[-6:-5] for index in range(4)] == ["1", "2", "3", "4"]
    assert files.labels.tolist() == [-1] * 4
    assert files.class_names == ["n01", "n02"]


def test_an_unknown_class_is_answered_with_the_nearest_or_the_first():
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    assert [find_class(name, names, "x") for name in ("ant", "fox")] == [0, 5]
    with pytest.raises(UserError, match=r"x: foxx is none of the 6 classes: did you mean fox\?"):
        find_class("foxx", names, "x")
    with pytest.raises(UserError, match=r"they are ant, bee, cat, dog, eel, \.\.\.$"):
        find_class("zzzz", names, "x")


# ------------------------------------------------------------------------------------------------ Tiny-ImageNet


def test_tiny_imagenet_in_both_layouts_of_its_validation_set(tmp_path):
    for wnid in ("n01", "n02"):
        touch(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t1\t1\n")
    for number in (0, 1):
        touch(tmp_path / "val/images" / f"val_{number}.JPEG")
    (tmp_path / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n")
    train = read_tiny_imagenet(tmp_path, "train")
    assert labelled(train) == ["n01", "n02"]
    val = read_tiny_imagenet(tmp_path, "val", train.class_names)
    assert pairs(val) == {"val_0.JPEG": "n02", "val_1.JPEG": "n01"}
    (tmp_path / "val/val_annotations.txt").unlink()
    for number, wnid in ((0, "n02"), (1, "n01")):
        (tmp_path / "val" / wnid).mkdir()
        (tmp_path / "val/images" / f"val_{number}.JPEG").rename(tmp_path / "val" / wnid / f"val_{number}.JPEG")
    (tmp_path / "val/images").rmdir()
    val = read_tiny_imagenet(tmp_path, "val", train.class_names)
    assert pairs(val) == {"n01/val_1.JPEG": "n01", "n02/val_0.JPEG": "n02"}
