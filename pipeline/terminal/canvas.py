"""Drawing at the bottom of a terminal, over and over, with lines that stay above it.

No alternate screen, and the cursor is neither hidden nor left anywhere but below what is drawn: a terminal needs no
mending, whenever this process is killed.
"""

import os
import re
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f]")
UP, CLEAR_LINE, CLEAR_BELOW, RESET = "\x1b[{}A", "\x1b[K", "\x1b[J", "\x1b[0m"
PLAIN = 200


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches who can be shown something that changes."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown") and not is_ci


class Canvas:
    """What is drawn on a terminal, and drawn again in its place. For one thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._widths: list[int] = []  # of the lines that are drawn

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines there are for drawing."""
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except OSError:
            columns, lines = 80, 24
        # In the last column a terminal may break the line, and the cursor has a line of its own.
        return (columns or 80) - 1, (lines or 24) - 1

    def draw(self, picture: RenderableType | None, above: str = "") -> None:
        """Draws, in place of what was drawn before, and below lines that stay; of None, only those remain."""
        width, height = self.size
        lines = [] if picture is None else self._rendered(picture, width)[:height]
        text = "\r" + self._back(width + 1)
        if above or len(lines) < len(self._widths):
            text += CLEAR_BELOW
        text += above + "".join(f"{line}{CLEAR_LINE}\n" for line in lines)
        self._widths = [cell_len(ESCAPES.sub("", line)) for line in lines]
        self._stream.write(text + CLEAR_BELOW)
        self._stream.flush()

    def _rendered(self, picture: RenderableType, width: int) -> list[str]:
        self._console.width = width
        with self._console.capture() as captured:
            self._console.print(Group(picture))  # a text alone would lose what it says of wrapping
        return [line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")]

    def _back(self, columns: int) -> str:
        """To the first line that is drawn. Terminals that have become narrower have broken the lines."""
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        return UP.format(rows) if rows else ""


def plain(picture: RenderableType, *, width: int = PLAIN) -> list[str]:
    """As lines of text, without colours and, unless it is very wide, uncut."""
    console = Console(color_system=None, force_terminal=False, highlight=False, width=width)
    with console.capture() as captured:
        console.print(Group(picture))
    return [line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n")]


def shown(line: str) -> str:
    """A line that somebody has written to a terminal, as it stays there: the last of what overwrote itself.

    Colours remain, and nothing that moves the cursor.
    """
    line = ESCAPES.sub(lambda found: found[0] if found[0].endswith("m") else "", line.rstrip("\r").rpartition("\r")[2])
    return CONTROLS.sub("", line) + (RESET if "\x1b" in line else "")
