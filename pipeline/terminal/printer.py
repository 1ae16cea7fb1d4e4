"""What workers and this process write while there is a view, as whole lines that wait to be printed above it."""

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from pipeline.engines.output import Output
from pipeline.terminal.canvas import shown

LONGEST = 65536  # bytes of a line that does not end


class Printer:
    """Reads the workers' outputs until it is closed. What is not said otherwise is for the thread that draws."""

    def __init__(self) -> None:
        self._outputs: dict[int, Output] = {}  # by file descriptor
        self._rests: dict[int, bytes] = {}  # what of each is no whole line yet
        self._lines: deque[str] = deque()
        self._lock = threading.Lock()  # of the outputs
        self._closed, self._open = os.pipe()

    def add(self, output: Output) -> None:
        """From any thread."""
        with self._lock:
            self._outputs[output.fileno()] = output

    def print(self, line: str) -> None:
        """From any thread."""
        self._lines.append(line)

    def close(self) -> None:
        """Once, from any thread: `take` is to return."""
        os.close(self._open)

    def take(self, timeout_s: float) -> bool:
        """Takes in what is written within that time; returns at once, with False, when it is closed."""
        until_s = time.monotonic() + timeout_s
        while True:
            ready = self._ready(max(0.0, until_s - time.monotonic()))
            if self._closed in ready:
                return False
            for number in ready:
                self._feed(number, self._read(number))
            if time.monotonic() >= until_s:
                return True

    def finish(self) -> None:
        """Takes in the rest of what was written, whole lines or not."""
        while ready := [number for number in self._ready(0.0) if number != self._closed]:
            for number in ready:
                self._feed(number, self._read(number))
        for number in list(self._outputs):  # of processes that have outlived their workers
            self._feed(number, b"")
        os.close(self._closed)

    def text(self) -> str:
        """The lines that wait; they do no more."""
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return "".join(f"{line}\n" for line in lines)

    def pass_on(self) -> None:
        """Until it is closed: without a view, what is written goes on to where it would have gone."""
        while self._closed not in (ready := self._ready(None)):
            for number in ready:
                if not (written := self._read(number)):
                    self._remove(number)
                with suppress(OSError):  # the terminal is gone
                    os.write(2, written)

    def _ready(self, timeout_s: float | None) -> list[int]:
        with self._lock:
            numbers = list(self._outputs)
        return select.select([self._closed, *numbers], [], [], timeout_s)[0]

    def _read(self, number: int) -> bytes:
        return self._outputs[number].read()

    def _feed(self, number: int, written: bytes) -> None:
        """`written` is empty when all who could write have ended."""
        rest = self._rests.pop(number, b"")
        if not written:
            self._remove(number)
        *lines, rest = (rest + (written or b"\n" * bool(rest))).split(b"\n")
        self._lines += [shown(line.decode(errors="replace")) for line in lines]
        if rest:
            self._rests[number] = rest[-LONGEST:]

    def _remove(self, number: int) -> None:
        with self._lock:
            self._outputs.pop(number).close()


class DivertedLog:
    """This process's log, while there is a view: it leaves to it what goes well, and warnings are printed above it."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._root = logging.getLogger()
        self._level = self._root.level
        self._handlers = [
            one for one in self._root.handlers if isinstance(one, logging.StreamHandler) and one.stream is sys.stderr
        ]

    def divert(self) -> None:
        self._root.setLevel(max(self._level, logging.WARNING))
        for handler in self._handlers:
            handler.setStream(self)

    def lead_back(self) -> None:
        self._root.setLevel(self._level)
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self._printer.print(line)

    def flush(self) -> None:
        """They are printed by the thread that draws."""
