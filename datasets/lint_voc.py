"""What is wrong with the files of VOC sets, each looked at by itself: a broken one does not hide the others.

`lint_voc` looks at all sources of a config or of a folder's layout, `lint_voc_files` at some image sets of one folder.
Imports no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from configs.detection import SourceConfig
from configs.errors import UserError
from datasets.annotation_files import annotation_files, chosen_images, pair, unlisted_images
from datasets.collect import images_below
from datasets.layouts.parts import part_of_list
from datasets.lint import Problem
from datasets.listing import list_files, list_images
from datasets.voc import read_annotation, read_image_set


def lint_voc(
    sources: Mapping[str, Iterable[SourceConfig]], data_root: Path, *, whole: Path | None = None
) -> list[Problem]:
    """The problems of the files of all sources in VOC's format.

    Args:
        sources: train, val, test or all -> its sources.
        data_root: what relative paths are relative to.
        whole: the folder that the sources were found in: what belongs to none of them is told, and so is each image
            without annotation. None: a config's, which may take some sets of a folder only, and says with
            `unlabelled` what such images are.

    Raises:
        UserError: a folder or a list is missing.
    """
    by_root: dict[Path, list[SourceConfig]] = defaultdict(list)
    for source in (source for items in sources.values() for source in items if source.format == "voc"):
        by_root[data_root / (source.root or "")].append(source)
    problems = []
    for root, items in by_root.items():
        told = whole is not None or all(source.unlabelled is None for source in items)
        names = [source.image_set for source in items if source.image_set]
        if names:
            found = lint_voc_files(root, names, missing=told)
            problems += [problem for problem in found if whole is not None or not problem.code.endswith("-lonely")]
        elif whole is not None:  # the layout does without its lists
            lists = [path.stem for path in list_files(root / "ImageSets/Main", (".txt",), recursive=False)]
            found = lint_voc_files(root, list(filter(part_of_list, lists)))
            problems += [problem for problem in found if problem.code == "image-missing"]
        others = [source for source in items if not source.image_set]
        if others:
            problems += _lint_loose(root, others, data_root, missing=told, lonely=whole is not None and not names)
    return problems


def lint_voc_files(root: Path, image_sets: Sequence[str], *, missing: bool = True) -> list[Problem]:
    """The problems of the files of some image sets.

    Args:
        root: the folder that holds Annotations/, ImageSets/Main/ and JPEGImages/.
        image_sets: the sets whose files belong together; files in none of them are told.
        missing: tell images without an annotation file, where others have one.

    Raises:
        UserError: a folder or a list is missing.
    """
    listed = list(dict.fromkeys(name for image_set in image_sets for name in read_image_set(root, image_set)))
    images = {_below(path, root / "JPEGImages"): path for path in list_images(root / "JPEGImages")}
    xmls = {_below(path, root / "Annotations"): path for path in list_files(root / "Annotations", (".xml",))}
    problems = []
    for name in listed:
        if name not in images:
            problems.append(Problem("image-missing", str(root / "JPEGImages" / name)))
        if name in xmls:
            problems += _lint_file(xmls[name], Path(name).name if name in images else None)
        elif xmls and missing:
            problems.append(Problem("annotation-missing", str(root / "Annotations" / f"{name}.xml")))
    known = set(listed)
    problems += [Problem("image-lonely", str(path)) for name, path in images.items() if name not in known]
    return problems + [Problem("annotation-lonely", str(path)) for name, path in xmls.items() if name not in known]


def _lint_loose(
    root: Path, sources: Sequence[SourceConfig], data_root: Path, *, missing: bool, lonely: bool
) -> list[Problem]:
    """The problems of annotations that are found by their images' names, as `read_folder` finds them."""
    files = annotation_files(root, "voc")
    pairs = pair(images_below(root), files, root)
    problems = []
    for source in sources:
        if source.unlisted:
            names = set(unlisted_images(root))
            images = [path for path in list_images(root / "JPEGImages") if _below(path, root / "JPEGImages") in names]
        else:
            images = chosen_images(
                root,
                None if source.images is None else data_root / source.images,
                None if source.image_list is None else data_root / source.image_list,
            )
        for image in images:
            if image in pairs:
                problems += _lint_file(pairs[image], image.stem)
            elif pairs and missing:
                problems.append(Problem("annotation-missing", str(image)))
    if lonely:
        paired = set(pairs.values())
        problems += [Problem("annotation-lonely", str(path)) for path in files if path not in paired]
    return problems


def _lint_file(xml: Path, image: str | None) -> list[Problem]:
    """The problems of one annotation file; `image`: the name of its image without suffix, None: there is none."""
    try:
        annotation = read_annotation(xml)
    except UserError as error:
        return [Problem("annotation-broken", str(xml), value=str(error).removeprefix(f"{xml}: "))]
    problems = []
    name = annotation.filename.replace("\\", "/").rpartition("/")[2]
    if name and image is not None and image not in (name, Path(name).stem):
        problems.append(Problem("filename-differs", str(xml), value=annotation.filename))
    if annotation.size is None:
        problems.append(Problem("size-missing", str(xml)))
    return problems


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
