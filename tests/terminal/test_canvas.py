"""Drawing at the bottom of a real pseudo-terminal, over and over."""

import io

import pytest
from rich.text import Text

from pipeline.terminal.canvas import Canvas, is_terminal, shown


def test_what_is_drawn_takes_the_place_of_what_was_and_lines_stay_above(screen):
    terminal = screen(80)
    terminal.stream.write("$ a command\n")
    canvas = Canvas(terminal.stream)
    canvas.draw(Text("one\ntwo\nthree"))
    assert terminal.lines == ["$ a command", "one", "two", "three"]
    canvas.draw(Text("eins\nzwei"), above="said\n")
    assert terminal.lines == ["$ a command", "said", "eins", "zwei"]
    assert terminal.cursor == (4, 0, True)
    canvas.draw(None, above="at last\n")
    assert terminal.lines == ["$ a command", "said", "at last"]
    assert terminal.cursor == (3, 0, True)


def test_what_a_terminal_shows_of_the_keys_is_drawn_over(screen):
    terminal = screen(80)
    canvas = Canvas(terminal.stream)
    canvas.draw(Text("one\ntwo"))
    terminal.stream.write("^C")
    canvas.draw(Text("one\ntwo"))
    assert terminal.lines == ["one", "two"]


def test_a_picture_is_never_higher_than_the_screen_nor_as_wide(screen):
    terminal = screen(20, 6)
    canvas = Canvas(terminal.stream)
    for _ in range(3):
        canvas.draw(Text("\n".join(f"{number} {'x' * 40}" for number in range(9)), no_wrap=True, overflow="ellipsis"))
    assert terminal.lines == [f"{number} {'x' * 16}…" for number in range(5)]


def test_in_another_size_the_picture_is_there_once(screen):
    terminal = screen(80)
    canvas = Canvas(terminal.stream)
    for columns in (200, 80, 40, 80):
        terminal.resize(columns)
        canvas.draw(Text("short\nlonger than forty columns, but not than eighty", no_wrap=True, overflow="ellipsis"))
        assert [line[:5] for line in terminal.lines if line] == ["short", "longe"]


def test_nothing_of_the_terminal_is_changed_that_would_have_to_be_mended(screen):
    terminal = screen(80)
    Canvas(terminal.stream).draw(Text("one", style="bold"))
    assert terminal.lines == ["one"]
    assert b"\x1b[?" not in terminal.written, "no alternate screen, no hidden cursor"


@pytest.mark.parametrize(("name", "colour"), [("SOMETHING", b"\x1b[32m"), ("NO_COLOR", b"one")])
def test_no_color_is_obeyed(screen, monkeypatch, name: str, colour: bytes):
    monkeypatch.setenv(name, "1")
    terminal = screen(80)
    Canvas(terminal.stream).draw(Text("one", style="green"))
    assert terminal.lines == ["one"]
    assert colour in terminal.written
    assert (b"[32m" in terminal.written) is (name != "NO_COLOR")


@pytest.mark.parametrize(
    ("written", "stays"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("10%\r 50%\r100%\r", "100%"),
        ("\x1b[2J\x1b[Hup\x1b[1A and\x07 away\x1b]0;title\x07", "up and away\x1b[0m"),
        ("\x1b[?1049hother", "other\x1b[0m"),
    ],
)
def test_of_what_others_write_colours_stay_and_nothing_that_moves_the_cursor(written: str, stays: str):
    assert shown(written).removesuffix("\x1b[0m") == stays.removesuffix("\x1b[0m")


def test_a_view_needs_a_terminal_that_can_move_its_cursor_and_somebody_before_it(screen, monkeypatch):
    stream = screen(80).stream
    assert is_terminal(stream)
    assert not is_terminal(io.StringIO())
    for name, value, is_one in [("CI", "true", False), ("CI", "false", True), ("TERM", "dumb", False)]:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert is_terminal(stream) is is_one


def test_lines_that_a_narrower_terminal_has_broken_are_drawn_over_as_well(screen):
    terminal = screen(80)
    canvas = Canvas(terminal.stream)
    canvas.draw(Text("short\nlonger than forty columns, but not than eighty"))
    terminal.resize(40)
    canvas.draw(None)
    assert terminal.lines is not None
    assert b"\x1b[3A" in terminal.written, "one line, and one that takes two now"
