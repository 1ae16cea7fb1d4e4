"""The view of a study and its workers, on a real pseudo-terminal of 80 and of 200 columns."""

from dataclasses import replace

import pytest

from pipeline.sweep.place import Place
from pipeline.terminal.canvas import Canvas, plain
from pipeline.terminal.frame import frame
from pipeline.terminal.live import row_of
from pipeline.terminal.overview import duration, overview_of
from pipeline.terminal.watch import line, whole

PLACE = Place(
    configuration=4,
    until=9,
    epochs=2,
    batch=17,
    batches=117,
    loss_name="train_loss",
    loss=0.23456,
    epoch_s=10.0,
    elapsed_s=4.0,
)
HEAD = [
    "study s  1 running, 1 paused, 2 complete, 1 failed, 4 to be drawn",
    f"{'━' * 13:<24}  19 of about 34 epochs, about 2 min left",
    "best #00 lr=0.1  loss 0.211111 at epoch 9",
    "",
]
EVENTS = [
    "",
    "12:00:50  #01 lr=0.2  killed at epoch 5",
    "12:00:55  #01 lr=0.2  resumed from epoch 5",
    "12:01:20  #01 lr=0.2  complete at epoch 9, loss 0.311111",
    "12:01:25  #02 lr=0.3  paused at epoch 1, loss 1.3",
    "12:01:26  #03 lr=0.4  diverged after epoch 0: ValueError: </script><script>aler…",
    "12:01:30  #00 lr=0.1  complete at epoch 9, loss 0.211111",
]


@pytest.fixture
def seen(found):
    return overview_of(found, {})


@pytest.mark.parametrize("columns", [80, 200])
def test_a_line_for_each_worker_progress_the_best_and_what_has_happened_last(screen, seen, columns):
    terminal = screen(columns)
    canvas = Canvas(terminal.stream)
    width, height = canvas.size
    rows = [
        row_of("1", PLACE, 12.345, seen),
        row_of("2", replace(PLACE, configuration=5, batch=0, loss=None, epoch_s=None), None, None),
    ]
    canvas.draw(frame(seen, rows, width=width, height=height, note="--timeout: stops in 3 min, resumably"))
    shown = terminal.lines
    assert shown[:4] == [HEAD[0], f"{'━' * 13}╺{'━' * 10}{HEAD[1][24:]}", *HEAD[2:]]  # the rest in another colour
    assert shown[4:7] == [
        "worker  configuration         epochs   batch  batches/s  train_loss  to rung",
        "1       #04 lr=0.5               2/9      17       12.3      0.2346     66 s",
        "2       #05                      2/9",
    ]
    last = EVENTS[-2][:78] + "…" if columns == 80 else EVENTS[-2][:-5] + "alert(1)</script>|`*[x](javascript:alert(1))"
    assert shown[7:] == [*EVENTS[:-2], last, EVENTS[-1], "--timeout: stops in 3 min, resumably"]
    assert terminal.cursor == (len(shown), 0, True)


def test_where_there_is_little_room_events_go_first_and_then_columns(seen):
    rows = [row_of(str(number), PLACE, 1.0, seen) for number in range(1, 9)]
    small = plain(frame(seen, rows, width=58, height=9), width=58)
    assert len(small) == 9
    assert small[4:6] == [
        "worker  configuration         epochs  train_loss  to rung",
        "1       #04 lr=0.5               2/9      0.2346     66 s",
    ]
    assert not any("killed" in one for one in small)


def test_a_long_name_is_cut_rather_than_what_is_said_of_it(seen):
    long = {number: f"{name} weight_decay=0.000123 dropout=0.5 channels=12" for number, name in seen.names.items()}
    shown = plain(frame(replace(seen, names=long), [], width=79, height=23), width=79)
    assert shown[2] == "best #00 lr=0.1 weight_decay=0.000123 dropout=0.5 ch…  loss 0.211111 at epoch 9"
    assert shown[-1].endswith("…  complete at epoch 9, loss 0.211111")
    assert all(len(line) <= 79 for line in shown)


def test_before_anything_is_known_there_are_the_workers():
    assert plain(frame(None, [row_of("1", PLACE, None, None)], width=79, height=23))[1].split() == [
        *("1", "#04", "2/9", "17", "0.2346", "66", "s")
    ]


def test_status_shows_the_same_from_the_study_alone(found):
    (trial,) = [one.head for one in found.lineages.values() if one.number == 4]
    shown = plain(whole(overview_of(found, {trial._trial_id: 40.0})))
    assert shown[:4] == HEAD
    assert shown[4:6] == [
        "worker  configuration         epochs  s/epoch    loss          to rung",
        "a:1     #04 lr=0.5               0/1                   silent for 40 s",
    ]
    assert [one[:60] for one in shown[6:]] == [one[:60] for one in EVENTS]


def test_a_study_that_nobody_trains_says_how_to_go_on(seen):
    shown = plain(whole(replace(seen, activities=())))
    assert shown[-1] == "nobody trains it; to go on:  python -m pipeline resume --study s"


def test_a_study_in_one_line(seen):
    text = "1 running, 1 paused, 2 complete, 1 failed, 4 to be drawn"
    assert line(seen).plain == f"study s: 19 of about 34 epochs, about 2 min left; {text}"
    assert line(replace(seen, over=True)).plain == f"study s: done, 19 epochs trained; {text}"
    assert line(replace(seen, left=None)).plain == f"study s: 19 epochs trained; {text}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (7140.0, "119 min"), (7500.0, "2 h 05 min"), (3e5, "3 days")],
)
def test_times_are_as_exact_as_they_can_be_told(seconds: float, text: str):
    assert duration(seconds) == text
