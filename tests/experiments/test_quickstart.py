"""The notebook, executed from its first cell to its last."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook") / "experiments"
    folder.mkdir()
    shutil.copy(ROOT / "experiments" / "digits.py", folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("MLFLOW_TRACKING_URI", "PIPELINE_STORAGE"):
            patch.delenv(name, raising=False)
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def shown(notebook, start):
    """What the cell shows that begins so: its value's forms by their types, and all that it prints."""
    (cell,) = [one for one in notebook.cells if one.cell_type == "code" and one.source.startswith(start)]
    found = {}
    for output in cell.outputs:
        found |= output.get("data", {})
    return found, "".join(output.get("text", "") for output in cell.outputs)


def test_the_sweep_says_what_it_has_come_to(executed):
    _, printed = shown(executed, "import sys")
    assert "study quickstart: 3 configurations done" in printed


def test_a_study_shows_itself_and_its_plots(executed):
    study, _ = shown(executed, "study = ")
    assert study["text/plain"].startswith("<Study 'quickstart': ")
    assert study["text/html"].startswith("<h4>Study quickstart</h4>")
    for plot in ("study.plot.curves", "pruned = "):
        figure, printed = shown(executed, plot)
        assert figure["application/vnd.plotly.v1+json"]["data"]
        assert printed == ""


def test_a_pruned_configuration_is_taken_on_and_the_best_is_loaded(executed):
    figure, _ = shown(executed, "pruned = ")
    ends = [trace["name"] for trace in figure["application/vnd.plotly.v1+json"]["data"]]
    assert ends == ["complete", "paused"]
    assert shown(executed, "best = ")[0]["text/plain"].startswith("<Checkpoint s0-e0000")


def test_a_training_in_a_cell_has_a_bar(executed):
    value, printed = shown(executed, "run = ")
    assert "val_loss" in value["text/plain"]
    assert "2/2" in printed


def test_no_output_is_kept_in_the_repository():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)
