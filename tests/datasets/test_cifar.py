"""All forms of CIFAR-10 give the same images and labels; none of them runs code."""

from __future__ import annotations

import os
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from datasets import cifar
from datasets.cifar import CIFAR10_CLASSES, ImageArrays, read_cifar10, read_into_memory
from datasets.folders import read_folders

PER_BATCH = 4


@pytest.fixture
def original():
    """24 images in six batches, as planes and labels."""
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (6, PER_BATCH, 3072), dtype=np.uint8)
    return planes, rng.integers(0, 10, (6, PER_BATCH))


def names(suffix=""):
    return [f"data_batch_{number}{suffix}" for number in range(1, 6)] + [f"test_batch{suffix}"]


def write_python(folder, original, protocol=2):
    folder.mkdir(parents=True)
    for name, planes, labels in zip(names(), *original, strict=True):
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": planes, b"labels": labels.tolist(), b"batch_label": b"x"}, file, protocol)


def write_binary(folder, original):
    folder.mkdir(parents=True)
    for name, planes, labels in zip(names(".bin"), *original, strict=True):
        np.column_stack((labels.astype(np.uint8), planes)).tofile(folder / name)


def by_hand(planes, labels):
    """Row-major red, green and blue planes -> (H, W, RGB)."""
    images = np.zeros((len(planes), 32, 32, 3), np.uint8)
    for n in range(len(planes)):
        for channel in range(3):
            images[n, :, :, channel] = planes[n, channel * 1024 : (channel + 1) * 1024].reshape(32, 32)
    return images, labels


def check(read, planes, labels):
    images, labels = by_hand(planes.reshape(-1, 3072), labels.reshape(-1))
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.class_names == CIFAR10_CLASSES
    assert read.labels.dtype == np.int64


def test_python_and_binary_batches(tmp_path, original):
    planes, labels = original
    write_python(tmp_path / "py/cifar-10-batches-py", original)
    write_binary(tmp_path / "bin/cifar-10-batches-bin", original)
    for root in (tmp_path / "py", tmp_path / "py/cifar-10-batches-py", tmp_path / "bin"):
        check(read_cifar10(root, "train"), planes[:5], labels[:5])
        check(read_cifar10(root, "test"), planes[5:], labels[5:])


def test_folders_and_a_zip_file_of_them(tmp_path, original):
    planes, labels = original
    images, labels = by_hand(planes[0], labels[0])
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "train" / CIFAR10_CLASSES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[:, :, ::-1])
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
        for path in (tmp_path / "train").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    for root in (tmp_path, tmp_path / "cifar.zip"):
        read = read_cifar10(root, "train", CIFAR10_CLASSES)
        expected = sorted(range(len(labels)), key=lambda n: (CIFAR10_CLASSES[labels[n]], str(n)))
        np.testing.assert_array_equal(read.labels, labels[expected])
        np.testing.assert_array_equal(read.images, images[expected])
    with pytest.raises(UserError, match=r"cifar\.zip: holds no images in test/"):
        read_cifar10(tmp_path / "cifar.zip", "test")


def test_a_zip_file_may_have_one_folder_around_all(tmp_path):
    def png(value, size=(2, 3)):
        return cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1].tobytes()

    def write(name, members):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return tmp_path / name

    members = {
        "set/train/dog/b.png": png(3), "set/train/cat/a.png": png(2), "set/test/cat/a.png": png(9),
        "set/train/readme.txt": b"no image", "train.png": png(8), "set/train/dog/a.PNG": png(4),
    }  # fmt: skip
    read = read_cifar10(write("good.zip", members), "train")
    assert read.class_names == ["cat", "dog"]
    assert read.labels.tolist() == [0, 1, 1]
    assert read.images[:, 1, 2, 0].tolist() == [2, 4, 3]
    with pytest.raises(UserError, match=r"broken\.zip: train/cat/a\.png: cannot be read as an image"):
        read_cifar10(write("broken.zip", {"train/cat/a.png": b"rubbish"}), "train")
    with pytest.raises(UserError, match=r"train/cat/b\.png: is 3x2 \(H x W\), others are 2x3"):
        read_cifar10(write("sizes.zip", {"train/cat/a.png": png(1), "train/cat/b.png": png(1, (3, 2))}), "train")


def test_given_classes_renumber_the_labels(tmp_path, original):
    write_python(tmp_path / "c", original)
    backwards = CIFAR10_CLASSES[::-1]
    read = read_cifar10(tmp_path / "c", "test", backwards)
    np.testing.assert_array_equal(read.labels, 9 - original[1][5])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_cannot_run_code(tmp_path, original, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_python(tmp_path / "c", original)
    (tmp_path / "c/data_batch_3").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(UserError, match=r"data_batch_3: not a CIFAR-10 python batch .*mkdir"):
        read_cifar10(tmp_path / "c", "train")
    assert not (tmp_path / "owned").exists()


def test_what_is_wrong_is_named(tmp_path, original):
    write_binary(tmp_path / "c", original)
    (tmp_path / "c/data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_4\.bin: missing"):
        read_cifar10(tmp_path / "c", "train")
    path = tmp_path / "c/test_batch.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"test_batch\.bin: truncated"):
        read_cifar10(tmp_path / "c", "test")
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(UserError, match=r"labels 10\.\.10"):
        read_cifar10(tmp_path / "c", "test")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"test_batch\.bin: truncated: 0 bytes"):
        read_cifar10(tmp_path / "c", "test")
    path.write_bytes((bytes([0]) + bytes(3072)) + (bytes([9]) + bytes(3072)))
    assert read_cifar10(tmp_path / "c", "test").labels.tolist() == [0, 9]
    write_python(tmp_path / "py", original)
    for planes in (np.zeros((4, 3072), np.float32), np.zeros((3, 3072), np.uint8), np.zeros((4, 3071), np.uint8)):
        (tmp_path / "py/test_batch").write_bytes(pickle.dumps({b"data": planes, b"labels": [1, 2, 3, 4]}))
        with pytest.raises(UserError, match=r"test_batch: holds \w+ \(\d, \d+\) for 4 labels"):
            read_cifar10(tmp_path / "py", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no CIFAR-10"):
        read_cifar10(tmp_path / "empty", "test")
    with pytest.raises(UserError, match=r"did you mean .*empty\?"):
        read_cifar10(tmp_path / "emty", "test")


def test_images_in_memory_are_of_one_size(tmp_path):
    for name, size in (("a/1.png", (4, 6)), ("a/2.png", (4, 5))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((*size, 3), np.uint8))
    with pytest.raises(UserError, match=r"2\.png: is 4x5 \(H x W\), others are 4x6"):
        read_into_memory(read_folders(tmp_path))


def test_take_keeps_images_and_labels_together():
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    taken = ImageArrays(images, np.array([5, 6, 7, 8]), ["x"]).take(np.array([2, 0]))
    assert taken.labels.tolist() == [7, 5]
    np.testing.assert_array_equal(taken.images, images[[2, 0]])


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-30], lambda d: d[:60] + b"xxxx" + d[64:], lambda d: d.replace(b"PK\1\2", b"PK\1\3")]
)
def test_damaged_archives_are_one_line(tmp_path, damage):
    path = tmp_path / "c.zip"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "1.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "1.png", "train/cat/1.png")
        archive.writestr("__MACOSX/train/cat/._1.png", b"x")
    assert len(read_cifar10(path, "train")) == 1
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"c\.zip"):
        read_cifar10(path, "train")


def test_archives_that_grow_a_hundredfold_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/1.png", bytes(1 << 24))
    with pytest.raises(UserError, match="has 16777216 bytes, from"):
        read_cifar10(tmp_path / "c.zip", "train")


def test_a_set_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "train" / "cat" / "1.png")
    monkeypatch.setattr(cifar, "MOST_BYTES", 3000)
    with pytest.raises(UserError, match="1 images of 32 x 32 take"):
        read_cifar10(tmp_path, "train")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "cifar.zip")
    with pytest.raises(UserError, match=r"cifar\.zip: Not a directory"):
        read_cifar10(tmp_path / "cifar.zip", "train")
