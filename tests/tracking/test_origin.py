"""What a study's run keeps of the code."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.tracking import origin
from pipeline.tracking.origin import installed, log_origin

DIGEST = "0123456789abcdef"


@pytest.fixture
def run_id(experiment_id):
    return MlflowClient().create_run(experiment_id).info.run_id


@pytest.fixture
def repository(tmp_path):
    """A repository with a commit; afterwards the experiment was changed, and two files are new."""

    def git(*arguments):
        who = ("-c", "user.name=me", "-c", "user.email=me@here")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "mine.py").write_text("import parts.net\nlr = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "mine.py").write_text("import parts.net\nlr = 2\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "net.py").write_text("width = 3\n")
    (tmp_path / "secret.txt").write_text("password")
    return tmp_path


def kept(run_id):
    """The text of each artifact."""
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run_id))
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_experiment_its_neighbours_what_is_installed_and_the_diff_are_kept(run_id, repository):
    sources = (repository / "mine.py", repository / "parts" / "net.py")
    log_origin(run_id, repository / "mine.py", sources, DIGEST)
    found = kept(run_id)
    place = "code/01234567"
    names = ("changes.diff", "mine.py", "parts/net.py", "requirements.txt")
    assert sorted(found) == [f"{place}/{name}" for name in names]
    assert found[f"{place}/parts/net.py"] == "width = 3\n"
    assert found[f"{place}/changes.diff"].endswith("-lr = 1\n+lr = 2\n")
    assert "password" not in "".join(found.values())  # git does not know that file
    head = subprocess.run(["git", "-C", repository, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert MlflowClient().get_run(run_id).data.tags["mlflow.source.git.commit"] == head.stdout.strip()


def test_the_diff_can_be_left_out(run_id, repository, monkeypatch):
    monkeypatch.setenv("PIPELINE_LOG_DIFF", "0")
    log_origin(run_id, repository / "mine.py", (), DIGEST)
    assert list(kept(run_id)) == ["code/01234567/requirements.txt"]


def test_a_diff_that_is_too_large_is_not_kept(run_id, repository, monkeypatch):
    monkeypatch.setattr(origin, "DIFF_BYTES", 10)
    log_origin(run_id, repository / "mine.py", (), DIGEST)
    assert kept(run_id)["code/01234567/changes.diff"].startswith("the changes are ")


def test_without_a_repository_there_is_neither_commit_nor_diff(run_id, tmp_path):
    log_origin(run_id, tmp_path / "mine.py", (), DIGEST)
    assert list(kept(run_id)) == ["code/01234567/requirements.txt"]
    assert "mlflow.source.git.commit" not in MlflowClient().get_run(run_id).data.tags


def test_what_is_installed_is_pinned():
    found = installed()
    for name in ("torch", "mlflow", "scikit-learn"):
        assert f"{name}=={version(name)}" in found
    assert len({line.partition("==")[0] for line in found}) == len(found)
