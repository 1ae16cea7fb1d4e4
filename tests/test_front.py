"""What is answered before anything heavy is loaded: the help, `new`, and completion in a real shell."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli, completion, usage
from pipeline.front import TEMPLATE, answer

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "mlflow", "optuna", "pandas", "numpy", "sqlalchemy", "jsonargparse", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["new", "mine"]])
def test_nothing_heavy_is_loaded(tmp_path: Path, arguments: list[str]):
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.stderr.splitlines()}
    assert "pipeline" in loaded
    assert not loaded & HEAVY


def test_the_help_names_every_command_and_without_one_the_usage_is_wrong(capsys):
    assert set(usage.COMMANDS) == {*cli.COMMANDS, "new", "completion"}
    assert set(completion.OPTIONS) == set(cli.COMMANDS)
    assert answer(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in usage.COMMANDS)
    assert answer([]) == 2
    assert capsys.readouterr().out == shown
    assert answer(["sweep", "--help"]) is None


@pytest.mark.parametrize("name", usage.COMMANDS)
def test_the_help_of_every_command_has_an_example_of_it(name: str, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.engines.local.start_forkserver", lambda: None)
    assert usage.COMMANDS[name].example.strip('eval "$()').startswith(f"python -m pipeline {name} ")
    if answer([name, "--help"]) is None:
        with pytest.raises(SystemExit, match="0"):
            cli.COMMANDS[name](["--help"], None)
    assert f"example: {usage.COMMANDS[name].example}\n" in capsys.readouterr().out


def test_new_writes_a_file_once(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert answer(["new", "mine"]) == 0
    written = Path("mine.py").read_text()
    assert written == TEMPLATE.read_text().replace("template.py", "mine.py")
    assert "sweep mine.py" in capsys.readouterr().out
    Path("mine.py").write_text("# mine\n")
    assert answer(["new", "mine.py"]) == 2
    assert capsys.readouterr().err == "error: new mine.py: mine.py is there already; take another name\n"
    assert Path("mine.py").read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "which name?"),
        (["one", "two"], "which name?"),
        (["a b"], "expected a name of letters"),
        (["no/such/folder"], "cannot be written: No such file or directory"),
    ],
)
def test_new_says_what_is_wrong(tmp_path: Path, monkeypatch, capsys, arguments: list[str], complaint: str):
    monkeypatch.chdir(tmp_path)
    assert answer(["new", *arguments]) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_readme_quotes_the_template():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    quoted = [statements(block) for block in blocks if "experiment = Experiment(" in block]
    assert quoted == [statements(TEMPLATE.read_text())]


def statements(source: str) -> str:
    """What a file says, without its imports, comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.unparse(tree)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("ver",), ["verify"]),
        (("sweep", "mine.py", "--workers"), ["--workers", "--workers-per-gpu"]),
        (("prove", "mine.py", "--ki"), ["--kills"]),
        (("train", "mi"), ["mine.py"]),
        (("status", "--config"), []),
        (("completion", ""), ["bash", "zsh"]),
    ],
)
def test_bash_completes_commands_flags_and_files(tmp_path: Path, capsys, words: tuple[str, ...], completed: list[str]):
    assert answer(["completion", "bash"]) == 0
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    (tmp_path / "mine.py").touch()
    script = """
        source completion.sh
        complete -p python >&2
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _thaw
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "-c", script, "bash", "python", "-m", "pipeline", *words]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stderr == "complete -o filenames -F _thaw python\n"
    assert told.stdout.split() == completed


def test_completion_knows_two_shells(capsys):
    assert answer(["completion", "fish"]) == 2
    assert "give one of bash, zsh" in capsys.readouterr().err
    assert answer(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
