"""The page that stands alone, and the pictures."""

import json
import re

import pytest

from pipeline.report.pictures import pictures
from pipeline.report.standalone import best_of, standalone
from tests.report.studies import HOSTILE, found_in


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_in(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(found):
    return standalone(found, {3: f"Traceback of {HOSTILE}"})


def test_nothing_that_a_user_wrote_is_markup(page):
    """The page's own scripts are three: its data, plotly and what draws."""
    plotly = page.index("<script>", page.index('type="application/json"'))
    assert page[:plotly].count("<script") == 1
    assert "alert(1)</script>" not in page
    assert "Traceback of &lt;/script&gt;" in page


def test_its_data_are_what_was_written(page):
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    rows = {row["cells"][0]: row for row in data["rows"]}
    assert [row["cells"][0] for row in data["rows"]] == [0, 1, 2, 3, 4]  # the best first
    assert rows[3]["error"] == f"ValueError: {HOSTILE}"
    assert rows[0]["latest"] == "s0-e00009-b000000-t000002"
    assert [segment[5] for segment in rows[1]["segments"]] == ["paused at epoch 3", "lost", "complete"]
    assert list(data["plots"]) == ["curves", "timeline", "rungs", "history", "slice"]


def test_it_may_load_nothing_and_is_small_enough(page):
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page[: page.index('type="application/json"')])
    assert len(page.encode()) < 6e6


def test_every_plot_has_words(page):
    plots = re.findall(r'data-plot="(\w+)" role="img" aria-label="[^"]+" aria-describedby="\1-words"', page)
    assert plots == ["curves", "timeline", "rungs", "history", "slice"]
    assert all(re.search(rf'<figcaption id="{name}-words">[^<]+</figcaption>', page) for name in plots)


def test_of_many_configurations_the_best_are_shown(found):
    few = best_of(found, 2)
    assert list(few.lineages) == [0, 1]
    assert best_of(found, 5) is found


def test_each_picture_there_is_something_to_show_in_is_drawn(found, tmp_path):
    names = []
    for name, figure in pictures(found):
        figure.savefig(tmp_path / f"{name}.png")
        names.append(name)
    assert names == ["curves", "timeline", "rungs", "history", "slice"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
