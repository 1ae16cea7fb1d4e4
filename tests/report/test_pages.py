"""What the pages say of a study that was killed twice."""

from dataclasses import replace

import pytest

from pipeline.report.pages import SIZE, configuration_page, plain, study_metrics, study_page, study_tags
from tests.report.studies import HOSTILE, SITE, found_in


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_in(tmp_path_factory.mktemp("study"))


def test_the_first_lines_say_how_the_study_stands_and_what_is_best(found):
    first = study_page(found, version=None, storage=None).split("\n\n")[0]
    assert first == (
        "**Running**: 1 configuration training, 1 paused at their rungs, 4 still to be drawn "
        "(as of 2026-03-01 12:01:40). Best: [#00](#/experiments/1/runs/run-0?workflowType=machine_learning), "
        "loss 0.211111."
    )


def test_the_page_counts_states_failures_epochs_kills_and_resumptions(found):
    page = study_page(found, version=None, storage=None)
    assert "2 complete, 1 paused, 1 failed (1 diverged), 1 running, 4 still to be drawn." in page
    assert "19 epochs trained, 8 saved by pausing what fell behind, 1 time a paused one went on." in page
    assert "Broken off 2 times (1 preempted, 1 lost), resumed 2 times (2 exact)." in page


def test_the_best_stand_in_a_table_with_links(found):
    page = study_page(found, version=None, storage=None)
    rows = [line for line in page.splitlines() if line.startswith("| [#")]
    assert [row.split("]")[0] for row in rows] == ["| [#00 lr=0.1", "| [#01 lr=0.2", "| [#02 lr=0.3"]
    assert rows[0].endswith("?workflowType=machine_learning) | complete | 9/9 | 0.211111 | 9 |")


def test_the_commands_go_on_extend_reopen_and_evaluate(found):
    page = study_page(found, version=None, storage="postgresql://me:secret@host/database")
    told = "--study s --storage 'postgresql://me:***@host/database'"
    assert page.split("```")[1].strip().splitlines() == [
        f"python -m pipeline resume {told}  # continue",
        f"python -m pipeline resume {told} --top 3 --max-epochs 27  # extend the best",
        f"python -m pipeline resume {told} --configuration 2  # give this one the whole budget",
        f"python -m pipeline evaluate {told}  # evaluate the best, and register its model",
    ]


def test_a_registered_model_is_served(found):
    page = study_page(found, version="4", storage=None)
    assert "mlflow models serve -m models:/s/4 --env-manager local --port 5001" in page
    assert "pipeline evaluate" not in page


def test_metrics_and_tags_make_columns(found):
    assert study_metrics(found) == {
        "best/loss": 0.211111,
        "configurations/complete": 2.0,
        "configurations/paused": 1.0,
        "configurations/failed": 1.0,
        "configurations/running": 1.0,
        "epochs/trained": 19.0,
        "epochs/saved": 8.0,
        "segments/broken_off": 2.0,
        "segments/resumed": 2.0,
    }
    assert study_tags(found) == {"best_configuration": "0"}


def test_a_configuration_has_its_segments_and_the_checkpoint_of_a_resume(found):
    page = configuration_page(found, found.lineages[1])
    checkpoint = "s0-e00009-b000000-t000004"
    assert f"[{checkpoint}](#/experiments/1/runs/run-1/artifacts/checkpoints/{checkpoint}/manifest.json?" in page
    assert f"of study [s](#/experiments/1/runs/{SITE.run_id}?" in page
    first, second = "s0-e00003-b000000-t000001", "s0-e00005-b000000-t000003"
    assert [line for line in page.splitlines() if line.startswith("| ")][2:] == [
        f"| 1 | the beginning | {first} | 2026-03-01 12:00:00 | 30.0 s | paused at epoch 3 |  |",
        f"| 3 | {first} | {second} | 2026-03-01 12:00:35 | 15.0 s | lost | exact |",
        f"| 4 | {second} | {checkpoint} | 2026-03-01 12:00:55 | 25.0 s | complete | exact |",
    ]


def test_a_failed_one_says_why_and_where_its_traceback_is(found):
    page = configuration_page(found, found.lineages[3])
    assert "**failed** at epoch 0 of 9" in page
    assert "/run-3/artifacts/traceback.txt?" in page


def test_what_a_user_wrote_is_no_markup():
    assert plain(HOSTILE) == (
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\|\\`\\*\\[x\\](javascript:alert(1))"
    )
    assert plain("two\nlines") == "two lines"


def test_a_page_fits_into_a_tag_and_keeps_its_commands(found):
    others = dict.fromkeys((f"metric_{number}" for number in range(SIZE // 10)), "minimize")
    longest = replace(found, ranking=(), front=(), spec=replace(found.spec, others=others))
    page = study_page(longest, version=None, storage=None)
    assert len(page) <= SIZE
    assert page.endswith("```")
