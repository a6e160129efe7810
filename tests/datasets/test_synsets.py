"""ImageNet's numbers of classes, by the development kit and by Kaggle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from configs.errors import UserError
from datasets.synsets import class_numbers, kaggle_numbers, read_synset_numbers, synset_wnids


def write_meta(path, numbers, field="ILSVRC2012_ID"):
    savemat(path, {"synsets": np.array([*numbers.items()], dtype=[("WNID", "O"), (field, "O")])})


@pytest.mark.parametrize("field", ["ILSVRC2012_ID", "ILSVRC2015_CLSLOC_ID"])
def test_the_numbers_of_a_submission_are_the_development_kits(tmp_path, field):
    meta = tmp_path / "meta.mat"
    write_meta(meta, {"n02119789": 1, "n02100735": 2, "n01440764": 449}, field)
    assert read_synset_numbers(meta) == {"n02119789": 1, "n02100735": 2, "n01440764": 449}
    assert class_numbers(meta, ["n01440764", "n02119789"]) == [449, 1]
    with pytest.raises(UserError, match=r"meta\.mat: has no class cat: a submission is of ImageNet's classes"):
        class_numbers(meta, ["n01440764", "cat"])
    with pytest.raises(UserError, match=r"meta\.mat: missing"):
        class_numbers(tmp_path / "absent" / "meta.mat", ["n01440764"])
    assert synset_wnids(meta) == ["n01440764", "n02100735", "n02119789"]
    assert kaggle_numbers(meta, ["n02119789", "n01440764"]) == [3, 1], "a class's place among the sorted ones"


def test_kaggles_numbers_are_the_lines_of_its_list(tmp_path):
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n"
    )
    assert kaggle_numbers(mapping, ["n01484850", "n01440764"]) == [3, 1]
    with pytest.raises(
        UserError, match=r"LOC_synset_mapping\.txt: has no class n01484851: a submission is of ImageNet's"
    ):
        kaggle_numbers(mapping, ["n01484851"])
    mapping.write_text("n02 b\nn01 a\n")
    with pytest.raises(UserError, match=r"not Kaggle's LOC_synset_mapping\.txt"):
        kaggle_numbers(mapping, ["n01"])
    with pytest.raises(UserError, match="absent"):
        kaggle_numbers(tmp_path / "absent.txt", ["n01"])
