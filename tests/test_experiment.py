"""An experiment file: found, loaded, identified; its configurations to parameters and back."""

import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from pipeline import Experiment
from pipeline.errors import UsageError
from pipeline.experiment import flatten, from_params, load_experiment, seed_for, to_params

TEXT = """
from dataclasses import dataclass
from pipeline import Experiment
@dataclass(frozen=True)
class Config:
    lr: float = 0.1
def train(config, run): pass
experiment = Experiment(config=Config, train=train, monitor="loss", direction="minimize", max_epochs=3)
"""


@pytest.fixture(autouse=True)
def _clean_modules():
    """What an experiment file and its neighbours leave in the interpreter does not reach the next test."""
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(modules):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(("/tmp", str(Path.cwd()))):
            del sys.modules[name]
    sys.path[:] = path


def written(folder: Path, text: str = TEXT, name: str = "mine.py") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_is_loaded_under_its_own_name(tmp_path):
    found = load_experiment(written(tmp_path))
    assert (found.name, found.path, found.sources) == ("mine", tmp_path / "mine.py", (tmp_path / "mine.py",))
    assert found.experiment.max_epochs == 3
    assert load_experiment(tmp_path / "mine.py").experiment is found.experiment


def test_a_folder_with_a_space_and_an_accent_is_no_matter(tmp_path):
    assert load_experiment(written(tmp_path / "à b", name="expérience.py")).name == "expérience"


def test_neighbours_are_imported_and_belong_to_the_code(tmp_path):
    written(tmp_path, "WIDTH = 3\n", "neighbour_a.py")
    written(tmp_path, "from . import inner\n", "package_b/__init__.py")
    written(tmp_path, "import neighbour_c\n", "package_b/inner.py")
    written(tmp_path, "X = 1\n", "neighbour_c.py")
    written(tmp_path, "raise SystemError\n", "unrelated.py")
    found = load_experiment(written(tmp_path, "import neighbour_a\nfrom package_b import inner\nimport math\n" + TEXT))
    names = {str(source.relative_to(tmp_path)) for source in found.sources}
    assert names == {"mine.py", "neighbour_a.py", "package_b/__init__.py", "package_b/inner.py", "neighbour_c.py"}


def test_the_code_digest_follows_the_file_and_its_neighbours_and_nothing_else(tmp_path):
    neighbour = written(tmp_path, "WIDTH = 3\n", "neighbour_d.py")
    found = load_experiment(written(tmp_path, "import neighbour_d\n" + TEXT, "other.py"))
    before = found.code_digest
    written(tmp_path, "anything", "notes.py")
    assert found.code_digest == before
    neighbour.write_text("WIDTH = 4\n")
    changed = found.code_digest
    assert changed != before
    neighbour.write_text("WIDTH = 3\n")
    assert found.code_digest == before
    found.path.write_text(found.path.read_text() + "\n")
    assert found.code_digest not in (before, changed)


def test_the_code_digest_does_not_depend_on_where_the_folder_lies(tmp_path):
    digests = [load_experiment(written(tmp_path / place), f"mine_{place}").code_digest for place in ("a", "b")]
    assert digests[0] == digests[1]


def test_code_that_moves_from_one_file_to_the_next_changes_the_digest(tmp_path):
    digests = set()
    for place, cut in (("a", 6), ("b", 12)):
        text = "X = 1\nY = 2\nZ = 3\n"
        written(tmp_path / place, text[:cut], "first.py")
        written(tmp_path / place, text[cut:], "second.py")
        found = load_experiment(written(tmp_path / place, "import first, second\n" + TEXT), f"moved_{place}")
        assert len(found.sources) == 3
        digests.add(found.code_digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "declares no experiment; end the file with `experiment = Experiment(...)`"),
        ("experiment = 3", "declares no experiment"),
        ("\n\n1 / 0", ", line 3: ZeroDivisionError: division by zero"),
        ("x = (", ", line 1: SyntaxError"),
        ("import nothing_of_the_kind", ", line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("import broken_neighbour", ", line 1: ValueError: inside"),
        (TEXT.replace("max_epochs=3", "max_epochs=-3"), "max_epochs=-3"),
        (TEXT.replace('"minimize"', '"down"'), "direction='down'"),
        (TEXT.replace("config=Config", "config=dict"), "config=...): expected a dataclass"),
        (TEXT.replace("max_epochs=3", "max_epochs=3, data=Config"), "`prepare` is missing"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_in_one_line(tmp_path, text, words):
    written(tmp_path, "raise ValueError('inside')\n", "broken_neighbour.py")
    with pytest.raises(UsageError) as raised:
        load_experiment(written(tmp_path, text, "bad_one.py"))
    assert words in str(raised.value)
    assert "bad_one.py" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nowhere.py", "folder", "notes.txt"])
def test_what_is_no_python_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text(TEXT)
    with pytest.raises(UsageError, match="no such experiment file"):
        load_experiment(tmp_path / name)


def test_a_file_named_like_a_module_that_is_loaded_is_not_mistaken_for_it(tmp_path):
    with pytest.raises(UsageError, match="'json' is loaded already from elsewhere; rename the file"):
        load_experiment(written(tmp_path, TEXT, "json.py"))


class Kind(Enum):
    SMALL = "small"


@dataclass(frozen=True, kw_only=True)
class Inner:
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 0.1
    width: int = 3
    kind: Kind = Kind.SMALL
    path: Path = Path("é b.csv")
    layers: tuple[int, ...] = ()
    limit: float | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(lr=0.1 + 0.2, width=10**12, layers=(1, 2), limit=1e-300, inner=Inner(betas=(0.0, 1.0))),
        Config(lr=float("inf")),
    ],
)
def test_a_configuration_comes_back_from_its_parameters_as_it_was(config):
    import json

    stored = json.loads(json.dumps(to_params(config)))
    assert from_params(Config, stored) == config


def test_parameters_that_no_longer_fit_the_dataclass_are_an_error_of_one_line():
    with pytest.raises(UsageError, match=r"Config: stored values .* do not fit") as raised:
        from_params(Config, {"width": "many"})
    assert "\n" not in str(raised.value)


def test_nested_parameters_get_dotted_names():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": (3,)}}}) == {"a": 1, "b.c": 2, "b.d.e": (3,)}


def test_seeds_are_a_function_of_study_and_configuration_and_fit_numpy():
    seeds = {(s, n): seed_for(s, n) for s in range(20) for n in range(50)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds.values())
    assert seed_for(1, 11) != seed_for(11, 1)
    assert seed_for(0, 0) == seeds[0, 0]


def test_an_experiment_compares_by_its_direction():
    def experiment(direction):
        return Experiment(config=Config, train=lambda c, r: None, monitor="m", direction=direction, max_epochs=1)

    assert experiment("minimize").better(1.0, 2.0)
    assert not experiment("minimize").better(2.0, 2.0)
    assert experiment("maximize").better(2.0, 1.0)
    assert not experiment("minimize").better(float("nan"), 1.0)


@pytest.mark.parametrize(
    ("direction", "values", "options", "lost"),
    [
        ("minimize", [0.5], {}, False),
        ("minimize", [0.5, 0.5], {}, False),
        ("minimize", [0.5, 0.5, 0.6], {}, True),
        ("maximize", [0.5, 0.6, 0.7], {}, False),
        ("maximize", [0.5, 0.4, 0.5], {}, True),
        ("minimize", [0.5, 0.45, 0.41], {"min_delta": 0.1}, True),  # each is better, none by enough
        ("minimize", [0.5, 0.45, 0.39], {"min_delta": 0.1}, False),
        ("maximize", [0.5, 0.55, 0.59], {"min_delta": 0.1}, True),
        ("minimize", [0.5, 0.6, 0.7], {"patience": None}, False),
        ("minimize", [0.5, 0.6, 0.7], {"since": 2}, False),
        ("minimize", [0.5, 0.6, 0.7], {"since": 1}, True),
    ],
)
def test_patience_is_a_function_of_the_monitored_values(direction, values, options, lost):
    given = {"patience": 2, "since": 0, **options}
    since = given.pop("since")
    one = Experiment(config=Config, train=print, monitor="loss", direction=direction, max_epochs=9, **given)
    assert one.has_lost_patience(values, since=since) is lost


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": 0.1}, {"patience": 2, "min_delta": -0.1}])
def test_a_patience_that_makes_no_sense_is_refused(options):
    with pytest.raises(UsageError, match="expected at least"):
        Experiment(config=Config, train=print, monitor="loss", direction="minimize", max_epochs=9, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": ("loss", "cost"), "direction": "minimize"},
        {"monitor": ("loss", "loss"), "direction": ("minimize", "minimize")},
        {"monitor": ("loss", "cost"), "direction": ("minimize", "down")},
        {"monitor": (), "direction": ()},
        {"constraints": "cost"},
        {"constraints": ("loss",)},
    ],
)
def test_objectives_and_constraints_that_make_no_sense_are_refused(options):
    usual = {"monitor": "loss", "direction": "minimize", "max_epochs": 9}
    with pytest.raises(UsageError, match=r"Experiment\(.*\): expected"):
        Experiment(config=Config, train=print, **{**usual, **options})


def test_of_several_objectives_the_first_leads():
    one = Experiment(
        config=Config, train=print, monitor=("gain", "cost"), direction=("maximize", "minimize"), max_epochs=9
    )
    assert one.objectives == {"gain": "maximize", "cost": "minimize"}
    assert one.leading == "gain"
    assert one.better(0.2, than=0.1)
