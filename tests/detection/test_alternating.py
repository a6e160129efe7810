"""The four phases: what trains, what it starts from, whose proposals it takes, and what stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.detection import ModelConfig, TestConfig
from datasets.batch import Batch
from detection import compilation as detector_compilation
from detection.alternating import PHASES, Alternating, Proposer, part_of
from detection.model import Detector, build_detector


def make_detector(**changes) -> Detector:
    config = ModelConfig(
        **{
            "backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0,
            "anchors": {"sizes": [16, 32]},
            "rpn": {"hidden_channels": 16, "batch_size_per_image": 16, "post_nms_top_n_train": 20,
                    "post_nms_top_n_test": 10},
            "box": {"pool_size": 2, "batch_size_per_image": 8},
            **changes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    return build_detector(config, ["cat", "dog"], test=TestConfig(score_thresh=0.0))


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.zeros(2, 8, 4)
    boxes[0, 0] = torch.tensor([8.0, 4.0, 30.0, 40.0])
    boxes[1, 0] = torch.tensor([20.0, 10.0, 60.0, 44.0])
    return Batch(
        images=torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator),
        image_sizes=torch.tensor([[64, 96], [50, 80]]),
        original_sizes=torch.tensor([[64, 96], [50, 80]]),
        boxes=boxes,
        labels=torch.tensor([[1] + [0] * 7, [2] + [0] * 7]),
        valid=boxes[..., 2] > 0,
        index=torch.tensor([0, 1]),
    )


def update(model, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
    """One step of plain gradient descent; returns the losses."""
    losses = model(batch, seed=0, iteration=iteration)
    sum(losses.values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    return losses


def snapshot(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts (backbone, rpn, roi_heads) of which some tensor is not what it was, bit for bit."""
    return {part_of(name) for name, value in before.items() if not torch.equal(value, after[name])}


def test_each_phase_changes_its_own_parts_and_nothing_else():
    """Batch norm's statistics too: those of the fixed body must not move. Frozen stages stay frozen throughout."""
    detector, batch = make_detector(), make_batch()
    detector.backbone.body.freeze_stages(2)
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert any("layer1" in name for name in frozen)
    course = Alternating(detector)
    first = snapshot(detector)
    parts = [{"backbone", "rpn"}, {"backbone", "roi_heads"}, {"rpn"}, {"roi_heads"}]
    for phase, expected in zip(PHASES, parts, strict=True):
        course.begin(phase)
        before = snapshot(detector)
        if phase.number == 2:  # phase 1 has moved the body: it starts again
            assert all(torch.equal(before[name], first[name]) for name in first if name.startswith("backbone."))
        model = course.model(phase)
        model.eval()
        model.train()  # as after a validation
        losses = update(model, batch, phase.number)
        after = snapshot(detector)
        assert changed(before, after) == expected
        of_rpn = {"loss_objectness", "loss_rpn_box_reg"}
        assert set(losses) == (of_rpn if "rpn" in expected else {"loss_classifier", "loss_box_reg"})
        trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in detector.named_parameters() if part_of(name) in expected} - frozen
        assert {name for name in trained if torch.equal(before[name], after[name])} == set()
        assert all(torch.equal(after[name], first[name]) for name in frozen)


def test_phase_1_and_2_from_the_same_start():
    """The losses of the first two phases are those of the joint losses at the first weights, but for the proposals."""
    detector, batch = make_detector(), make_batch()
    joint = copy.deepcopy(detector).train()(batch, seed=0, iteration=3)
    course = Alternating(detector)
    course.begin(PHASES[0])
    losses = course.model(PHASES[0])(batch, seed=0, iteration=3)
    assert {name: losses[name].item() for name in losses} == {name: joint[name].item() for name in losses}


def test_phase_2_takes_phase_1s_proposals():
    detector, batch = make_detector(), make_batch()
    course = Alternating(detector)
    course.begin(PHASES[0])
    for iteration in range(3):
        update(course.model(PHASES[0]), batch, iteration)
    after_1 = copy.deepcopy(detector).eval()
    course.begin(PHASES[1])
    for iteration in range(3, 6):
        update(course.model(PHASES[1]), batch, iteration)

    with torch.no_grad():
        of_1 = {
            training: after_1.rpn(after_1.features(batch), batch.image_sizes, training=training)[0]
            for training in (True, False)
        }
        reference = copy.deepcopy(detector).train()
        expected = reference.roi_losses(reference.features(batch), of_1[True], batch, seed=0, iteration=6)
        own = copy.deepcopy(detector).train().losses(batch, seed=0, iteration=6)
        losses = course.model(PHASES[1])(batch, seed=0, iteration=6)
        found = course.model(PHASES[1]).eval()(batch)
        wanted = detector.eval().detect(batch, of_1[False])
        others = detector.detect(batch)
    for name, value in losses.items():
        assert value.item() == expected[name].item()
        assert value.item() != own[name].item()
    assert torch.equal(found.boxes, wanted.boxes)
    assert not torch.equal(found.boxes, others.boxes)


def test_phase_4_takes_the_proposals_of_the_shared_network():
    detector, batch = make_detector(), make_batch()
    course = Alternating(detector)
    for phase in PHASES[:3]:
        course.begin(phase)
        update(course.model(phase), batch, phase.number)
    course.begin(PHASES[3])
    model = course.model(PHASES[3])
    with torch.no_grad():
        reference = copy.deepcopy(detector)
        features = reference.eval().features(batch)  # the fixed body does not take the batch's statistics
        proposals, _ = reference.rpn(features, batch.image_sizes, training=True)
        reference.roi_heads.train()
        expected = reference.roi_losses(features, proposals, batch, seed=0, iteration=4)
        losses = model(batch, seed=0, iteration=4)
        found, wanted = model.eval()(batch), reference.eval()(batch)
    assert {name: value.item() for name, value in losses.items()} == {n: v.item() for n, v in expected.items()}
    assert torch.equal(found.boxes, wanted.boxes)
    assert torch.equal(found.scores, wanted.scores)


def test_the_copy_that_proposes_is_one_where_regions_are_compiled(monkeypatch):
    """Compiled regions are functions on the modules that call the original's forward; the copy must not call them."""
    detector, batch = make_detector(), make_batch()
    plain = detector.eval().rpn(detector.features(batch), batch.image_sizes, training=False)[0]
    monkeypatch.setattr(detector_compilation, "with_fallback", lambda function, name: lambda *a: function(*a))
    detector_compilation.compile_regions(detector)
    proposer = Proposer(detector)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.zero_()
    assert torch.equal(proposer(batch, training=False).boxes, plain.boxes)


@pytest.mark.parametrize("number", [1, 2])
def test_goes_on_from_a_saved_state(number):
    batch = make_batch()
    runs = []
    for resumed in (False, True):
        detector = make_detector()
        course = Alternating(detector)
        for phase in PHASES[:number]:
            course.begin(phase)
            update(course.model(phase), batch, phase.number)
        if resumed:
            weights, state = snapshot(detector), copy.deepcopy(course.state_dict())
            torch.manual_seed(99)
            detector = make_detector()
            update(detector, batch, 77)  # other weights
            detector.load_state_dict(weights)
            course = Alternating(detector)
            course.load_state_dict(state)
        update(course.model(PHASES[number - 1]), batch, 8)
        course.begin(PHASES[number])
        update(course.model(PHASES[number]), batch, 9)
        runs.append(snapshot(detector))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_fixed_body_keeps_no_graph():
    detector, batch = make_detector(), make_batch()
    course = Alternating(detector)
    seen = []
    detector.backbone.register_forward_hook(lambda module, inputs, maps: seen.append(maps[0].requires_grad))
    for phase in PHASES:
        course.begin(phase)
        course.model(phase)(batch, seed=0, iteration=0)
    assert seen == [True, True, False, False, False]  # the third is the copy that proposes in phase 2


class _Waits(TorchDispatchMode):
    """Collects the operators whose result the host would have to wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique", "_unique2", "masked_select"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_in_any_phase():
    detector, batch = make_detector(), make_batch()
    course = Alternating(detector)
    for phase in PHASES:
        course.begin(phase)
        model = course.model(phase)
        update(model, batch, 0)  # anchors are made
        with _Waits() as waits:
            sum(model(batch, seed=0, iteration=1).values()).backward()
        assert waits.found == []
        detector.zero_grad(set_to_none=True)


def test_the_final_phases_are_those_that_give_a_whole_detector():
    assert [phase.is_final for phase in PHASES] == [False, False, False, True]
    assert [phase.detects for phase in PHASES] == [False, True, False, True]
