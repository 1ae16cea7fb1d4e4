"""`python -m pipeline`: signals first, so that one is obeyed even while the heavy modules load."""

import os
import sys

from pipeline.signals import Interrupted, StopRequest


def main() -> int:
    stop = StopRequest()
    stop.interrupt()
    try:
        from pipeline.front import answer

        code = answer(sys.argv[1:])
        if code is None:
            from pipeline.cli import run_command

            code = run_command(sys.argv[1:], stop)
        stop.ignore()  # the work is done, and said to be
        return code
    except BrokenPipeError:
        # Whoever read what is printed has read enough. What is still buffered would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        # A module that was being loaded may have turned the interruption into an error of its own.
        if not isinstance(error, Interrupted) and (stop.reason is None or not isinstance(error, Exception)):
            raise
        print(f"stopped by {stop.reason}; run the same command again to continue", file=sys.stderr)
        return 75


if __name__ == "__main__":
    sys.exit(main())
