"""Train a detector, validate it, keep its last and best checkpoints, and test it.

    python tools/train_det.py --cfg configs/demo.yaml
    python tools/train_det.py --cfg my.yaml --out runs/mine --set optim.lr=0.01 train.amp=bf16
    python tools/train_det.py --cfg my.yaml --out runs/mine --resume
    torchrun --nproc-per-node 8 tools/train_det.py --cfg configs/frcnn_r101_coco.yaml

The run's folder holds config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt (of the best validation;
without a validation set, the last), metrics_val.json, metrics.json (of the test set, with the last weights),
detections, curves.png, pictures and report/index.html.

`train.alternating` trains in four phases, as the papers did (docs/improvements.md); otherwise all trains at once.
Validations during the training use the plain test; the final one does what `test` in the config asks for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from configs.detection import DetectionConfig
from configs.errors import counted
from configs.loading import dump_config, load_config
from datasets.detection import DetectionDataset
from detection.alternating import PHASES, Alternating
from detection.compilation import compile_regions
from detection.evaluation.evaluate import format_table, write_metrics
from detection.model import Detector, with_described_net
from tools.runtime import cli, distributed
from tools.runtime.curves import write_curves
from tools.runtime.distributed import say
from tools.runtime.evaluation import run_detector, score, write_results
from tools.runtime.guards import before_training, why_zero
from tools.runtime.loop import fit, how_to_resume
from tools.runtime.pictures import write_pictures
from tools.runtime.plan import State, make_plan
from tools.runtime.resume import data_state, refuse_another_training
from tools.runtime.run_folder import provenance
from tools.runtime.setup import (
    automatic_batch_size,
    build_datasets,
    check_line,
    check_validation,
    describe,
    make_detector,
    rehearse,
    with_size,
)
from tools.runtime.start import Job, say_steps, training
from tools.runtime.tasks.alternating import PhaseTask
from tools.runtime.tasks.detection import DetectionTask
from tools.runtime.training import place


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args))
    with training(args) as job:
        train(config, job)


def train(config: DetectionConfig, job: Job) -> None:
    """The whole run, from the data to the test set's table."""
    # Data before the model: what is missing is said at once.
    sets = distributed.main_first(lambda: build_datasets(config, job.data_root, job.run.path))
    check_validation(config, *sets)
    train_set, val_set, test_set = sets
    if distributed.is_main():
        say(f"check      {check_line(config.data, *sets)}")
    checkpoint = job.checkpoint("detector")
    described = checkpoint["config"]["model"] if checkpoint is not None else None
    if described is None and job.init_from is not None and config.model.backbone is not None:
        described = {}  # the backbone's own weights are not looked for
    config = config.model_copy(update={"model": with_described_net(config.model, job.data_root, described)})
    if checkpoint is not None:
        stored = checkpoint["config"], checkpoint["class_names"]
        if not config.train.batch_size:  # auto goes on with the number that was found
            config = with_size(config, stored[0]["train"]["batch_size"])
        refuse_another_training(job.run.last, stored[0], config, stored[1], train_set.class_names)
    torch.manual_seed(config.seed)  # the new layers
    detector = distributed.main_first(  # who goes first may download weights
        lambda: make_detector(config, train_set.class_names, job.data_root, checkpoint, job.init_from)
    )
    place(detector, job.device, channels_last=config.train.channels_last, winograd=config.train.winograd)
    if not config.train.batch_size:
        config = with_size(config, automatic_batch_size(config, detector.train(), train_set, job.device))
    others = [part.records for part in (val_set, test_set) if part is not None]
    for warning in before_training(config, train_set.records, others):
        say(f"warning: {warning}")
    describe(config, detector, *sets, job.device, job.run, job.init_from)
    phases = Alternating(detector) if config.train.alternating is not None else None
    if config.train.compile:
        compile_regions(detector)

    if phases is None:
        task = DetectionTask(config, detector, train_set, val_set, job.device)
        state = train_task(task, job, State.of(checkpoint), checkpoint)
    else:
        state = train_phases(config, phases, train_set, val_set, job, checkpoint)
    finish(config, detector, val_set, test_set, job, state)


def train_task(
    task: DetectionTask, job: Job, state: State, checkpoint: dict | None, *, what: str = "training", phase: int = 0
) -> State:
    """One phase from its start, or from a checkpoint of it, to its end; joint training has no other."""
    config = task.recipe
    header = provenance(job.data_root) + dump_config(task.whole if isinstance(task, PhaseTask) else config)
    plan = make_plan(
        task, job.run, job.device, header=header, stop=job.stop, state=state, checkpoint=checkpoint, what=what,
        constants={"phase": phase} if phase else {},
        data=data_state(task.train_set.records) if distributed.is_main() else None,
    )  # fmt: skip
    say_steps(config, task.schedule)
    if job.device.type == "cuda":
        rehearse(task.model, task.train_set, config, job.device)
    return fit(task, plan)


def train_phases(
    config: DetectionConfig,
    alternating: Alternating,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    job: Job,
    checkpoint: dict | None,
) -> State:
    """The four phases, from the one that a checkpoint is of."""
    state = State.of(checkpoint)
    for phase in PHASES[state.phase - 1 :]:
        if checkpoint is None:
            state.phase, state.phase_start = phase.number, state.iteration
            alternating.begin(phase)
        else:
            alternating.load_state_dict(checkpoint["training"]["alternating"])
        task = PhaseTask(config, alternating, phase, train_set, val_set, job.device, start=state.phase_start)
        what = f"phase {phase.number} of {len(PHASES)}"
        trained = sum(parameter.numel() for parameter in task.net.parameters() if parameter.requires_grad)
        say(f"\n{what}: {phase.description}; {trained:,} parameters train")
        state = train_task(task, job, state, checkpoint, what=what, phase=phase.number)
        checkpoint = None
    return state


def finish(
    config: DetectionConfig,
    detector: Detector,
    val_set: DetectionDataset | None,
    test_set: DetectionDataset | None,
    job: Job,
    state: State,
) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the results."""
    run = job.run
    if state.metrics is not None and run.writes:
        write_metrics(run.path / "metrics_val.json", state.metrics)
    with run.noting():
        curves = write_curves(run.path) if run.writes else None
    final_set, what = (test_set, "test") if test_set is not None else (val_set, "validation")
    if final_set is None:
        say(f"no validation or test set is given: {run.last} is the result")
        return
    try:
        outcome = run_detector(detector, final_set, config, job.device, what=what, test=config.test)
    except cli.Interrupted:
        raise cli.Interrupted(how_to_resume(run, state.iteration)) from None
    metrics = score(final_set.records, outcome.detections, config.metrics) if final_set.records.annotated else None
    if not run.writes:
        return
    if metrics is not None:
        say(f"\n{what} set, {counted(len(final_set), 'image')}, last weights (iteration {state.iteration}):\n")
        say(format_table(metrics))
        if reason := why_zero(metrics, outcome.detections.scores, config.test.score_thresh, state.iteration):
            say(f"\nwarning: {reason}")
    with run.noting():
        files = write_results(run.path, final_set.records, outcome.detections, metrics, curves=curves)
        write_pictures(run.pictures, final_set.records, outcome.detections)
    say(f"\nresults   {', '.join(str(path) for path in files)}")
    say(f"pictures  {run.pictures} (all on one: {run.pictures / 'overview.png'})")
    say(f"curves    {run.path / 'curves.png'}")
    if run.best.exists():  # not where no validation could be measured
        say(f"weights   {run.best}: {'the best by the validation set' if val_set is not None else 'the last'}, to use")
    say(f"          {run.last}: the last, which the table is of and --resume goes on from")


def make_parser() -> argparse.ArgumentParser:
    return cli.make_training_parser(__doc__)


if __name__ == "__main__":
    cli.run(main, make_parser())
