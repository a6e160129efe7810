"""What ImageNet's classes are called in submissions: the development kit's numbers and Kaggle's, by wnid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import UserError
from configs.files import read_lines


def read_synset_numbers(meta: Path) -> dict[str, int]:
    """wnid -> the number by which ImageNet's ground truth and submissions call the class (ILSVRC2012_ID).

    Args:
        meta: meta.mat of the development kit of 2012, or meta_clsloc.mat of a later one.

    Raises:
        UserError: the file is missing or another one.
    """
    if not meta.is_file():
        raise UserError(
            f"{meta}: missing: the development kit's meta.mat says which wnids the numbers of ground truth and "
            "submissions mean"
        )
    from scipy.io import loadmat  # takes a while, and is needed here only

    try:
        synsets = loadmat(meta, squeeze_me=True, struct_as_record=True)["synsets"]
        field = next(name for name in synsets.dtype.names if name.startswith("ILSVRC") and name.endswith("_ID"))
        return dict(zip(synsets["WNID"].tolist(), map(int, synsets[field].tolist()), strict=True))
    except Exception as error:  # scipy raises many kinds for damaged files
        raise UserError(f"{meta}: not the development kit's file ({error})") from None


def synset_wnids(meta: Path) -> list[str]:
    """ImageNet's 1000 wnids in their order.

    Args:
        meta: as for `read_synset_numbers`, or LOC_synset_mapping.txt of Kaggle's archive, a class a line.

    Raises:
        UserError: the file is missing or another one.
    """
    if meta.suffix == ".mat":
        return sorted(wnid for wnid, number in read_synset_numbers(meta).items() if number <= 1000)
    wnids = [line.split()[0] for line in read_lines(meta, "list of classes") if line.strip()]
    if not wnids or wnids != sorted(set(wnids)):
        raise UserError(f"{meta}: not Kaggle's LOC_synset_mapping.txt: a line is a wnid and its names, in order")
    return wnids


def class_numbers(meta: Path, class_names: Sequence[str]) -> list[int]:
    """The development kit's number of each class, 1..1000, in the order of `class_names`.

    Raises:
        UserError: as `read_synset_numbers`, or a class is no wnid of the kit.
    """
    return _of_classes(read_synset_numbers(meta), class_names, meta)


def kaggle_numbers(meta: Path, class_names: Sequence[str]) -> list[int]:
    """Kaggle's number of each class, 1..1000, in the order of `class_names`, which is not the development kit's.

    It is the class's line in LOC_synset_mapping.txt, that is, the place of its wnid among the sorted ones.

    Raises:
        UserError: as `synset_wnids`, or a class is no wnid of the file.
    """
    return _of_classes({wnid: number for number, wnid in enumerate(synset_wnids(meta), 1)}, class_names, meta)


def _of_classes(numbers: Mapping[str, int], class_names: Sequence[str], meta: Path) -> list[int]:
    unknown = next((name for name in class_names if name not in numbers), None)
    if unknown is not None:
        raise UserError(f"{meta}: has no class {unknown}: a submission is of ImageNet's classes, by wnid")
    return [numbers[name] for name in class_names]
