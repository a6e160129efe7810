"""What an experiment is: which configs are trained with which seeds, what is tested, and the claims that it judges.

`tools/experiments.py` runs the files of `configs/experiments/` and draws docs/results.md from what they measured.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from configs.common import NonNegativeInt, PositiveInt, Section, Seed

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


class TrainedConfig(Section):
    """A config with its changes, trained once for each seed."""

    name: Name
    """What tables call it; its folder."""
    config: Name
    """A file of configs/, without its ending."""
    overrides: list[str] = []
    """Changes of the config, written as for --set; they come after the experiment's."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """null: the experiment's."""
    starts_from: Name | None = None
    """An earlier entry of `runs`, whose last checkpoint is model.weights: of the same seed, else of its first one."""
    deepen: list[PositiveInt] | None = None
    """The units of each stage to which the net of `starts_from` is deepened by identity layers (tools/deepen.py)."""
    trainer: Literal["ours", "torchvision"] = "ours"
    """torchvision: torchvision's own FasterRCNN of the same size in the same loop, for a detector with neck: fpn
    (tools/benchmarks/torchvision_training.py)."""
    published: str = ""
    """What its paper gives for the net, with a budget of its own: a column of the table beside the figures here."""
    listed: bool = True
    """Its figures have a row; false: it only serves others, as a pretraining does."""


class TestedConfig(Section):
    """A test of the last checkpoints of an entry of `runs`, which must be a detector."""

    __test__: ClassVar[bool] = False
    """pytest must not take the class for a test."""
    name: str
    """What tables call it."""
    run: Name
    """The entry of `runs`."""
    overrides: list[str] = []
    """Changes of the config, written as for --set."""
    ensemble: bool = False
    """All seeds together as one detector, in place of each seed alone."""
    among: list[list[str]] = []
    """Further changes, of which those with the best mean of `by` on the validation set are taken; [] itself is the
    test without them."""
    by: str = "coco.AP"
    """The metric that chooses among them."""


class ClaimConfig(Section):
    """A sentence, and the comparison of means over the seeds that decides whether it holds here."""

    claim: str
    """The sentence."""
    metric: str
    """A path in the entries of docs/results/<name>.json: train_error, metrics.top1_error, metrics.voc12.mAP, ..."""
    pairs: list[tuple[str, str]] = []
    """Names of two rows: in each pair, the second has the higher mean."""
    margin: float = 0.0
    """By more than this."""
    of: list[str] = []
    """Names of rows whose means are at least `at_least` and at most `at_most`."""
    at_least: float | None = None
    """Lower limit for the rows of `of`."""
    at_most: float | None = None
    """Upper limit for the rows of `of`."""

    @model_validator(mode="after")
    def _decides_something(self) -> ClaimConfig:
        if bool(self.of) != (self.at_least is not None or self.at_most is not None):
            raise ValueError("of goes with at_least or at_most: give both or neither")
        if not self.pairs and not self.of:
            raise ValueError("give pairs, or of with at_least or at_most: without them nothing decides the claim")
        return self


class ColumnConfig(Section):
    """A column of the experiment's table."""

    title: str
    """Heading."""
    metric: str
    """A path in the entries of the JSON file, as in a claim."""
    factor: float = 1.0
    """Figures are multiplied by this: 100 for per cents, 0.016667 for minutes."""
    digits: NonNegativeInt = 3
    """Digits behind the point."""
    best: Literal["lowest", "highest"] | None = None
    """Which of the seeds' figures is the best one: it is shown first, as in the paper's Table 6: 6.43 (6.61 ± 0.16)."""


class MeasurementConfig(Section):
    """A script that writes a JSON file of its own."""

    file: Name
    """docs/results/<file>.json."""
    command: str
    """The command, without --out: python tools/benchmark.py infer."""


class ExperimentConfig(Section):
    """A file of configs/experiments/."""

    title: str
    """Heading of its section in docs/results.md."""
    budget: str
    """What every run gets, and how long all of them take, in words."""
    claims: list[ClaimConfig] = []
    """What is to be judged."""
    reading: str = "not run"
    """One or two sentences on what came out, by hand; until then: not run."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """One run for each, of every entry of `runs`."""
    overrides: list[str] = []
    """Changes of all configs, written as for --set."""
    runs: list[TrainedConfig] = []
    """What is trained, in this order."""
    tests: list[TestedConfig] = []
    """What is tested when all is trained."""
    columns: list[ColumnConfig] = []
    """The table's: means and standard deviations over the seeds, of the last checkpoints."""
    figures: list[Literal["curves", "responses"]] = []
    """For classifiers: error by iteration, and the standard deviations of the layers' responses."""
    measurements: list[MeasurementConfig] = []
    """Scripts that are run, in place of trainings."""

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> ExperimentConfig:
        if not self.runs and not self.measurements:
            raise ValueError("give runs or measurements: there is nothing to do")
        names = [run.name for run in self.runs]
        rows = [*names, *(test.name for test in self.tests)]
        twice = next((name for name in rows if rows.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two rows are called {twice}: give each its own name")
        for place, run in enumerate(self.runs):
            if run.starts_from is not None and run.starts_from not in names[:place]:
                raise ValueError(f"{run.name}: starts_from: there is no earlier run {run.starts_from}")
            if run.deepen is not None and run.starts_from is None:
                raise ValueError(f"{run.name}: deepen needs starts_from: the run whose net is deepened")
        for test in self.tests:
            if test.run not in names:
                raise ValueError(f"{test.name}: there is no run {test.run}: there are {', '.join(names)}")
        for claim in self.claims:
            missing = [name for name in (*sum(claim.pairs, ()), *claim.of) if name not in rows]
            if missing:
                raise ValueError(f"the claim {claim.claim!r}: there is no row {missing[0]}")
        return self
