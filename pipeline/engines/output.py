"""What a worker writes to stdout and stderr, handed to the supervisor, which prints it above its view."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import BaseContext

CHUNK = 65536


class Output:
    """A pipe that one worker writes to and the supervisor reads."""

    def __init__(self, context: BaseContext) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)

    def fileno(self) -> int:
        """Where the supervisor reads it."""
        return self._reader.fileno()

    def read(self) -> bytes:
        """Something of it, as soon as there is something; nothing once all who write have ended."""
        return os.read(self._reader.fileno(), CHUNK)

    def started(self) -> None:
        """In the supervisor: the worker has its own by now, and its end is to be seen here."""
        self._writer.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def take(self) -> Callable[[], None]:
        """In the worker: its stdout and stderr go into the pipe. Returns what leads them back to where they went.

        The worker keeps the reader as well, and reads on when the supervisor is gone: a `print` of its user's, or of a
        process that it has started, must neither fail then nor wait for ever.
        """
        before = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(self._writer.fileno(), number)

        def pass_on() -> None:
            with suppress(OSError):  # where they went is gone as well
                while left := self.read():
                    with suppress(OSError):
                        os.write(before[1], left)

        def lead_back() -> None:
            for number, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, number)
            threading.Thread(target=pass_on, name="output", daemon=True).start()

        return lead_back
