"""A real pseudo-terminal in this process, and what its screen shows."""

import fcntl
import os
import select
import struct
import termios

import pyte


class Screen:
    """Columns and lines; `stream` is what a program writes to."""

    def __init__(self, columns: int, lines: int = 24) -> None:
        self._ours, theirs = os.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")
        self._screen = pyte.Screen(columns, lines)
        self._parser = pyte.ByteStream(self._screen)
        self.written = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int = 24) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    @property
    def lines(self) -> list[str]:
        """What it shows, without the empty lines at the end."""
        self.stream.flush()
        while select.select([self._ours], [], [], 0)[0]:
            written = os.read(self._ours, 65536)
            self.written += written
            self._parser.feed(written)
        shown = [line.rstrip() for line in self._screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    @property
    def cursor(self) -> tuple[int, int, bool]:
        """Line, column, and whether it is to be seen."""
        return self._screen.cursor.y, self._screen.cursor.x, not self._screen.cursor.hidden

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)
