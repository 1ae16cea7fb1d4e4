"""What a notebook shows of a study that was killed twice."""

import pytest

from pipeline.errors import UsageError
from pipeline.report.cells import cell, line
from pipeline.report.found import Found
from pipeline.report.plots import figure
from pipeline.results import Plots
from tests.report.studies import found_in, study_of, trials


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_in(tmp_path_factory.mktemp("study"))


def test_a_study_is_told_in_one_line(found):
    assert line(found) == "<Study 's': 2 complete, 1 paused, 1 failed, 1 running; best #00, loss 0.211111>"


def test_a_study_without_a_configuration_says_so(tmp_path):
    none = Found.of(study_of(tmp_path, []))
    assert line(none) == "<Study 's': no configuration yet>"
    assert "<table" not in cell(none)


def test_a_cell_shows_the_best_and_nothing_in_it_is_markup(found):
    shown = cell(found)
    assert shown.startswith("<h4>Study s</h4><dl>")
    assert [part.split("</th>")[0] for part in shown.split("<tr>")[2:]] == [f"\n      <th>{n}" for n in (0, 1, 2)]
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("name", ["curves", "timeline", "rungs", "history", "slice"])
def test_each_plot_is_a_figure_with_its_title(tmp_path, name):
    drawn = getattr(Plots(study_of(tmp_path, trials())), name)()
    assert len(drawn.data) > 0
    assert drawn.layout.title.text.endswith(", study s")


def test_a_plot_of_nothing_says_so(found):
    for name in ("importances", "parallel"):  # of three results, and of one parameter
        with pytest.raises(
            UsageError, match=r"^study 's': there is nothing to show in 'parameter importances|parallel"
        ):
            figure(found, name)
