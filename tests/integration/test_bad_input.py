"""What a user can get wrong: one line that says what and where, an exit code, and nothing half-made left behind."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from tests.integration.commands import EXPERIMENTS, ROOT, Workplace
from tests.integration.preloaded import Answer, ask
from tests.integration.sweeps import QUICK

LINEAR, TABULAR = EXPERIMENTS / "linear.py", EXPERIMENTS / "tabular.py"


@pytest.fixture(scope="module")
def workplace(new_workplace):
    """One for all: whatever is refused leaves nothing behind, and each test holds that."""
    return new_workplace("bad")


def refused(workplace: Workplace, *arguments: str | Path, code: int = 2, **environment: str) -> str:
    """Runs a command that must be refused; returns its one line."""
    found = ask(workplace, *arguments, environment=environment)
    line = only_line(found, code)
    assert_nothing_half_made(workplace)
    return line


def only_line(found: Answer, code: int = 2) -> str:
    assert found.code == code, found.err
    assert "Traceback" not in found.err
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.startswith("error: ")
    return line


def assert_nothing_half_made(workplace: Workplace) -> None:
    if (workplace.folder / "mlflow.db").exists():
        assert [run.info.status for run in workplace.runs()] == [], "no run was there before"
    if (workplace.folder / "optuna.db").exists():
        assert optuna.get_all_study_names(workplace.storage_url) == []
    assert not list(workplace.folder.glob("*.part*"))


def experiment(workplace: Workplace, text: str) -> Path:
    file = workplace.folder / "mine.py"
    file.write_text(text)
    return file


# Commands and flags


def test_an_unknown_command_is_answered_with_those_there_are(workplace):
    line = refused(workplace, "swep", LINEAR)
    assert "swep: no such command; there are new, main, prepare, train, sweep, resume, worker, evaluate" in line


def test_no_command_shows_the_usage(workplace):
    found = ask(workplace)
    assert found.code == 2
    assert "usage: python -m pipeline COMMAND" in found.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sweep", LINEAR, "--configuratons", "3"), "--configuratons"),
        (("sweep", LINEAR, "--configurations", "many"), "--configurations"),
        (("sweep", LINEAR, "--configurations", "0"), "--configurations 0"),
        (("sweep", LINEAR, "--workers", "-1"), "--workers -1"),
        (("sweep", LINEAR, "--workers", "two"), "--workers"),
        (("sweep", LINEAR, "--max-epochs", "-1"), "--max-epochs -1"),
        (("sweep", LINEAR, "--eta", "1"), "--eta 1"),
        (("sweep", LINEAR, "--timeout", "soon"), "'soon' is no duration"),
        (("sweep", LINEAR, "--checkpoint-every-s", "0"), "--checkpoint-every-s"),
        (("sweep", LINEAR, "--accept-change", "perhaps"), "--accept-change"),
        (("sweep", LINEAR, "--sampler", "best"), "--sampler best: expected one of tpe, gp, cmaes"),
        (("sweep", LINEAR, "--pruner", "best"), "--pruner best: expected one of halving, hyperband, median"),
        (("sweep", LINEAR, "--pruner-args", "{upper: 1}"), "--pruner-args: halving has no 'upper'; it takes none"),
        (("sweep", LINEAR, "--enqueue", "lr=5"), "--enqueue lr=5: lr is 5, expected a number from 0.001 to 0.5"),
        (("sweep", LINEAR, "--enqueue-file", "no.csv"), "--enqueue-file no.csv: "),
        (("sweep", LINEAR, "--sampler", "grid"), "--sampler grid: lr has no steps between 0.001 and 0.5"),
        (("sweep", LINEAR, "--warm-start", "nobody"), "--warm-start nobody: no such study"),
        (("sweep", LINEAR, "--max-total-epochs", "0"), "--max-total-epochs 0: expected at least 1"),
        (("sweep", LINEAR, "--study", "a/b"), "--study 'a/b'"),
        (("sweep", LINEAR, "--data.path", "x.csv"), "--data.path"),
        (("train", LINEAR, "--config.lr", "fast"), "--config.lr"),
        (("train", LINEAR, "--config.depth", "3"), "--config.depth"),
        (("train", TABULAR, "--data.test-fraction", "half"), "--data.test-fraction"),
        (("train",), "train: which experiment?"),
        (("resume",), "--study"),
        (("resume", "--study", "s", "--configuration", "best"), "--configuration"),
    ],
    ids=lambda value: " ".join(map(str, value[2:])) if isinstance(value, tuple) else "",
)
def test_a_flag_that_cannot_be_meant_so_is_named(workplace, arguments, words):
    assert words in refused(workplace, *arguments)


# Experiment files


def test_an_experiment_file_that_does_not_exist_is_named(workplace):
    assert "nowhere.py: no such experiment file" in refused(workplace, "sweep", "nowhere.py")


def test_a_folder_is_no_experiment_file(workplace):
    assert "no such experiment file" in refused(workplace, "sweep", EXPERIMENTS)


def test_a_file_without_an_experiment_says_how_to_end_it(workplace):
    file = experiment(workplace, "x = 1\n")
    assert "mine.py: declares no experiment; end the file with `experiment = Experiment(...)`" in refused(
        workplace, "sweep", file
    )


def test_a_file_that_raises_names_its_line(workplace):
    file = experiment(workplace, "import math\n\n\ndef f():\n    return math.nothing\n\n\nf()\n")
    line = refused(workplace, "sweep", file)
    assert "mine.py, line 5: AttributeError: module 'math' has no attribute 'nothing'" in line


def test_a_syntax_error_names_its_line(workplace):
    file = experiment(workplace, "import math\nx = (1,\n")
    assert "mine.py, line 2: SyntaxError" in refused(workplace, "sweep", file)


def test_a_package_that_is_missing_is_named(workplace):
    file = experiment(workplace, "import no_such_package\n")
    assert "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_package'" in refused(
        workplace, "train", file
    )


def test_an_experiment_that_contradicts_itself_is_refused(workplace):
    text = LINEAR.read_text().replace('direction="minimize"', 'direction="down"')
    assert "direction='down'" in refused(workplace, "sweep", experiment(workplace, text))


def test_an_experiment_without_suggest_cannot_be_swept(workplace):
    text = LINEAR.read_text().replace("suggest=suggest, ", "")
    assert "mine.py: declares no `suggest`" in refused(workplace, "sweep", experiment(workplace, text))


def test_the_traceback_is_shown_when_it_is_asked_for(workplace):
    file = experiment(workplace, "1 / 0\n")
    found = ask(workplace, "sweep", file, "--traceback", "true")
    assert found.code == 2
    assert "Traceback" in found.err
    assert "ZeroDivisionError" in found.err
    assert found.err.splitlines()[-1].startswith("error: ")


# Data


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (None, ("--data.target", "y"), "none.csv: no such file"),
        (b"", ("--data.target", "y"), "the file is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe\x00", ("--data.target", "y"), "not a table"),
        (b"a,b\n1,2\n3\n4,5,6,7\n", ("--data.target", "b"), "not a table"),
        (b"a,b\n1,2\n3,4\n", ("--data.target", "y"), "there is no column 'y'"),
        (b"a,b\n1,2\n3,4\n", (), "which column is to be predicted?"),
    ],
    ids=["missing", "empty", "binary", "ragged", "no such target", "no target"],
)
@pytest.mark.parametrize("command", ["prepare", "sweep"])
def test_a_data_file_that_is_no_table_to_learn_from_is_named(workplace, command, content, flags, words):
    file = workplace.folder / "none.csv"
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    line = refused(workplace, command, TABULAR, "--data.path", file, *flags)
    assert words in line
    assert "none.csv" in line


def test_a_prepare_that_fails_is_named_with_its_line(workplace):
    text = TABULAR.read_text().replace(
        "    table, target = load(data)\n    training", "    raise KeyError('price')\n    training"
    )
    line = refused(workplace, "prepare", experiment(workplace, text), code=1)
    assert "mine.py, line " in line
    assert "prepare: KeyError: 'price'" in line


# Studies, storage, tracking


def test_a_name_taken_by_another_spec_is_refused_with_the_difference_and_left_as_it_was(new_workplace):
    workplace = new_workplace("taken")
    workplace.run("sweep", LINEAR, "--study", "mine", "--configurations", "1", "--max-epochs", "1", "--workers", "1")
    before = [run.to_dictionary() for run in workplace.runs()]
    found = ask(workplace, "sweep", LINEAR, "--study", "mine", "--configurations", "1", "--max-epochs", "2")
    line = only_line(found)
    assert line.startswith("error: study 'mine' exists with another spec (max_epochs: 1 -> 2)")
    found = ask(workplace, "train", QUICK, "--study", "mine")
    line = only_line(found)
    assert "experiment: linear.py -> quick.py" in line
    assert [run.to_dictionary() for run in workplace.runs()] == before
    # And a study that is there does not make one that is not.
    for command in ("resume", "evaluate"):
        found = ask(workplace, command, "--study", "yours")
        assert found.code == 2
        (line,) = found.err.splitlines()
        assert "--study yours: no such study" in line
        assert line.endswith("there: mine")
    found = ask(workplace, "resume", "--study", "mine", "--configuration", "7")
    line = only_line(found)
    assert "--configuration 7: study 'mine' has no such configuration" in line
    found = ask(workplace, "evaluate", "--study", "mine")
    line = only_line(found)
    assert "linear.py: declares no `evaluate`" in line
    assert {run.info.status for run in workplace.runs()} == {"FINISHED"}


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_where_no_study_was_ever_begun_none_can_go_on(new_workplace, command):
    assert "no such study database" in refused(new_workplace("none"), command, "--study", "s", code=1)


@pytest.mark.parametrize("arguments", [("sweep", LINEAR), ("resume", "--study", "s"), ("evaluate", "--study", "s")])
@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://me:secret@host/x"])
def test_a_storage_that_is_none_is_named_without_its_password(workplace, arguments, url):
    line = refused(workplace, *arguments, "--storage", url)
    assert "--storage" in line
    assert "secret" not in line


def test_a_tracking_server_that_does_not_answer_is_named_without_its_password(workplace):
    line = refused(workplace, "sweep", LINEAR, code=1, MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:1")
    assert "tracking server http://127.0.0.1:1 does not answer" in line


@pytest.mark.parametrize("uri", ["sqlite:////proc/none/mlflow.db", "nonsense://x"])
def test_a_tracking_address_that_is_none_is_an_error_of_one_line(workplace, uri):
    assert "MLFLOW_TRACKING_URI" in refused(workplace, "sweep", LINEAR, code=1, MLFLOW_TRACKING_URI=uri)


# Through MLflow, which checks no parameter itself


@pytest.fixture(scope="module")
def project(new_workplace):
    """Where `mlflow run` has found a database already."""
    return new_workplace("mlflow")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (("-P", "configuratons=3"), "--configuratons"),
        (("-P", "data=nowhere.csv", "-P", "target=y"), "nowhere.csv: no such file"),
    ],
)
def test_mlflow_run_passes_the_one_line_on(project, parameters, words):
    before = {run.info.run_id for run in project.runs()}
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "PIPELINE_", "PROGRESS"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *parameters],
        cwd=project.folder,
        env={**inherited, "PATH": path, "MLFLOW_TRACKING_URI": project.tracking_uri},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert found.returncode != 0
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in found.stderr
    (run,) = (one for one in project.runs() if one.info.run_id not in before)  # the project run is MLflow's own
    assert run.info.status == "FAILED"
