"""Download, verify and unpack a public data set where the configs look for it.

    python tools/prepare_data.py voc2007 --data-root data

voc2007, voc2012, coco2014, coco2017, coco_test2015, coco_test2017 (with the lists of test-dev); cifar10, cifar10_5k
(its first 4,000 and 1,000 images as PNG), tiny_imagenet, tiny_imagenet_20 (the 20 classes of this project's figures),
bccd. For imagenet and imagenet_det, which need an account, it says what to fetch by hand and where to put it. An
interrupted download is continued by the same command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from datasets.download import plan, prepare
from datasets.public_sets import PUBLIC_SETS
from tools.runtime import cli

IMAGENET = """\
ImageNet (ILSVRC2012, classification and localisation) needs an account: register at
https://www.image-net.org/download.php and fetch by hand

  file                               about     md5
  ILSVRC2012_img_train.tar           148 GB    1d675b47d978889d74fa0da5fadfb00e
  ILSVRC2012_img_val.tar             6.7 GB    29b22e2961454d5413ddabcf34fc5622
  ILSVRC2012_devkit_t12.tar.gz       2.6 MB    fa75699e90414af021442c21a62c3abf
  ILSVRC2012_bbox_train_v2.tar.gz    20 MB     9271167e2176350e65cfe4e546f14b17  (only for localisation)
  ILSVRC2012_bbox_val_v3.tgz         2.2 MB    f4cd18b5ea29fe6bbea62ec9c20d80f0  (only for localisation)
  ILSVRC2012_img_test_v10102019.tar  13 GB     e1b8681fff3d63731c599df9b4b6fc02  (only for submissions)

Put them into {root} and run there

  md5sum ILSVRC2012_*
  mkdir -p Data/CLS-LOC/train Data/CLS-LOC/val Annotations/CLS-LOC/train
  tar -xf ILSVRC2012_img_val.tar -C Data/CLS-LOC/val
  tar -xf ILSVRC2012_img_test_v10102019.tar -C Data/CLS-LOC
  tar -xf ILSVRC2012_devkit_t12.tar.gz
  tar -xf ILSVRC2012_bbox_train_v2.tar.gz -C Annotations/CLS-LOC/train
  tar -xf ILSVRC2012_bbox_val_v3.tgz -C Annotations/CLS-LOC
  tar -xf ILSVRC2012_img_train.tar -C Data/CLS-LOC/train
  cd Data/CLS-LOC/train && for f in *.tar; do mkdir -p "${{f%.tar}}" && tar -xf "$f" -C "${{f%.tar}}" && rm "$f"; done

Afterwards there are
  {root}/Data/CLS-LOC/train/<wnid>/*.JPEG        1,281,167 images in 1,000 folders
  {root}/Data/CLS-LOC/val/*.JPEG                 50,000 images
  {root}/Data/CLS-LOC/test/*.JPEG                100,000 images
  {root}/Annotations/CLS-LOC/train/<wnid>/*.xml  boxes of 544,546 images
  {root}/Annotations/CLS-LOC/val/*.xml           boxes of 50,000 images
  {root}/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt, meta.mat

Kaggle's archive of the same set has this layout (ILSVRC/Data/CLS-LOC, ILSVRC/Annotations/CLS-LOC), but lacks the
development kit: give its LOC_val_solution.csv as ground_truth. Its LOC_synset_mapping.txt, in the folder that holds
ILSVRC/, is enough for tools/test_loc.py to write Kaggle's submission."""

IMAGENET_DET = """\
ImageNet DET (detection, 200 classes, ILSVRC2017's edition of the set of 2014) needs an account: register at
https://www.image-net.org/download.php and fetch by hand

  file                            about
  ILSVRC2017_DET.tar.gz           55 GB   images, annotations and lists of train and val
  ILSVRC2017_DET_test_new.tar.gz  0.4 GB  images of test (only for the evaluation server)

Put them into {data_root} and run there

  tar -xzf ILSVRC2017_DET.tar.gz
  tar -xzf ILSVRC2017_DET_test_new.tar.gz

Afterwards there are
  {data_root}/ILSVRC/Annotations/DET/train/ILSVRC2013_train/<wnid>/*.xml, ILSVRC2014_train_000*/*.xml
  {data_root}/ILSVRC/Annotations/DET/val/*.xml  20,121 files
  {data_root}/ILSVRC/Data/DET/...               the same with .JPEG, and test/
  {data_root}/ILSVRC/ImageSets/DET/             train_1.txt to train_200.txt, val.txt, test.txt

The halves val1 and val2 of R-CNN (Girshick et al. 2014) come with its code. Where their lists lie as
  {data_root}/ILSVRC/ImageSets/DET/val1.txt, val2.txt (one image id a line)
they are taken; otherwise val is halved by this project's own rule, balanced by class, the same each time."""


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, data_root=True)
    parser.add_argument(
        "name", choices=[*PUBLIC_SETS, "imagenet", "imagenet_det"], metavar="NAME", help="which data set"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--mirror", metavar="URL", help="the archives lie under this URL by their bare names")
    source.add_argument("--archives", type=Path, metavar="DIR", help="the archives lie in this folder already")
    parser.add_argument("--keep-archives", action="store_true", help="do not remove the archives after unpacking")
    return parser


def main(args: argparse.Namespace) -> None:
    root = cli.find_data_root(args.data_root)
    if args.name == "imagenet":
        print(IMAGENET.format(root=root / "ILSVRC"))
        return
    if args.name == "imagenet_det":
        print(IMAGENET_DET.format(data_root=root))
        return
    public_set = PUBLIC_SETS[args.name]
    for line in plan(public_set, root, mirror=args.mirror, archives=args.archives):
        print(line)
    if args.dry_run:
        return
    prepare(public_set, root, mirror=args.mirror, archives=args.archives, keep_archives=args.keep_archives)
    print(f"{args.name} is in {', '.join(str(root / part) for part in public_set.result.split(', '))}")
    if args.name == "voc2012":
        print(f"Its test set needs an account at http://host.robots.ox.ac.uk:8080: unpack it into {root}")


if __name__ == "__main__":
    cli.run(main, make_parser())
