"""Train ImageNet localisation (He et al. 2016, App. C): the per-class RPN, then the R-CNN on its proposals.

    python tools/train_loc.py --cfg configs/tiny_imagenet_loc_rpn.yaml
    torchrun --nproc-per-node 8 tools/train_loc.py --cfg configs/imagenet_loc_rpn_resnet101.yaml
    torchrun --nproc-per-node 8 tools/train_loc.py --cfg configs/imagenet_loc_rcnn_resnet101.yaml
    python tools/train_loc.py --cfg configs/tiny_imagenet_loc_rpn.yaml --resume

Both stages start from a classifier (`model.weights`, a checkpoint of tools/pretrain.py), or with `--init-from` from a
localiser of the same stage. The run's folder holds config.yaml, metrics.jsonl, curves.png, TensorBoard events, last.pt,
best.pt, metrics_val.json and metrics.json (of the test set where there is one, with the last weights).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from configs.errors import UserError, counted, examples
from configs.loading import dump_config, load_config
from configs.localisation import LocalisationConfig
from datasets.lint import summary
from datasets.localisation import read_localisation
from datasets.records import Records
from detection.checkpoint import load_matching
from detection.localisation import KIND, PerClassRcnn, PerClassRpn, build_localiser, load_localiser
from tools.runtime import cli, distributed
from tools.runtime.distributed import say
from tools.runtime.guards import LARGE, common_images
from tools.runtime.localisation import figures, predict, say_table, trivial_figures
from tools.runtime.loop import fit, how_to_resume
from tools.runtime.plan import State, make_plan
from tools.runtime.resume import data_state, refuse_another_training
from tools.runtime.run_folder import RunFolder, provenance
from tools.runtime.schedule import Schedule
from tools.runtime.start import Job, say_place, say_steps, training, write_final_figures
from tools.runtime.tasks.localisation import LocalisationTask
from tools.runtime.texts import differing, net_name
from tools.runtime.training import count_parameters, place

CLASS_LAYERS = ("siblings.cls_logits.", "siblings.bbox_pred.", "net.fc.", "net.classifier.6.")
"""Names of a localiser's parameters that belong to single classes."""


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args), LocalisationConfig)
    with training(args) as job:
        train(config, job)


def train(config: LocalisationConfig, job: Job) -> None:
    """The whole run, from the data to the figures of the test set."""
    sets = distributed.main_first(lambda: read_sets(config, job.data_root))
    class_names = sets["train"].class_names
    if distributed.is_main():
        check(config, sets)
    checkpoint = job.checkpoint(KIND)
    if checkpoint is not None:
        refuse_another_training(job.run.last, checkpoint["config"], config, checkpoint["class_names"], class_names)
    torch.manual_seed(config.seed)
    net = distributed.main_first(lambda: make_localiser(config, class_names, job))  # who goes first may download
    place(net, job.device, channels_last=config.train.channels_last, winograd=config.train.winograd)
    proposer = load_proposer(config, job.data_root, class_names, job.device)
    task = LocalisationTask(config, net, proposer, sets["train"], sets.get("val"), job.device)
    describe(config, net, sets, task.schedule, job.device, job.run)
    header = provenance(job.data_root) + dump_config(config)
    data = data_state(sets["train"]) if distributed.is_main() else None
    plan = make_plan(task, job.run, job.device, header=header, stop=job.stop, checkpoint=checkpoint, data=data)
    state = fit(task, plan)
    try:
        finish(task, sets, job.run, state)
    except cli.Interrupted:
        raise cli.Interrupted(how_to_resume(job.run, state.iteration)) from None


def read_sets(config: LocalisationConfig, data_root: Path) -> dict[str, Records]:
    """train, and val and test where the config has them, with the first one's classes.

    Raises:
        UserError: the test set has no labels.
    """
    if config.data.test is not None and config.data.test.split == "test":
        raise UserError(
            "data.test: has no labels, so a training cannot end with its errors: set data.test=null, and give the set "
            "to tools/test_loc.py"
        )
    sets = {"train": read_localisation(config.data.train, data_root)}
    for split in ("val", "test"):
        source = getattr(config.data, split)
        if source is not None:
            sets[split] = read_localisation(source, data_root, sets["train"].class_names)
    return sets


def check(config: LocalisationConfig, sets: dict[str, Records]) -> None:
    """Say what is likely wrong with the sets, from their boxes and the files of their images."""
    size, more = config.data.test_resize, "files and objects are named above, where they are errors"
    say(f"check      {summary(sets, min_size=size, max_size=100 * size, more=more)}")
    for warning in common_images({name: part.image_paths for name, part in sets.items() if len(part) <= LARGE}):
        say(f"warning: {warning}")


def make_localiser(config: LocalisationConfig, class_names: list[str], job: Job) -> PerClassRpn | PerClassRcnn:
    """The network with the classifier's weights, or with those of `--init-from`."""
    if job.init_from is None:
        return build_localiser(config.model, len(class_names), data_root=job.data_root)
    given = load_localiser(job.init_from, config.model.stage)
    net = build_localiser(config.model, len(class_names), preprocessing=given.net.normalize.preprocessing)
    weights = given.net.state_dict()
    if given.class_names != class_names:  # equal numbers of other classes have equal shapes
        weights = {name: value for name, value in weights.items() if not name.startswith(CLASS_LAYERS)}
    fresh = load_matching(net, weights, job.init_from)
    say(f"weights    of {job.init_from}" + (f"; from scratch: {', '.join(fresh)}" if fresh else ""))
    return net


def load_proposer(
    config: LocalisationConfig, data_root: Path, class_names: list[str], device: torch.device
) -> PerClassRpn | None:
    """The RPN of `model.rcnn.proposals` for stage rcnn; None for stage rpn.

    Raises:
        UserError: there is no such file, it is not of stage rpn, or its classes are others.
    """
    if config.model.stage == "rpn":
        return None
    assert config.model.rcnn.proposals is not None, "the schema wants it for stage rcnn"
    given = config.model.rcnn.proposals
    path = given if Path(given).is_file() or not (data_root / given).is_file() else data_root / given
    localiser = load_localiser(path, "rpn", device=device)
    if localiser.class_names != class_names:
        which = differing(localiser.class_names, class_names)
        raise UserError(f"{path}: was trained on other classes than the data's ({which})")
    return localiser.net.requires_grad_(False)


def describe(
    config: LocalisationConfig,
    net: nn.Module,
    sets: dict[str, Records],
    schedule: Schedule,
    device: torch.device,
    run: RunFolder,
) -> None:
    kind = {"rpn": "per-class RPN", "rcnn": "R-CNN"}[config.model.stage]
    train_set = sets["train"]
    others = "".join(f", {len(records):,} to {split}" for split, records in sets.items() if split != "train")
    images, objects = counted(len(train_set), "image"), counted(len(train_set.labels), "object")
    say(f"data       {images} with {objects} to train on{others}")
    say(f"classes    {len(train_set.class_names)}: {examples(train_set.class_names, 10)}")
    kind += f" on {net_name(config.model.backbone)}, weights {config.model.weights}"
    say(f"model      {kind}: {count_parameters(net)[0]:,} parameters train")
    say_steps(config, schedule)
    say_place(device, config.train.amp, run)


def finish(task: LocalisationTask, sets: dict[str, Records], run: RunFolder, state: State) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the figures."""
    test, final = task.recipe.test, dict[str, dict[str, Any]]()
    validated = state.validated == state.iteration and test.validation_view == test.view
    for split, records in sets.items():
        if split == "train":
            continue
        if split == "val" and validated and state.metrics is not None:
            values = state.metrics
        else:
            found = predict(task.members, records, task.recipe, task.device, view=test.view, what=split)
            values = figures(found, records)
        values = {**values, **trivial_figures(task.class_means, records)}
        final[split] = {**values, "view": test.view, "iteration": state.iteration}
        say_table(values, f"{split}, {counted(int(values['images']), 'image')}, last weights, view {test.view}")
    write_final_figures(run, final)


def make_parser() -> argparse.ArgumentParser:
    return cli.make_training_parser(__doc__)


if __name__ == "__main__":
    cli.run(main, make_parser())
