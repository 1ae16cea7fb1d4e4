"""A command in a pseudo-terminal of a given size, and what its screen shows."""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pyte

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


class Terminal:
    """`python -m pipeline ARGUMENTS` as somebody runs it who sits before a terminal."""

    def __init__(
        self, folder: Path, *arguments: str, columns: int, rows: int = 24, environment: Mapping[str, str] | None = None
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self._fd, theirs = os.openpty()
        self.resize(columns, rows)
        left_out = ("MLFLOW_", "PIPELINE_", "PROGRESS", "CI", "NO_COLOR", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=folder,
            env={
                **inherited,
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm-256color",
                "PIPELINE_SPOOL": str(folder / "spool"),
                **(environment or {}),
            },
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # so that Ctrl-C is a signal
        )
        os.close(theirs)

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read(self, timeout_s: float) -> bool:
        """Takes in what is written within that time. False: nothing will be any more."""
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return True
        try:
            written = os.read(self._fd, 65536)
        except OSError:
            return False
        self.written += written
        self._stream.feed(written)
        return bool(written)

    @property
    def lines(self) -> list[str]:
        """What the screen shows."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()

    @property
    def cursor_is_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def wait_for(self, seen: Callable[[str], object], what: str) -> str:
        """Returns the screen when it first shows what was waited for."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not seen(self.text):
            assert self.read(0.1), f"it ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline_s, f"never {what}:\n{self.text}"
        return self.text

    def wait(self) -> int:
        """The exit code, when it has ended."""
        while self.read(PATIENCE_S):
            pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        for process in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else ():
            process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self._fd)
