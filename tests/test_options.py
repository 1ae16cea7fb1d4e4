"""Flags from dataclasses: names, types, defaults, help, and what is said when they do not fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipeline.errors import UsageError
from pipeline.options import REPEATABLE, parse, seconds


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How it learns.

    Attributes:
        weight_decay: how much weights shrink.
    """

    lr: float = 0.1
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is varied.

    Attributes:
        max_width: widest layer, 100% of it.
        kind: which one.
    """

    max_width: int = 64
    kind: Literal["small", "large"] = "small"
    bias: bool = True
    layers: tuple[int, ...] = (3, 4)
    rate: float | None = None
    path: Path = Path("a b/é.csv")
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options.

    Attributes:
        accept_change: go on all the same
    """

    accept_change: bool = False
    study: str | None = None

    def __post_init__(self) -> None:
        if self.study == "bad":
            raise ValueError("not this one")


@dataclass(frozen=True, kw_only=True)
class Required:
    path: str
    rows: int = 3


GROUPS = {"": Options, "config": Config}


def parsed(*arguments: str) -> tuple[Options, Config]:
    found = parse("prog", "Does it.", GROUPS, arguments)
    return found[""], found["config"]


def test_without_flags_everything_has_its_default():
    assert parsed() == (Options(), Config())


def test_flags_have_hyphens_and_the_groups_name():
    options, config = parsed("--config.max-width", "8", "--study", "s", "--config.kind=large")
    assert options == Options(study="s")
    assert config == Config(max_width=8, kind="large")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_a_flag_that_is_true_or_false_takes_its_value(text, value):
    assert parsed("--accept-change", text)[0].accept_change is value
    assert parsed(f"--config.bias={text}")[1].bias is value


def test_a_flag_without_a_value_is_true():
    assert parsed("--accept-change", "--study", "s")[0] == Options(accept_change=True, study="s")


def test_values_have_the_types_of_their_fields():
    config = parsed(*("--config.layers", "[1, 2, 3]"), *("--config.rate", "1e-3"), *("--config.path", "c d/ü.csv"))[1]
    assert config == Config(layers=(1, 2, 3), rate=0.001, path=Path("c d/ü.csv"))
    assert parsed("--config.rate", "null")[1].rate is None


def test_the_fields_of_a_nested_dataclass_are_flags_too():
    config = parsed("--config.optimizer.lr", "0.5", "--config.optimizer.weight-decay", "0.25")[1]
    assert config.optimizer == Optimizer(lr=0.5, weight_decay=0.25)
    assert parsed("--config.optimizer.lr", "0.5")[1].optimizer == Optimizer(lr=0.5)


def test_a_number_given_as_text_stays_text_where_text_is_wanted():
    assert parsed("--study", "007")[0].study == "007"
    assert parsed("--study", "1e3")[0].study == "1e3"
    assert parsed("--study", "true")[0].study == "true"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense", "1"], "--nonsense"),
        (["--config.widht", "1"], "--config.widht"),
        (["--config.max-width", "wide"], "--config.max-width"),
        (["--config.max-width", "1.5"], "--config.max-width"),
        (["--config.kind", "huge"], "--config.kind"),
        (["--config.bias", "perhaps"], "--config.bias"),
        (["--config.layers", "[1, x]"], "--config.layers"),
        (["--config.optimizer.lr", "fast"], "lr"),
        (["--config.max-width"], "--config.max-width"),
        (["stray"], "stray"),
        (["--study", "bad"], "not this one"),
        (["--config", "file.yaml"], "--config"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_flag(arguments, words):
    with pytest.raises(UsageError) as raised:
        parsed(*arguments)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_flag_is_not_guessed_from_its_beginning():
    with pytest.raises(UsageError, match="--stu"):
        parsed("--stu", "s")


def test_a_field_without_default_must_be_given():
    assert parse("prog", "", {"data": Required}, ["--data.path", "x"])["data"] == Required(path="x")
    with pytest.raises(UsageError, match=r"missing: --data\.path"):
        parse("prog", "", {"data": Required}, [])


def test_help_shows_flags_types_defaults_and_what_the_docstring_says(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "Does it.",
        "What is varied.",
        "--config.max-width",
        "widest layer, 100% of it. (type: int, default: 64)",
        "which one.",
        "{small,large}",
        "--accept-change",
        "go on all the same",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("text", "value_s"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400), (" 5 ", 5)]
)
def test_a_duration_is_a_number_with_a_unit(text, value_s):
    assert seconds(text) == value_s


@pytest.mark.parametrize("text", ["", "soon", "-5", "5w", "1e3", "5 m s"])
def test_what_is_no_duration_says_what_one_looks_like(text):
    with pytest.raises(UsageError, match="expected for instance 90s, 30m or 2h"):
        seconds(text)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Where to begin.

    Attributes:
        enqueue: a point.
    """

    enqueue: tuple[str, ...] = field(default=(), metadata={REPEATABLE: True})


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], ()),
        (["--enqueue", "lr=1,width=2", "--enqueue=lr=3"], ("lr=1,width=2", "lr=3")),
        (["--enqueue", "lr=1,width=2;lr=3;"], ("lr=1,width=2", "lr=3")),
    ],
)
def test_a_repeatable_flag_is_given_again_or_with_semicolons(arguments, found):
    assert parse("", "", {"": Points}, arguments)[""].enqueue == found
