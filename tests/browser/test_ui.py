"""What people see of a study that was killed twice: in the UI of a tracking server, and in its report offline."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.tracking import links
from tests.integration.commands import Workplace
from tests.integration.sweeps import Sweep
from tests.tracking_server import TrackingServer

SIZE = ("--configurations", "6", "--sampler", "random", "--workers", "2", "--study", "killed")
PICTURES = ["curves", "history", "importances", "parallel", "rungs", "slice", "timeline"]


@pytest.fixture(scope="module")
def seen(browser, tmp_path_factory):
    """The study: its MLflow run, its server and what was printed."""
    server = TrackingServer()
    place = Workplace(
        tmp_path_factory.mktemp("browser") / "work",
        tracking_uri=server.uri,
        environment={"PIPELINE_REPORT_EVERY_S": "10"},
    )
    sweep = Sweep.of(place, *SIZE)
    for gate in ("1 3", "4 3"):  # in the middle of an epoch, after a rung
        command = sweep.start(gate=gate)
        sweep.progress.wait_for_end_of(f" {gate}", command)
        command.kill()
    printed = sweep.finish()
    (run,) = place.runs(kind="study")
    yield SimpleNamespace(server=server, place=place, run=run, printed=printed)
    place.close()
    server.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1300, "height": 1400})
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    yield opened
    context.close()


def test_the_study_page_says_what_is_best_and_that_nothing_was_lost(seen, page):
    (address,) = re.findall(r"^study: +(\S+)$", seen.printed, re.MULTILINE)
    page.goto(address)
    page.get_by_text("nothing is left to train").wait_for()
    page.get_by_text("Show more").first.click()
    shown = page.locator("body").inner_text()
    assert "Done: all 6 configurations drawn, nothing is left to train. Best: #" in shown
    ends = [segment.user_attrs["ended"] for segment in seen.place.trials("killed")]
    killed = ends.count("preempted")
    assert killed >= 2
    assert f"Broken off {killed} times ({killed} preempted), resumed {killed} times (" in shown
    assert "python -m pipeline resume --study killed --top 3 --max-epochs 27  # extend the best" in shown
    best = seen.run.data.tags["best_configuration"]
    opened = _in_a_new_tab(page, re.compile(rf"^#0{best} lr="))
    opened.get_by_text(f"Configuration #0{best} of study").wait_for()
    opened.get_by_text("Show more").first.click()
    manifest = _in_a_new_tab(opened, re.compile("^s0-e00009-b000000-t"))
    manifest.get_by_text("manifest.json").first.wait_for()
    manifest.get_by_text("thread_count").or_(manifest.get_by_text("schema")).first.wait_for()  # it is in the preview


def _in_a_new_tab(page, name):
    """Where the link leads that the description has."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=name).first.click()
    return opened.value


def test_the_pictures_are_shown_as_artifacts(seen, page):
    run = seen.run.info
    listed = {info.path for info in seen.place.client.list_artifacts(run.run_id, "pictures")}
    assert listed == {f"pictures/{name}.png" for name in PICTURES}
    address = links.artifact(run.experiment_id, run.run_id, "pictures/timeline.png")
    page.goto(f"{seen.server.uri}/{links.within(address)}")
    page.wait_for_function("[...document.images].some((image) => image.complete && image.naturalWidth === 1100)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_offline_with_no_request_and_no_complaint(seen, browser, tmp_path, scheme):
    file = Path(seen.place.client.download_artifacts(seen.run.info.run_id, "report.html", str(tmp_path)))
    context = browser.new_context(color_scheme=scheme, offline=True, viewport={"width": 390, "height": 800})
    page, requests, complaints = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    plots = page.locator(".plot")
    for place in range(plots.count()):
        plots.nth(place).scroll_into_view_if_needed()
        plots.nth(place).locator(".main-svg").first.wait_for()
    assert plots.count() == len(PICTURES)
    assert requests == [file.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # a phone's: only the table scrolls sideways
    assert page.locator("#table tbody tr").count() == 6
    _sorts_filters_and_opens(page)
    context.close()


def _sorts_filters_and_opens(page):
    header = page.locator("#table thead button")
    header.nth(0).click()
    header.nth(0).click()
    assert page.locator("#table th[aria-sort=descending]").inner_text().startswith("#")
    assert page.locator("#table tbody tr td:first-child").all_inner_texts() == [f"#0{5 - at}" for at in range(6)]
    page.locator("#find").fill("complete")
    rows = json.loads(page.locator("#data").text_content() or "")["rows"]
    complete = [row for row in rows if row["state"] == "complete"]
    assert page.locator("#table tbody tr").count() == len(complete)
    page.locator("#table tbody button").first.click()
    assert page.locator("tr.detail table tr").count() == 1 + len(complete[0]["segments"])
