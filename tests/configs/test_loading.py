"""YAML into the schema: values, refusals, and the words of the messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs import loading
from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config, parse_config, parse_yaml

VALID = """
data:
  train: [{format: voc, root: a, image_set: train}]
model: {backbone: resnet18, weights: random, norm: batch, frozen_stages: 0}
optim: {lr: 1e-3, reference_batch_size: 1}
schedule: {iterations: 10}
train: {batch_size: 2}
"""


def parse(*overrides: str) -> DetectionConfig:
    return parse_config(parse_yaml(VALID, "my.yaml"), overrides, DetectionConfig, "my.yaml")


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        parse(*overrides)
    assert "\n" not in str(error.value)
    for jargon in ("pydantic", "Input should", "validation error", "type=", "constrained"):
        assert jargon not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------- YAML


def test_scalars_are_those_of_yaml_1_2():
    text = "[1e-3, .5, 1., -2, 010, +1, .inf, true, FALSE, ~, null, no, on, 2007-01-01, 1_000, '1', 1:30]"
    read = parse_yaml(text, "x")
    inf = float("inf")
    words = ["no", "on", "2007-01-01", "1_000", "1", "1:30"]
    assert read == [0.001, 0.5, 1.0, -2, 10, 1, inf, True, False, None, None, *words]
    assert [type(value) for value in read[:5]] == [float, float, float, int, int]


def test_duplicate_keys_are_refused_with_their_lines():
    with pytest.raises(UserError, match=r"^my\.yaml:3: the key lr appears twice \(first in line 2\)"):
        parse_yaml("optim:\n  lr: 1\n  lr: 2\n", "my.yaml")
    parse_yaml("a: {lr: 1}\nb: {lr: 2}\n", "my.yaml")


def test_merge_keys_work_and_may_be_overridden():
    read = parse_yaml("base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n", "x")
    assert read["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("text", ["a: [1", "a: 1\n b: 2", "a: !!python/object/apply:os.system [ls]", "\t- a", "a: 'x"])
def test_what_is_not_yaml_is_one_line_with_file_and_line(text):
    with pytest.raises(UserError, match=r"^my\.yaml:\d+: ") as error:
        parse_yaml(text, "my.yaml")
    assert "\n" not in str(error.value)


scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(values)
def test_dumper_and_loader_agree_on_every_value(value):
    from configs.loading import _Dumper

    assert parse_yaml(yaml.dump({"key": value}, Dumper=_Dumper, allow_unicode=True), "x") == {"key": value}


def test_dumped_config_is_the_same_config():
    config = parse("data.classes=['no', '1e-3', 'null', '7', cat]", "optim.lr=3e-05", "data.rename_classes={a: b}")
    assert parse_config(parse_yaml(dump_config(config), "x"), [], DetectionConfig, "x") == config
    assert list(parse_yaml(dump_config(config), "x")) == list(DetectionConfig.model_fields), "in the schema's order"


# ---------------------------------------------------------------------------------------------- --set


def test_overrides_pass_the_same_checks_and_types():
    config = parse("optim.lr=2e-2", "data.train.0.root=mine", "train.ema_decay=0.99", "data.min_size=[480, 600]")
    assert (config.optim.lr, config.data.train[0].root, config.train.ema_decay) == (0.02, "mine", 0.99)
    assert config.data.min_size == [480, 600]
    assert parse("seed=1", "seed=2").seed == 2
    assert parse("schedule.iterations=null", "schedule.epochs=3").schedule.epochs == 3


def test_overrides_leave_the_given_values_alone():
    given_values = parse_yaml(VALID, "x")
    parse_config(given_values, ["data.train.0.root=mine", "optim.lr=5"], DetectionConfig, "x")
    assert given_values == parse_yaml(VALID, "x")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "--set optim.lr: write it as key.path=value"),
        ("data.train.3.root=a", "data.train is a list of 1: give an index 0..0, not '3'"),
        ("data.train.x.root=a", "give an index 0..0, not 'x'"),
        ("data.val.0.root=a", "unknown key data.val.0"),
        ("optim.lr.x=1", "optim.lr is 0.001: it has no key 'x'"),
        ("optim.lr=[1", "--set optim.lr=[1:1: "),
    ],
)
def test_overrides_that_lead_nowhere(override, expected):
    assert expected in message(override) or "data.val must be a list" in message(override)


# ---------------------------------------------------------------------------------------------- messages


def test_mistakes_of_the_file_name_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(VALID.replace("lr: 1e-3", "learning_rate: 1"))
    with pytest.raises(UserError) as error:
        load_config(file)
    assert f"{file}: optim.lr is missing" in str(error.value)
    assert f"{file}: unknown key optim.learning_rate" in str(error.value)


@pytest.mark.parametrize("values_", [[1], "text", 3])
def test_a_config_is_a_mapping(values_):
    with pytest.raises(UserError, match=r"my\.yaml: a config is a mapping"):
        parse_config(values_, [], DetectionConfig, "my.yaml")


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "demo.yaml").write_text(VALID)
    with pytest.raises(UserError, match=r"no such config file: did you mean .*demo\.yaml\?"):
        load_config(tmp_path / "demp.yaml")
    with pytest.raises(UserError, match="no such config file"):
        load_config(Path("nowhere/x.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: line 1 is not text in UTF-16"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "plain.yaml").write_text(VALID)
    (tmp_path / "marked.yaml").write_text(VALID, encoding=encoding)
    assert load_config(tmp_path / "marked.yaml") == load_config(tmp_path / "plain.yaml")


def bomb(levels: int) -> str:
    """Each line holds the one before nine times: 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(10), "x.yaml:6: holds more than 100000 values, references followed"),
        ("a: &a [*a]", "x.yaml:1: a value refers to itself"),
        ("a: &a {b: {c: *a}}", "x.yaml:1: a value refers to itself"),
        ("[" * 5000, "x.yaml:1: has more than 100 levels"),
        ("- " * 5000 + "a", "x.yaml:1: has more than 100 levels"),
        ("a: !!int ''", "a value does not fit its type"),
        ("a: !!float x", "a value does not fit its type"),
        ("a: !!timestamp 'x'", "a value does not fit its type"),
        ("a: " + "9" * 5000, "a value does not fit its type"),
        ("a: b\n" * 250_000, "x.yaml: has 1250000 letters, more than 1000000: is it a config?"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_made_to_break_a_reader(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_yaml(text, "x.yaml")
    assert "\n" not in str(error.value)


def test_values_are_counted_while_they_are_read(monkeypatch) -> None:
    """Not only once they are all there, which takes seconds."""
    monkeypatch.setattr(loading, "_MOST_VALUES", 10)
    with pytest.raises(UserError, match=r"x\.yaml:10: holds more than 10 values"):
        parse_yaml("- a\n" * 9 + "- [\n", "x.yaml")


def test_references_of_ordinary_size_are_followed() -> None:
    assert parse_yaml("a: &a {b: [1, 2]}\nc: *a\nd: [*a, *a]", "x.yaml")["d"] == [{"b": [1, 2]}] * 2
    assert len(parse_yaml(bomb(4), "x.yaml")["a3"]) == 9


def test_what_belongs_to_the_files_choice_gives_way_to_another_by_set():
    """The file's milestones are those of its policy; what --set itself gives is checked."""
    path = Path(loading.__file__).parent / "cifar_resnet20.yaml"
    config = load_config(path, ["schedule.policy=cosine"], ClassificationConfig)
    assert (config.schedule.policy, config.schedule.milestones) == ("cosine", [])
    with pytest.raises(UserError, match="policy cosine does not read milestones"):
        load_config(path, ["schedule.policy=cosine", "schedule.milestones=[5]"], ClassificationConfig)
